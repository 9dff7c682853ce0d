"""Runs beside other runs, and runs that are killed. Whole launches of a few ranks with an engine, as processes.

python -m lightrft.testing.jobs MODEL_FOLDER SETTINGS OUT    # one rank of a job
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.models.load import load_causal_lm
from lightrft.strategy import get_strategy
from lightrft.testing.judge import greedy_tokens

MARK = "LIGHTRFT_TEST_JOB"
"""A variable that every process of a job has."""

LAUNCH = """
import sys
from lightrft.distributed.launch import launch
ranks, *command = sys.argv[1:]
sys.exit(launch([sys.executable, *command], nproc_per_node=int(ranks)).exit_code)
"""
STOP = "stop"
"""A file of this name in a job's folder ends it."""

SHM = Path("/dev/shm")
PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]
POLL_S = 0.1


class Job:
    """`ranks` ranks under a launcher of their own. They generate, judged by transformers, until they are told to end or are ended."""

    def __init__(self, out: Path, *, model: Path, ranks: int, settings: Mapping[str, Any]) -> None:
        self.out, self.ranks = out, ranks
        self.segments: set[str] = set()  # names in /dev/shm that its processes were seen with
        self._id = uuid.uuid4().hex
        out.mkdir(parents=True)
        words = ["-m", __name__, str(model), json.dumps(dict(settings)), str(out)]
        with (out / "log").open("w", encoding="utf-8") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(ranks), *words], env={**os.environ, MARK: self._id}, stdout=log, stderr=log
            )

    def processes(self) -> list[int]:
        """All that live and carry its mark, whoever their parents are. Zombies have no environment any more."""
        mark = f"{MARK}={self._id}"
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in _words_of(pid, "environ")]

    def rank_processes(self) -> list[int]:
        """Its ranks, without what they started themselves."""
        return [pid for pid in self.processes() if pid != self.launcher.pid and __name__ in _words_of(pid, "cmdline")]

    def answers(self) -> list[bool]:
        """Of the ranks that have answered so far: whether tokens are those of transformers."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in self.out.glob("*.json")]

    def forget_answers(self) -> None:
        """Those so far; ranks that stay give new ones."""
        for path in self.out.glob("*.json"):
            path.unlink()

    def begun(self) -> int:
        """How many ranks have begun to start their engine."""
        return len(list(self.out.glob("*.begun")))

    def wait_for(self, happened: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """Raises AssertionError, with the job's own words, where it takes longer, or the job ends without it."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            ended = self.launcher.poll() is not None and not happened()
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{what}: {'the job ended' if ended else f'not within {timeout_s:g} s'}\n{self.log()}")
            time.sleep(POLL_S)
        self.segments |= segments_of(self.processes())

    def finish(self, *, timeout_s: float) -> None:
        """Tells it to end. Raises AssertionError unless every rank answered right and left with 0, and nothing of it is left."""
        (self.out / STOP).touch()
        code = self.launcher.wait(timeout_s)
        assert (code, self.answers()) == (0, [True] * self.ranks), self.log()
        self.check_gone()

    def kill(self) -> None:
        """SIGKILL to the launcher and the ranks, at once, and to nobody else."""
        for pid in (self.launcher.pid, *self.rank_processes()):
            os.kill(pid, signal.SIGKILL)
        self.launcher.wait()

    def check_gone(self, *, within_s: float = 20.0) -> None:
        """Raises AssertionError where something of it is still alive after that time, and ends that."""
        deadline = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        words = [" ".join(_words_of(pid, "cmdline"))[:200] for pid in left]
        self.end()
        assert not left, f"{len(left)} processes outlive their job: {words}"

    def end(self) -> None:
        """Whatever is left of it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()

    def log(self) -> str:
        """What its processes printed."""
        return (self.out / "log").read_text(encoding="utf-8", errors="replace")[-4000:]


def segments_of(pids: Iterable[int]) -> set[str]:
    """Names in /dev/shm that these processes have mapped. By inode: a semaphore is mapped under a temporary name."""
    inodes: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
            inodes |= {line.split()[4] for line in lines if f" {SHM}/" in line}
    found = set()
    for name in os.listdir(SHM) if inodes else ():
        with suppress(FileNotFoundError):
            found |= {name} if str((SHM / name).stat().st_ino) in inodes else set()
    return found


def still_there(names: set[str], *, within_s: float = 10.0) -> set[str]:
    """Those of them that are in /dev/shm even after that time; a resource tracker removes some a moment after the processes are gone."""
    deadline = time.monotonic() + within_s
    while (left := names & set(os.listdir(SHM))) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def _words_of(pid: int, what: str) -> list[str]:
    """Of /proc/PID/environ or cmdline; nothing for one that has ended, or is another user's."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder")
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    config = make_config({"model_name_or_path": args.folder, "prompt_max_len": 32, "generate_max_len": 8} | args.settings)
    strategy = get_strategy(config)
    (args.out / f"{strategy.world.rank}.begun").touch()
    strategy.setup_inference_engine(config)
    judge = load_causal_lm(args.folder, dtype=torch.float32).train(False)
    expected = [greedy_tokens(judge, prompt, max_new_tokens=6) for prompt in PROMPTS]
    while not strategy.all_reduce(int((args.out / STOP).exists()), "max"):
        outputs = strategy.gather_and_generate({"temperature": 0.0, "max_new_tokens": 6}, all_prompt_token_ids=PROMPTS)
        right = [list(output.completions[0].token_ids) for output in outputs] == expected
        written = args.out / f"{strategy.world.rank}.part"
        written.write_text(json.dumps(right), encoding="utf-8")
        written.rename(written.with_suffix(".json"))
    strategy.shutdown()


if __name__ == "__main__":
    main()
