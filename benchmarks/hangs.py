"""Ranks that hang, in every phase of a run: whether the right one is named, with its phase, and after how many seconds. `make hangs`.

One small run on two ranks for each line. A fault is planted in one rank, in the phase's method: it is stopped (SIGSTOP), sleeps, spins in
Python, or keeps Python's lock in foreign code. Seconds are those from the fault to the end of the command.

    make hangs                                                              # FSDP2 and ZeRO-2
    make hangs ARGS='--sets vllm --python vllm=.venv-vllm/bin/python'       # beside an engine in its own environment
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import small_job

LIMIT_S, WITHIN_S = 12, 60
"""Each phase's limit in these runs, and how long after it a hang has to be named."""

SETS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "zero-2": {"strategy": "deepspeed", "zero_stage": 2},
    "vllm": {"strategy": "fsdp", "engine_type": "vllm"},
}
PLACES = {
    "rollout": ("lightrft.trainer.trainer_phases.TrainerPhases.rollout", 1),
    "reward": ("lightrft.trainer.trainer_phases.TrainerPhases.reward", 0),
    "logprob": ("lightrft.trainer.trainer_phases.TrainerPhases.logprob", 1),
    "advantage": ("lightrft.trainer.trainer_phases.TrainerPhases.advantage", 0),
    "update": ("lightrft.trainer.trainer_phases.TrainerPhases.update", 1),
    "sync": ("lightrft.trainer.trainer_phases.TrainerPhases.sync", 1),
    "evaluate": ("lightrft.trainer.trainer_phases.TrainerPhases.evaluate", 0),
    "save": ("lightrft.strategy.strategy_base.StrategyBase.save_ckpt", 1),
    "finish": ("lightrft.strategy.strategy_base.StrategyBase.save_model", 0),
    "start": ("lightrft.trainer.run.build_trainer", 1),
}
"""Of each phase the function in which a rank hangs, and which rank."""
HOWS = ("stop", "sleep", "spin", "lock")

RANK = """
import os, pkgutil, signal, sys, time
from pathlib import Path
from lightrft.config.load import make_config, read_recipe
from lightrft.distributed.failure import reporting_failures

place, rank, how, recipe, stamp = sys.argv[1:]


def hang():
    Path(stamp).write_text(str(time.time()))
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "sleep":
        time.sleep(10000)
    if how == "lock":
        import ctypes
        ctypes.PyDLL(None).sleep(10000)
    while True:
        time.monotonic()


with reporting_failures():
    from lightrft.trainer.run import train

    if os.environ["RANK"] == rank:
        holder, _, name = place.rpartition(".")
        setattr(pkgutil.resolve_name(holder), name, lambda *_, **__: hang())
    train(make_config(read_recipe(recipe)))
"""
LAUNCH = """
import sys
from lightrft.distributed.launch import launch
sys.exit(launch([sys.executable, *sys.argv[1:]], nproc_per_node=2).exit_code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["fsdp", "zero-2"])
    parser.add_argument("--phases", nargs="+", choices=list(PLACES), default=list(PLACES))
    parser.add_argument("--python", nargs="*", default=[], metavar="SET=PYTHON", help="where a set runs, if not here")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in given.python)
    found = []
    for name in given.sets:
        for number, phase in enumerate(given.phases):
            row = hang(name, phase, HOWS[(number + list(SETS).index(name)) % len(HOWS)], python=pythons.get(name, sys.executable))
            found.append(row)
            verdict = "named" if row["right"] else "NOT named"
            print(
                f"{name:7} {phase:10} {row['how']:6} rank {row['rank']} {verdict}, {row['seconds']:.0f} s: {row['said'][:160]}", flush=True
            )
    right = [row for row in found if row["right"]]
    print(f"{len(right)} of {len(found)} named with their phase; the last after {max((row['seconds'] for row in right), default=0):.0f} s")
    if given.json:
        print(json.dumps(found))
    return 0 if len(right) == len(found) else 1


def hang(name: str, phase: str, how: str, *, python: str) -> dict[str, Any]:
    """One run, and what was said of it."""
    place, rank = PLACES[phase]
    with tempfile.TemporaryDirectory(prefix="lightrft-hang-") as where:
        folder = Path(where)
        limits = [f"{one}={LIMIT_S}" for one in PLACES if one != "start"]
        changes = {"max_steps": 2, "output_dir": str(folder / "run"), "phase_timeouts": [*limits, "start=60"], "hang_timeout_s": 60}
        changes |= {"heartbeat_timeout_s": LIMIT_S, "eval_data": str(folder / "rows.jsonl"), "eval_every": 1}
        recipe, script, stamp = small_job.write_recipe(folder, SETS[name] | changes), folder / "rank.py", folder / "stamp"
        script.write_text(RANK)
        command = [python, "-c", LAUNCH, str(script), place, str(rank), how, str(recipe), str(stamp)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        seconds = time.time() - float(stamp.read_text()) if stamp.exists() else 0.0
    said = next((line for line in done.stderr.splitlines() if line.startswith("the run hangs: ")), done.stderr[-400:])
    named = re.match(rf"the run hangs: rank {rank} .*phase {phase} of step \d+", said) and f"rank {1 - rank} has" not in said
    limit = 60 if phase == "start" and how in ("sleep", "spin") else LIMIT_S
    stacks = all(f"--- rank {one} ---" in done.stderr for one in range(small_job.RANKS))
    right = bool(named) and stacks and done.returncode == 1 and seconds < limit + WITHIN_S
    return {"set": name, "phase": phase, "how": how, "rank": rank, "right": right, "seconds": round(seconds, 1), "said": said}


if __name__ == "__main__":
    sys.exit(main())
