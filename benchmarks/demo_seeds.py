"""Runs `lightrft demo` for several seeds, one after the other, and prints a table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SOLVED = 0.9
HEADINGS = ("seed", "before", "after", f"steps to {SOLVED}", "seconds", "peak GiB per rank")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("demo_flags", nargs="*", help="flags of `lightrft demo`, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(seed, run_dir=Path(folder) / f"seed-{seed}", flags=args.demo_flags) for seed in args.seeds]
    print_table(rows)
    if args.json:
        print(json.dumps({"benchmark": "demo_seeds", "rows": rows}))
    return 0 if all(row["accuracy_after"] >= SOLVED for row in rows) else 1


def measure(seed: int, *, run_dir: Path, flags: list[str]) -> dict[str, Any]:
    """One demo run as a row of the table."""
    command = [sys.executable, "-m", "lightrft.cli.main", "demo", "--json", "--seed", str(seed), "--output_dir", str(run_dir), *flags]
    print(f"seed {seed} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"seed {seed}: `lightrft demo` exited with {done.returncode}:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "seed": seed,
        "accuracy_before": result["accuracy_before"],
        "accuracy_after": result["accuracy_after"],
        "steps_to_solved": steps_to(SOLVED, metrics=run_dir / "metrics.jsonl"),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_gib": json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["peak_memory_gib"],
    }


def steps_to(reward: float, *, metrics: Path) -> int | None:
    """The first step at which the greedy evaluation reached `reward`; None: never."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return next((row["step"] for row in rows if row.get("eval/reward", 0.0) >= reward), None)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Right-aligned columns."""
    cells = [HEADINGS]
    for row in rows:
        steps = "-" if row["steps_to_solved"] is None else str(row["steps_to_solved"])
        peaks = " ".join(f"{peak:.2f}" for peak in row["peak_memory_gib"])
        accuracies = f"{row['accuracy_before']:.3f}", f"{row['accuracy_after']:.3f}"
        cells.append((str(row["seed"]), *accuracies, steps, f"{row['seconds']:.0f}", peaks))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
