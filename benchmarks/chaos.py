"""Steps lost when ranks are killed at random moments and the run goes on by itself. `make chaos`.

One small run on two ranks is trained straight, and again with restarts while a killer sends SIGKILL to a random rank at random moments. At
the end the weights must be those of the straight run, bit by bit. A row says what each kill hit and whether a save was lost.

    make chaos                                                          # FSDP2, ZeRO-2, and FSDP2 under two agents of torchrun
    make chaos ARGS='--kills 20 --sets vllm --python vllm=.venv-vllm/bin/python'   # beside an engine in its own environment
    make chaos ARGS='--sets fsdp zero-2 --kills 40 20 --steps 300 150'  # other numbers for each set
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import small_job
from safetensors.torch import load_file

from lightrft.run.checkpoint_folder import saved_in


@dataclass(frozen=True)
class Set:
    """`agents`: 1 is `lightrft train` with --max-restarts, 2 are two agents of torchrun with a rank each, as on two machines."""

    settings: dict[str, Any]
    agents: int = 1


SETS = {
    "fsdp": Set({"strategy": "fsdp"}),
    "zero-2": Set({"strategy": "deepspeed", "zero_stage": 2}),
    "async": Set({"strategy": "fsdp", "async_save": True}),
    "agents": Set({"strategy": "fsdp"}, agents=2),
    "vllm": Set({"strategy": "fsdp", "engine_type": "vllm"}),
}
DAILY = ("fsdp", "zero-2", "agents")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, nargs="+", default=[10], help="how many ranks are killed in each run (default: 10)")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(DAILY))
    parser.add_argument("--python", nargs="*", default=[], metavar="SET=PYTHON", help="where a set runs, if not here")
    parser.add_argument("--steps", type=int, nargs="+", default=[12], help="rollouts of the run; some ten for each kill are enough")
    half = "seconds of the longest wait for a kill (default: half the straight run)"
    parser.add_argument("--within", type=float, nargs="+", default=[0.0], help=half)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in given.python)
    found = {}
    plans = zip(*(_for_each(numbers, given.sets) for numbers in (given.kills, given.steps, given.within)), strict=True)
    for name, (kills, steps, within) in zip(given.sets, plans, strict=True):
        with tempfile.TemporaryDirectory(prefix="lightrft-chaos-") as folder:
            job = Job(Path(folder), SETS[name], python=pythons.get(name, sys.executable))
            found[name] = chaos(job, kills=kills, steps=steps, seed=given.seed, within=within)
        print(line(name, found[name]), flush=True)
    print(f"together {sum(one['kills'] for one in found.values())} kills", flush=True)
    if given.json:
        print(json.dumps(found))
    return 0 if all(one["bitwise"] and one["exit"] == 0 and one["lost"] == 0 for one in found.values()) else 1


def _for_each(numbers: list[Any], sets: list[str]) -> list[Any]:
    """One number for all sets, or one for each."""
    if len(numbers) not in (1, len(sets)):
        raise SystemExit(f"{len(numbers)} numbers for {len(sets)} sets ({', '.join(sets)}); give one, or one for each")
    return numbers * len(sets) if len(numbers) == 1 else numbers


def line(name: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    where = ", ".join(f"{phase} {number}" for phase, number in sorted(found["hit"].items()))
    same = "bitwise the straight run" if found["bitwise"] else "NOT the straight run"
    end = f"{found['lost']} saves lost, exit {found['exit']}, {same}, {found['seconds']:.0f} s"
    return f"{name}: {found['kills']} kills ({where}), {found['restarts']} restarts told, {end}"


@dataclass
class Job:
    """How a set is started, and where."""

    folder: Path
    of: Set
    python: str
    launchers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, recipe: Path, run: Path, *, restarts: int) -> None:
        """One command, or one for each agent."""
        if self.of.agents == 1:
            words = [small_job.train_words(recipe, run, *(["--max-restarts", str(restarts)] if restarts else []))]
        else:
            words = [_agent_words(recipe, run, port, restarts=restarts) for port in [_free_port()] for _ in range(self.of.agents)]
        self.launchers = [small_job.start(one, python=self.python, log=self.folder / f"{run.name}.log") for one in words]

    @property
    def runs(self) -> bool:
        return any(one.poll() is None for one in self.launchers)

    def ranks(self) -> list[int]:
        program = b"lightrft.cli.worker" if self.of.agents == 1 else b"lightrft.cli.main"
        launchers = [one.pid for one in self.launchers]
        return [rank for one in launchers for rank in small_job.ranks_below(one, program) if rank not in launchers]

    def end(self) -> int:
        """Waits; the first exit code that is not 0."""
        return next((code for one in self.launchers if (code := one.wait(timeout=1800))), 0)

    def told(self, run: Path) -> str:
        return (self.folder / f"{run.name}.log").read_text(encoding="utf-8")


def _agent_words(recipe: Path, run: Path, port: int, *, restarts: int) -> list[str]:
    agent = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--max-restarts", str(restarts)]
    agent += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", "--monitor-interval", "0.1"]
    return [*agent, "-m", "lightrft.cli.main", "train", "--config", str(recipe), "--output_dir", str(run)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def chaos(job: Job, *, kills: int, steps: int, seed: int, within: float = 0.0) -> dict[str, Any]:
    """The straight run, the one with kills, and what came of it."""
    straight, run, draw = job.folder / "straight", job.folder / "killed", random.Random(seed)
    recipe = small_job.write_recipe(job.folder, job.of.settings | {"max_steps": steps})
    began = time.monotonic()
    job.start(recipe, straight, restarts=0)
    if job.end():
        raise SystemExit(f"the straight run failed: {job.told(straight)}")
    seconds = time.monotonic() - began
    job.start(recipe, run, restarts=10 * kills)
    hit: Counter[str] = Counter()
    lost, done = 0, 0
    while job.runs:
        if done < kills and _wait_and_kill(job, run, draw, within=within or seconds / 2, hit=hit):
            done += 1
            lost += _lost(run)
        time.sleep(0.1)
    code = job.end()
    a, b = (load_file(path / "model" / "model.safetensors") if (path / "model").is_dir() else {} for path in (straight, run))
    same = bool(a) and a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)
    told = job.told(run)
    return {
        "kills": done, "hit": dict(hit), "lost": lost, "exit": code, "bitwise": same, "restarts": told.count("restart "),
        "seconds": time.monotonic() - began, "error": "" if same else told[-2000:],
    }  # fmt: skip


_newest: dict[Path, int] = {}


def _lost(run: Path) -> int:
    """1 where the newest checkpoint is older than the newest one at the last kill."""
    step = max((one.step for one in saved_in(run)), default=-1)
    before, _newest[run] = _newest.get(run, -1), step
    return int(step < before)


def _wait_and_kill(job: Job, run: Path, draw: random.Random, *, within: float, hit: Counter[str]) -> bool:
    """A random moment; then a random rank is killed, if one is there."""
    until = time.monotonic() + draw.uniform(0.5, within)
    while time.monotonic() < until:
        if not job.runs:
            return False
        time.sleep(0.05)
    ranks = job.ranks()
    if not ranks:
        return False
    saving = bool(list((run / "checkpoints").glob(".step-*")))
    started = (run / "metrics.jsonl").exists()
    hit["while saving" if saving else "training" if started and len(ranks) > 1 else "starting"] += 1
    with suppress(ProcessLookupError):
        os.kill(draw.choice(ranks), signal.SIGKILL)
    return True


if __name__ == "__main__":
    sys.exit(main())
