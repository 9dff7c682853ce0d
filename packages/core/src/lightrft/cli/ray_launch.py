"""Starts ranks on a Ray cluster. Ray Train places them and starts their process group; each does what torchrun's ranks do."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightrft.cli.restart import keep_going
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.distributed.failure import RankFailure, describe, first_cause
from lightrft.distributed.launch import LaunchResult
from lightrft.errors import ConfigError
from lightrft.trainer.preflight import Mode

FOLDER = "ray"
"""In the run folder: what Ray Train writes about its own run."""


def start_on_ray(config: Config, *, mode: Mode, num_workers: int, max_restarts: int = 0) -> dict[str, Any]:
    """Runs the workers on the cluster of RAY_ADDRESS, or on a Ray of this machine that ends with them; returns the summary. A training
    is started again up to `max_restarts` times, with new workers and a new process group.

    Raises:
        ConfigError: Ray is not installed.
        SystemExit: a rank failed; what failed has been printed.
    """
    if find_spec("ray") is None:
        raise ConfigError(["--launcher ray needs Ray: pip install 'lightrft[ray]'; or leave --launcher out"])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = Path(config.output_dir).resolve() / FOLDER
    summary = folder / "summary.json"

    with _ray(num_workers):
        keep_going(partial(_fit, folder=folder, summary=summary, mode=mode, num_workers=num_workers), config, mode=mode, most=max_restarts)
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return found


@contextmanager
def _ray(num_workers: int) -> Iterator[None]:
    """Connected to the cluster of RAY_ADDRESS, or to a Ray of this machine that ends with the block; a connection that was there stays."""
    import ray

    cluster: Any = ray  # its functions are not annotated
    was_up = cluster.is_initialized()
    if not was_up and os.environ.get("RAY_ADDRESS"):
        cluster.init(logging_level="error")
    elif not was_up:
        cluster.init(logging_level="error", num_cpus=max(num_workers, os.cpu_count() or 1), include_dashboard=False)
    try:
        yield
    finally:
        if not was_up:
            cluster.shutdown()


def _fit(values: dict[str, Any], *, folder: Path, summary: Path, mode: Mode, num_workers: int) -> LaunchResult:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster: Any = ray  # its functions are not annotated
    has_gpus = cluster.cluster_resources().get("GPU", 0) > 0
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"config": values, "mode": mode, "cwd": os.getcwd(), "summary": str(summary)},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=has_gpus),
        # As `World.join` starts it: tensors of both kinds travel.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if has_gpus else "gloo"),
        run_config=RunConfig(name=folder.name, storage_path=str(folder.parent)),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray has several classes for it, in several places over its versions
        failures = _failures(error)
        if not failures:
            raise
        cause = first_cause(failures)
        print(cause.text(), file=sys.stderr, flush=True)
        return LaunchResult(exit_code=cause.exit_code, cause=cause)
    return LaunchResult(exit_code=0)


def _rank(job: dict[str, Any]) -> None:
    """In a worker of Ray's, which has set torchrun's variables and moved to a folder of its own."""
    from lightrft.cli.worker import work

    if Path(job["cwd"]).is_dir():
        os.chdir(job["cwd"])  # relative paths of the settings mean what they meant where the command was typed
    summary = work(make_config(job["config"]), mode=job["mode"])
    if os.environ["RANK"] == "0":  # Ray keeps what workers report only beside a checkpoint of its own
        Path(job["summary"]).write_text(json.dumps(summary), encoding="utf-8")


LOST = ("ActorDiedError", "WorkerHealthCheckFailedError", "ActorUnavailableError", "WorkerCrashedError", "NodeDiedError")
"""Errors of Ray's by which a worker is known to be gone; itself it said nothing."""


def _failures(error: BaseException) -> list[RankFailure]:
    """What each failed worker raised, without what Ray put around it; empty for an error that is none of a worker's."""
    failed: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return [_failure(raised, rank=rank) for rank, raised in failed.items()]


def _failure(raised: BaseException, *, rank: int) -> RankFailure:
    bare = _bare(raised)
    if not {type(raised).__name__, type(bare).__name__} & {*LOST}:
        return describe(bare, rank=rank)
    said = str(bare).strip().splitlines() or [type(bare).__name__]
    return RankFailure(rank=rank, time_ns=time.time_ns(), kind="killed", message=f"was lost: {said[-1]:.300}")


def _bare(raised: BaseException) -> BaseException:
    for name in ("_base_exc", "cause"):
        inner = getattr(raised, name, None)
        if isinstance(inner, BaseException):
            return inner
    return raised
