"""Every algorithm on the sorting task. Runs the tiny recipes for several seeds, and a reward that teaches nothing, and prints a table.

A row is good when the greedy accuracy on held-out rows starts at most at 0.45 and reaches 0.9 within the recipe's steps; that of the
shuffled reward when it does not rise by more than 0.1. All runs of a seed start from the same warmed-up model. `--out` keeps the rows, and
a second call with the same file runs only those that it lacks: the table can be made piece by piece.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples" / "recipes"
START_AT_MOST, SOLVED, DEAD_RISE = 0.45, 0.9, 0.1
DEAD = "shuffled reward"
HEADINGS = ("algorithm", "seed", "before", "after", "steps", f"steps to {SOLVED}", "seconds", "verdict")
OF_THE_START = ("scratch_", "sft_")


def names() -> list[str]:
    """The tiny recipes on the sorting task, and the dead baseline."""
    return [*sorted(path.name.removesuffix("-tiny.yaml") for path in RECIPES.glob("*-tiny.yaml") if "data/sort" in path.read_text()), DEAD]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help=f"of: {', '.join(names())}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a .jsonl file of rows: read first, and added to")
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    known = {(row["algorithm"], row["seed"]): row for row in read_rows(args.out)}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for seed in args.seeds:
            for name in args.only:
                row = known.get((name, seed)) or measure(name, seed, folder=folder, nproc=args.nproc_per_node)
                if (name, seed) not in known and args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                rows.append(row)
    print_table(rows)
    if args.json:
        print(json.dumps({"benchmark": "learn", "rows": rows}))
    return 0 if all(row["good"] for row in rows) else 1


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Rows of earlier calls."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure(name: str, seed: int, *, folder: Path, nproc: int) -> dict[str, Any]:
    """One run as a row of the table."""
    print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
    base = warmed_up(seed, folder=folder, nproc=nproc)
    settings = recipe("grpo" if name == DEAD else name)
    settings = {key: value for key, value in settings.items() if not key.startswith(OF_THE_START)}
    settings |= {"model_name_or_path": str(base), "seed": seed, "output_dir": str(folder / f"{name.replace(' ', '-')}-{seed}")}
    if name == DEAD:
        settings["reward"] = [f"{ROOT / 'benchmarks' / 'shuffled.py'}:shuffled"]
    start = time.perf_counter()
    summary = train(settings, nproc=nproc)
    before, after = summary["eval_before"]["reward"], summary["eval_after"]["reward"]
    curve = evaluations(Path(settings["output_dir"]))
    good = after <= before + DEAD_RISE if name == DEAD else before <= START_AT_MOST and max(curve.values()) >= SOLVED
    return {
        "algorithm": name,
        "seed": seed,
        "before": before,
        "after": after,
        "steps": summary["steps"],
        "steps_to_solved": next((step for step, reward in curve.items() if reward >= SOLVED), None),
        "seconds": round(time.perf_counter() - start, 1),
        "curve": curve,
        "good": good,
    }


def warmed_up(seed: int, *, folder: Path, nproc: int) -> Path:
    """The model that all runs of a seed start from: that of the GRPO recipe, made by a run of one step."""
    run = folder / f"base-{seed}"
    if not (run / "base").is_dir():
        train(recipe("grpo") | {"seed": seed, "output_dir": str(run), "max_steps": 1, "overwrite_output_dir": True}, nproc=nproc)
    return run / "base"


def recipe(name: str) -> dict[str, Any]:
    """The settings of a tiny recipe."""
    values: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}-tiny.yaml").read_text(encoding="utf-8"))
    return values


def train(settings: dict[str, Any], *, nproc: int) -> dict[str, Any]:
    """`lightrft train` on these settings; its summary."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        command = [sys.executable, "-m", "lightrft.cli.main", "train", "--config", file.name, "--nproc-per-node", str(nproc), "--json"]
        done = subprocess.run([*command, "--overwrite_output_dir"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{settings['output_dir']}: `lightrft train` exited with {done.returncode}:\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def evaluations(run: Path) -> dict[int, float]:
    """Greedy accuracy by step, in the order of the steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {int(row["step"]): row["eval/reward"] for row in rows if "eval/reward" in row}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Right-aligned columns."""
    cells = [HEADINGS]
    for row in rows:
        solved = "-" if row["steps_to_solved"] is None else str(row["steps_to_solved"])
        numbers = f"{row['before']:.3f}", f"{row['after']:.3f}", str(row["steps"]), solved, f"{row['seconds']:.0f}"
        cells.append((row["algorithm"], str(row["seed"]), *numbers, "good" if row["good"] else "NOT GOOD"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
