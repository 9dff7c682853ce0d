"""Runs one function of a test on several ranks. Real processes, a hard time-out, and the traceback of every rank that failed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from lightrft.distributed.loopback import loopback_store
from lightrft.testing import spmd_rank

T = TypeVar("T")

PRELOAD = [
    "lightrft.testing.spmd_rank",
    "lightrft.testing.small_trainer",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.qwen3.modeling_qwen3",
]
"""Imported once in the fork server: a rank then starts in 0.1 s instead of 4 s. None of them starts a thread or touches CUDA."""

GRACE_S = 5.0
"""How long the other ranks may go on after one has failed: long enough to raise their own error, if they can."""


class SpmdError(RuntimeError):
    """One or more ranks failed; the message holds the traceback of each, the first to fail first (`ranks` is in that order)."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks


@dataclass(frozen=True)
class _Failure:
    """`order`: a rank that died without a word, then errors by their time, then errors about other ranks, then ranks that we ended."""

    rank: int
    order: tuple[int, float]
    text: str


def preload(*modules: str) -> None:
    """Has the fork server import these modules too, once for all ranks; for the `conftest.py` of a plugin whose library is slow to import.

    Before the first `run_spmd` of the process: the server is started there. A module must start no thread and not touch CUDA when it is
    imported; one that cannot be imported is left out, and the rank that needs it says so.
    """
    PRELOAD.extend(module for module in modules if module not in PRELOAD)


def run_spmd(fn: Callable[..., T], world_size: int, *args: Any, timeout_s: float = 120.0, cuda: bool = False) -> list[T]:
    """Calls `fn(*args)` in `world_size` processes with torchrun's environment variables; returns the results in rank order.

    `fn` is a module-level function; arguments and results are pickled. A rank gets the caller's environment and working directory, and
    one thread, and may have children of its own. The process group is the function's to start (a strategy does); one that is up at the end
    is destroyed. What ranks print is printed afterwards. GPUs are hidden from the ranks unless `cuda`, which takes one for each rank: a
    test means the same everywhere.

    Raises:
        SpmdError: a rank raised, died, or was still running after `timeout_s` (then all are killed).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # As under torchrun, the launcher holds the store: no race for a free port, and it outlives a rank 0 that dies.
    store = loopback_store()
    with tempfile.TemporaryDirectory(prefix="lightrft-spmd-") as name:
        folder = Path(name)
        job = _job(fn, args, folder)
        ranks = [
            context.Process(target=spmd_rank.main, args=(job, _variables(rank, world_size, store.port, cuda), rank))
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            late = _wait(ranks, timeout_s)
            failures = _failures(ranks, late, folder, timeout_s)
        finally:
            for process in ranks:
                if process.pid is not None:
                    process.kill()
                    process.join()
        _show_output(folder, world_size)
        if failures:
            head = f"{len(failures)} of {world_size} ranks failed"
            raise SpmdError("\n\n".join([head, *(f.text for f in failures)]), [f.rank for f in failures])
        return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _job(fn: Callable[..., Any], args: tuple[Any, ...], folder: Path) -> spmd_rank.Job:
    return spmd_rank.Job(
        folder=str(folder),
        cwd=os.getcwd(),
        environment=dict(os.environ),
        module=fn.__module__,
        file=getattr(sys.modules[fn.__module__], "__file__", None),
        call=pickle.dumps((fn, args)),
    )


def _variables(rank: int, world_size: int, port: int, cuda: bool) -> Mapping[str, str]:
    hidden = {} if cuda else {"CUDA_VISIBLE_DEVICES": ""}
    return hidden | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }


def _wait(ranks: list[ForkServerProcess], timeout_s: float) -> set[int]:
    """Waits for all ranks, or for the time-out, or for some seconds after the first failure; returns the ranks that still run."""
    deadline = time.monotonic() + timeout_s
    failed = False
    while alive := {r.sentinel: rank for rank, r in enumerate(ranks) if r.exitcode is None}:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        wait(list(alive), timeout=left)
        if not failed and any(r.exitcode not in (None, 0) for r in ranks):
            failed = True
            deadline = min(deadline, time.monotonic() + GRACE_S)
    return {rank for rank, r in enumerate(ranks) if r.exitcode is None}


def _failures(ranks: list[ForkServerProcess], late: set[int], folder: Path, timeout_s: float) -> list[_Failure]:
    for rank in late:  # each writes its stack to its own file
        pid = ranks[rank].pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
            os.kill(pid, signal.SIGUSR1)
    if late:
        time.sleep(0.5)
    found = []
    timed_out = all(r.exitcode in (None, 0) for r in ranks)
    for rank, process in enumerate(ranks):
        record = folder / f"{rank}.failure"
        if rank in late:
            since = f"after {timeout_s:g} s" if timed_out else f"{GRACE_S:g} s after another rank had failed"
            stack = (folder / f"{rank}.stack").read_text(encoding="utf-8")
            found.append(_Failure(rank, (3, float(rank)), f"rank {rank} was still running {since}, in:\n{stack}"))
        elif record.exists():
            failure: spmd_rank.Failure = pickle.loads(record.read_bytes())
            found.append(_Failure(rank, (2 if failure.of_a_peer else 1, failure.time_s), f"rank {rank} raised:\n{failure.text}"))
        elif process.exitcode != 0 or not (folder / f"{rank}.result").exists():
            found.append(_Failure(rank, (0, float(rank)), f"rank {rank} ended with exit code {process.exitcode} and no traceback"))
    return sorted(found, key=lambda f: f.order)


def _show_output(folder: Path, world_size: int) -> None:
    for rank in range(world_size):
        log = folder / f"{rank}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if text.strip():
            print(f"--- rank {rank} ---\n{text.rstrip()}", flush=True)
