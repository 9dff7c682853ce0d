"""Starts ranks on this machine, and ends all of them. Torchrun's own agent, with one clear report of what failed."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightrft.distributed.failure import FAILURE_DIR, TRACEBACK, Kind, RankFailure, first_cause, read_failures
from lightrft.distributed.stop import ask_to_stop

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

MONITOR_INTERVAL_S = 0.1
STOP_TIMEOUT_S = 10
"""How long ranks may take to end after a signal to the launcher, before they are killed."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
AGENT_KILLS_AFTER_S = 5
"""A SIGKILL that comes this long after the first failure is the agent's (after 30 s), not the cause."""

ENV_STOP_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SHOW_CURSOR = "\x1b[?25h"


@dataclass(frozen=True, kw_only=True)
class LaunchResult:
    """How a launch ended: 0, 2 for a user error in a rank, 128 + signal, or 1. `cause` is the first rank's failure."""

    exit_code: int
    cause: RankFailure | None = None


def under_torchrun() -> bool:
    """Whether this process is a rank that torchrun (or `launch`) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def default_nproc(*, without_cuda: int = 1) -> int:
    """One rank for each GPU, or `without_cuda` where there is none. Imports torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else without_cuda


def launch(command: Sequence[str], *, nproc_per_node: int, grace_s: float = 0.0) -> LaunchResult:
    """Runs `command` on `nproc_per_node` ranks of this machine and returns after all of them have ended.

    When one rank fails, the others are ended and the first cause is printed to stderr. A signal to this process ends all ranks; a first
    SIGTERM, SIGINT or SIGHUP lets ranks that can save do so and end by themselves, within `grace_s` seconds (0: however long it takes).

    Raises:
        ValueError: fewer than one rank.
        UserError: the loopback interface, over which they meet, is down.
    """
    if nproc_per_node < 1:
        raise ValueError(f"nproc_per_node={nproc_per_node}; use at least 1")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from lightrft.distributed.loopback import check_loopback

    check_loopback()
    with _quiet_torchrun(), _signals_restored(), _failure_folder(nproc_per_node) as folder:
        _take_stops(folder, grace_s)
        try:
            elastic_launch(_launch_config(nproc_per_node), command[0])(*command[1:])
            return LaunchResult(exit_code=0)
        except ChildFailedError as error:
            cause = _cause(folder, error.failures)
        except SignalException as error:
            return _stopped(int(error.sigval))
        except KeyboardInterrupt:  # before torchrun's agent has taken over the signals
            return _stopped(signal.SIGINT)
    _show_cursor()
    sys.stdout.flush()
    print(cause.text(with_traceback=os.environ.get(TRACEBACK) == "1"), file=sys.stderr, flush=True)
    return LaunchResult(exit_code=cause.exit_code, cause=cause)


def relaunch_if_needed(nproc_per_node: int | None = None) -> None:
    """For scripts: where this process is no rank yet, starts the same command line on all ranks and exits with their code.

    `nproc_per_node` None means one rank for each GPU, else one. Returns only in a rank.
    """
    if under_torchrun():
        follow_launcher()
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    result = launch(command, nproc_per_node=default_nproc() if nproc_per_node is None else nproc_per_node)
    sys.exit(result.exit_code)


def follow_launcher() -> None:
    """Called in a rank: it ends when its launcher does.

    SIGINT ends it even inside a collective, where Python's own handler would wait for the collective to return. On Linux the kernel
    also ends it when the launcher dies without a word (kill -9).
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def _launch_config(nproc_per_node: int) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    from lightrft.distributed.loopback import register

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc_per_node,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else it leaves a folder for each launch in the temporary directory
        run_id=uuid.uuid4().hex,
        rdzv_backend=register(),
        local_addr="127.0.0.1",  # else it asks the name service for this machine's name, which may be down
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL_S,
        signals_to_handle="SIGQUIT",  # the others: see `_take_stops`
    )


def _rank_defaults(nproc_per_node: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // nproc_per_node)),
        # Threads that spin while they wait make a small step ten times slower on a machine that has other work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",  # else the lines of the ranks come late, and out of order, when stdout is a file
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        ENV_STOP_TIMEOUT: str(STOP_TIMEOUT_S),
        **_over_loopback(),
    }


def _over_loopback() -> dict[str, str]:
    """Ranks of one machine talk over its loopback interface; by themselves gloo and nccl listen where its name leads."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}


