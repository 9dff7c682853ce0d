"""A run of many rollouts, watched from outside: memory, descriptors and threads of each rank, and the time of a step. `make soak`.

What grows with the number of rollouts ends a long run, however small it is in a short one. A slope is a straight line's through what was
seen after the first fifth of the run, in which buffers and caches still fill.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import small_job

FILLS = 0.2
"""Fraction of the run in which buffers still fill."""
MIB_PER_100 = 1.0
"""Of memory; more is a leak."""
STEP_TIME = 1.25
"""The median of the last third over that of the second one; above it the time of a step grows, where no other work has come."""


@dataclass(frozen=True)
class Seen:
    """A rank at one moment. `mib`: resident memory that is its own (files that are mapped not counted)."""

    step: int
    mib: float
    descriptors: int
    threads: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=20, help="rollouts between two saves, and two evaluations (default: 20)")
    parser.add_argument("--strategy", default="fsdp")
    parser.add_argument("--engine", default="hf")
    parser.add_argument("--python", default=sys.executable, help="of an environment that has the engine")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the run")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lightrft-soak-") as folder:
        found = soak(Path(folder), given)
    for line in lines(found):
        print(line, flush=True)
    if given.json:
        print(json.dumps(found))
    return 0 if found["exit"] == 0 and not found["grows"] else 1


def soak(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The run, and what was seen of it."""
    changes: dict[str, Any] = {"strategy": given.strategy, "engine_type": given.engine, "max_steps": given.steps}
    changes |= {"save_every": given.every, "eval_every": given.every, "eval_data": str(folder / "rows.jsonl"), "plot_every": 50}
    changes |= {name: json.loads(value) for name, _, value in (one.partition("=") for one in given.set)}
    recipe, run, log = small_job.write_recipe(folder, changes), folder / "run", folder / "log"
    process = small_job.start(small_job.train_words(recipe, run), python=given.python, log=log)
    seen: dict[str, list[Seen]] = {}
    while process.poll() is None:
        step = newest_step(run)
        ranks = small_job.ranks_below(process.pid, b"lightrft.cli.worker")
        named = {f"rank {number}": one for number, one in enumerate(ranks)} | {"launcher": process.pid}
        for name, one in named.items():
            if step > 0 and (now := look(one, step)):
                seen.setdefault(name, []).append(now)
        time.sleep(1.0)
    times = [row["time/step_s"] for row in rows(run) if "time/step_s" in row]
    return report(seen, times, steps=given.steps) | {
        "exit": process.returncode,
        "error": log.read_text()[-2000:] if process.returncode else "",
    }


def look(process: int, step: int) -> Seen | None:
    """None where it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
        descriptors = len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return None
    if "RssAnon" not in status:
        return None
    kib = sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    return Seen(step=step, mib=kib / 1024, descriptors=descriptors, threads=int(status["Threads"]))


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def newest_step(run: Path) -> int:
    """The step of the last row; 0 without any."""
    found = rows(run)
    return int(found[-1]["step"]) if found else 0


def report(seen: dict[str, list[Seen]], times: Sequence[float], *, steps: int) -> dict[str, Any]:
    """Slopes for each process, thirds of the step's time, and the names of what grows."""
    processes, grows = {}, []
    for name, all_of_it in seen.items():
        late = [one for one in all_of_it if FILLS * steps < one.step < steps]  # after the last step it is taken down
        if len({one.step for one in late}) < 3:
            continue
        mib = 100 * slope([one.step for one in late], [one.mib for one in late])
        last = late[-max(len(late) // 10, 1) :]
        processes[name] = {
            "mib": [round(late[0].mib, 1), round(statistics.median(one.mib for one in last), 1)],
            "mib_per_100": round(mib, 2),
            "descriptors": [min(one.descriptors for one in late), max(one.descriptors for one in late)],
            "threads": [min(one.threads for one in late), max(one.threads for one in late)],
            "descriptors_per_100": round(100 * slope([one.step for one in late], [one.descriptors for one in late]), 2),
            "threads_per_100": round(100 * slope([one.step for one in late], [one.threads for one in late]), 2),
        }
        grows += [f"memory of {name}"] if mib > MIB_PER_100 else []
        grows += [f"{what} of {name}" for what in ("descriptors", "threads") if processes[name][f"{what}_per_100"] > 0.5]
    third = max(len(times) // 3, 1)
    thirds = [statistics.median(part) if part else 0.0 for part in (times[:third], times[third : 2 * third], times[2 * third :])]
    grows += ["the time of a step"] if len(times) >= 9 and thirds[2] > STEP_TIME * thirds[1] else []
    return {"steps": len(times), "processes": processes, "step_s": [round(one, 3) for one in thirds], "grows": grows}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line with the least squares; 0 where all x are one."""
    middle = statistics.fmean(x)
    spread = sum((one - middle) ** 2 for one in x)
    return sum((one - middle) * two for one, two in zip(x, y, strict=True)) / spread if spread else 0.0


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    thirds = ", ".join(f"{one:.3f} s" for one in found["step_s"])
    told = [f"{found['steps']} rollouts, exit {found['exit']}; median step of each third: {thirds}"]
    for name, one in found["processes"].items():
        first, last = one["mib"]
        told.append(
            f"{name}: {first:.0f} -> {last:.0f} MiB ({one['mib_per_100']:+.2f} per 100 rollouts), descriptors {one['descriptors'][0]} to "
            f"{one['descriptors'][1]}, threads {one['threads'][0]} to {one['threads'][1]}"
        )
    return [*told, "grows: " + (", ".join(found["grows"]) or "nothing"), *([found["error"]] if found["error"] else [])]


if __name__ == "__main__":
    sys.exit(main())
