"""The inside of one rank of `run_spmd`. Imports little, so that the fork server can load it ahead."""

from __future__ import annotations

import faulthandler
import gc
import importlib.util
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightrft.errors import PeerError


@dataclass(frozen=True)
class Job:
    """One call, as bytes: `module` and `file` say where the function comes from, since a test's module is often not importable by name."""

    folder: str
    cwd: str
    environment: dict[str, str]
    module: str
    file: str | None
    call: bytes


@dataclass(frozen=True)
class Failure:
    """`time_s` is the machine's monotonic clock, so that ranks compare."""

    time_s: float
    of_a_peer: bool
    text: str


def main(job: Job, variables: Mapping[str, str], rank: int) -> None:
    """Runs the call; leaves `RANK.result` or `RANK.failure` in the job's folder."""
    gc.freeze()  # what the fork server imported stays: a collection (DeepSpeed makes many) has not to look at it again
    folder = Path(job.folder)
    os.environ.clear()
    os.environ.update(job.environment | dict(variables))
    os.chdir(job.cwd)
    _redirect(folder / f"{rank}.log")
    stack = (folder / f"{rank}.stack").open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    torch.set_num_threads(1)
    try:
        _import(job)
        fn, args = pickle.loads(job.call)
        result = pickle.dumps(fn(*args))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException as error:  # whatever it is, the parent raises it
        failure = Failure(time.monotonic(), isinstance(error, PeerError), traceback.format_exc())
        _write(folder / f"{rank}.failure", failure)
        sys.stdout.flush()
        os._exit(1)  # an orderly exit could wait for collectives that never end
    (folder / f"{rank}.result").write_bytes(result)


def _write(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value))


def _redirect(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


def _import(job: Job) -> None:
    """Makes the function's module importable under the name that the parent has for it."""
    if job.file is None or job.module in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(job.module)
    except ModuleNotFoundError:
        spec = None
    if spec is not None and spec.origin == job.file:
        return
    spec = importlib.util.spec_from_file_location(job.module, job.file)
    assert spec is not None and spec.loader is not None, job.file
    module = importlib.util.module_from_spec(spec)
    sys.modules[job.module] = module
    spec.loader.exec_module(module)