def _take_stops(folder: Path, grace_s: float) -> None:
    """Instead of the agent's handlers, which end the ranks at once (and leave these signals to us)."""
    if threading.current_thread() is not threading.main_thread():
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def handle(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if not ask_to_stop(folder, name):
            raise SignalException(f"process {os.getpid()} got signal {number}", sigval=signal.Signals(number))
        within = f", in {grace_s:g} s at the latest" if grace_s else ""
        print(f"{name}: the run is saved and ends at its next step{within}; once more ends it at once", file=sys.stderr, flush=True)
        if grace_s:
            timer = threading.Timer(min(grace_s, threading.TIMEOUT_MAX), os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()

    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, handle)


@contextmanager
def _failure_folder(nproc_per_node: int) -> Iterator[Path]:
    """A temporary folder for the ranks' reports, and the environment of the ranks: the agent hands them ours, there is no other way."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="lightrft-") as folder:
        try:
            os.environ.update({**_rank_defaults(nproc_per_node), **before, FAILURE_DIR: folder})
            yield Path(folder)
        finally:
            os.environ.clear()
            os.environ.update(before)


def _cause(folder: Path, ended: Mapping[int, ProcessFailure]) -> RankFailure:
    reported = {failure.rank: failure for failure in read_failures(folder)}
    first_s = min(failure.timestamp for failure in ended.values())
    gone = {rank for rank, failure in ended.items() if _gone_before(failure, reported.get(rank))}
    silent = [_silent(rank, failure, first_s=first_s) for rank, failure in ended.items() if rank in gone or rank not in reported]
    return first_cause([*(report for rank, report in reported.items() if rank not in gone), *silent])


def _gone_before(failure: ProcessFailure, report: RankFailure | None) -> bool:
    """Whether a rank of which others told that it hangs had been killed before they did."""
    if report is None or report.kind != "hung":
        return False
    return failure.exitcode < 0 and failure.timestamp < report.time_ns // 10**9


def _silent(rank: int, failure: ProcessFailure, *, first_s: int) -> RankFailure:
    """A rank that left no report. The agent ends the other ranks by SIGTERM, and much later by SIGKILL those that ignore it."""
    name, kind, message = failure.signal_name(), "exited", f"exited with code {failure.exitcode} and no report"
    if failure.exitcode < 0:
        message = f"was killed by {name}"
    if name == "SIGTERM" or (name == "SIGKILL" and failure.timestamp - first_s > AGENT_KILLS_AFTER_S):
        kind = "ended"
    elif name == "SIGKILL":
        kind, message = "killed", f"{message} (if out of memory, the kernel's log says so)"
    return RankFailure(rank=rank, time_ns=failure.timestamp * 10**9, kind=cast(Kind, kind), message=message)


def _stopped(number: int) -> LaunchResult:
    _show_cursor()
    print(f"stopped by {signal.Signals(number).name}; all ranks have ended", file=sys.stderr, flush=True)
    return LaunchResult(exit_code=128 + number)


def _show_cursor() -> None:
    """A rank that was ended could not undo what its live table did to the terminal."""
    if sys.stdout.isatty():
        print(SHOW_CURSOR, end="", flush=True)


@contextmanager
def _quiet_torchrun() -> Iterator[None]:
    """The agent's own words about a failure would surround ours: one handler that drops them, and no way up to the root logger."""
    logger = logging.getLogger("torch.distributed.elastic")
    handler, propagate = logging.NullHandler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def _signals_restored() -> Iterator[None]:
    """The agent replaces the handlers of this process and leaves them so."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
