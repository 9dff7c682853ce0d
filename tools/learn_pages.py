"""What `make learn` measured. Writes the measured part of docs/algorithms from the rows that `benchmarks/learn.py --out ROWS` keeps."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs/algorithms"
RECIPE = re.compile(r"examples/recipes/(\w+)-tiny\.yaml")
PAGE_HEADING = "## The tiny recipe, measured\n"
TABLE_HEADING = "## Measured\n"
EVERY = 20
Rows = dict[tuple[str, int], dict[str, Any]]


def main() -> int:
    """Rewrites each page from its heading on. Exits with a message where an algorithm of a page has no rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    rows: Rows = {}
    for line in parser.parse_args().rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["algorithm"], row["seed"]] = row
    for page in sorted(DOCS.glob("*.md")):
        if page.name == "README.md":
            rewrite(page, TABLE_HEADING, table(rows))
        else:
            names = dict.fromkeys(RECIPE.findall(page.read_text(encoding="utf-8")))
            rewrite(page, PAGE_HEADING, "\n".join(curve(name, rows) for name in names))
    return 0


def rewrite(page: Path, heading: str, text: str) -> None:
    before, found, _ = page.read_text(encoding="utf-8").partition(heading)
    if not found:
        sys.exit(f"{page}: no line {heading.strip()!r}")
    page.write_text(f"{before}{heading}\n{text}", encoding="utf-8")


def seeds_of(name: str, rows: Rows) -> list[dict[str, Any]]:
    found = [row for (algorithm, _), row in sorted(rows.items()) if algorithm == name]
    if not found:
        sys.exit(f"no rows of {name!r}: run benchmarks/learn.py --only {name} --out ROWS.jsonl")
    return found


def curve(name: str, rows: Rows) -> str:
    """One table: a column for every twentieth step and the last, a row for each seed."""
    runs = seeds_of(name, rows)
    steps = [step for step in runs[0]["curve"] if int(step) % EVERY == 0 or int(step) == runs[0]["steps"]]
    lines = [
        f"`make learn ARGS='--only {name}'`, one process for a run; greedy accuracy on 256 held-out rows:",
        "",
        "| seed | " + " | ".join(f"step {step}" if step == "0" else step for step in steps) + " | 0.9 at step |",
        "|---" * (len(steps) + 2) + "|",
    ]
    for run in runs:
        lines.append(f"| {run['seed']} | " + " | ".join(f"{run['curve'][step]:.3f}" for step in steps) + f" | {solved(run)} |")
    return "\n".join(lines) + "\n"


def table(rows: Rows) -> str:
    """All algorithms, seeds side by side."""
    names = list(dict.fromkeys(name for name, _ in sorted(rows)))
    seeds = [run["seed"] for run in seeds_of(names[0], rows)]
    listed = ", ".join(map(str, seeds))
    lines = [
        f"`make learn`, seeds {listed}, one process for a run. All runs of a seed start from the same model.",
        "",
        "| algorithm | before | after | steps | 0.9 at step |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        runs = seeds_of(name, rows)
        before, after = (", ".join(f"{run[key]:.3f}" for run in runs) for key in ("before", "after"))
        lines.append(f"| {name} | {before} | {after} | {runs[0]['steps']} | {', '.join(solved(run) for run in runs)} |")
    return "\n".join(lines) + "\n"


def solved(run: dict[str, Any]) -> str:
    return "-" if run["steps_to_solved"] is None else str(run["steps_to_solved"])


if __name__ == "__main__":
    sys.exit(main())
