"""Situations in which nothing, or the wrong thing, is learned, planted in small real runs: the sentence that is said, and at which step.

    python benchmarks/silent_failures.py [--json] [--only WORDS]
    python benchmarks/silent_failures.py --recipes 12 [--seeds 0 1 2] [--only ppo]

The second form runs the tiny recipes for so many steps each: a warning in one of them is a false alarm.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learn import OF_THE_START, RECIPES, recipe, train, warmed_up

from lightrft.testing.silent_runs import SILENT_RUNS, table


def planted(only: str) -> Iterator[dict[str, Any]]:
    """A row for each situation, as soon as it has run."""
    for case in SILENT_RUNS:
        if only in case.name:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                [row] = table([case])
            yield row


def recipes(only: str, *, steps: int, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """A row for each tiny recipe of the sorting task and seed: right where it has nothing to say."""
    names = sorted(path.stem.removesuffix("-tiny") for path in RECIPES.glob("*-tiny.yaml") if "sort" in path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="lightrft-recipes-") as folder:
        for seed in seeds:
            base = warmed_up(seed, folder=Path(folder), nproc=1)
            for name in names:
                if only not in name:
                    continue
                settings = {key: value for key, value in recipe(name).items() if not key.startswith(OF_THE_START)}
                settings |= {"model_name_or_path": str(base), "seed": seed, "output_dir": f"{folder}/{name}-{seed}", "max_steps": steps}
                said = train(settings | {"eval_every": 0}, nproc=1)["warnings"]
                first = said[0] if said else {"step": None, "text": ""}
                rows = [f"{row['step']} {row['name']}" for row in said]
                yield {
                    "case": f"{name}, seed {seed}",
                    "expected": "",
                    "right": not said,
                    "step": first["step"],
                    "said": first["text"],
                    "all": rows,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    parser.add_argument("--only", default="", help="cases whose name holds these words")
    parser.add_argument("--recipes", type=int, default=0, metavar="STEPS", help="run the tiny recipes, each for so many steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the recipes' runs")
    given = parser.parse_args()
    rows = []
    for row in recipes(given.only, steps=given.recipes, seeds=given.seeds) if given.recipes else planted(given.only):
        rows.append(row)
        step = "-" if row["step"] is None else str(row["step"])
        print(f"{'ok ' if row['right'] else 'BAD'} {row['case']:<44} step {step:>2}  {row['expected'] or 'nothing'}", flush=True)
        print(f"      {row['said'] or '(nothing was said)'}", flush=True)
        if len(row["all"]) > 1:
            print(f"      all: {', '.join(row['all'])}", flush=True)
    if given.json:
        print(json.dumps({"cases": rows, "right": sum(row["right"] for row in rows)}))
    sys.exit(0 if all(row["right"] for row in rows) else 1)


if __name__ == "__main__":
    main()
