"""The time of `lightrft --help` and `lightrft plugins`: seconds, and the ratio to an empty Python, measured in the same run."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RUNS = 5
LIMIT_S = 0.3
BASE = "python -c pass"


def main() -> None:
    """Prints the table; `--json` makes the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args()
    rows = measure(given.runs)
    print(f"{'command':<20} {'seconds':>8} {'ratio':>6}   (median of {given.runs}; limit {LIMIT_S} s)")
    for name, row in rows.items():
        print(f"{name:<20} {row['seconds']:>8.3f} {row['ratio']:>6.1f}")
    if given.json:
        print(json.dumps({"limit_s": LIMIT_S, "runs": given.runs, "commands": rows}))


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Seconds and ratio of each command. The commands take turns, so that a busy moment of the machine hits all of them."""
    lightrft = str(Path(sys.executable).with_name("lightrft"))
    commands = {BASE: [sys.executable, "-c", "pass"], "lightrft --help": [lightrft, "--help"], "lightrft plugins": [lightrft, "plugins"]}
    for command in commands.values():
        seconds(command)  # fills the file cache and writes the bytecode
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {name: {"seconds": round(value, 4), "ratio": round(value / medians[BASE], 2)} for name, value in medians.items()}


def seconds(command: Sequence[str]) -> float:
    """The wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
