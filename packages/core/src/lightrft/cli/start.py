"""From a checked configuration to running ranks and a summary."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from lightrft.cli.flags import Flags
from lightrft.cli.ray_launch import start_on_ray
from lightrft.cli.restart import going_on, keep_going, started_again
from lightrft.cli.settings import checked, merge, typed_alone
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.distributed.failure import reporting_failures
from lightrft.distributed.launch import LaunchResult, default_nproc, launch, under_torchrun
from lightrft.errors import PluginError
from lightrft.plugins import Capability, Registry
from lightrft.trainer.preflight import Mode


def run_command(flags: Flags, *, mode: Mode) -> dict[str, Any]:
    """`lightrft train` and `lightrft eval`: from the flags to the summary. Under torchrun this process is one rank, else it starts them.

    Raises:
        ConfigError: all problems of the recipe, the flags and the data.
        SystemExit: a rank failed; what failed has been printed.
    """
    if under_torchrun():
        return _as_rank(flags, mode=mode)
    if flags.launcher == "ray":
        num_workers = flags.num_workers or 1
        config = _checked(flags, mode=mode, world_size=num_workers)
        return start_on_ray(config, mode=mode, num_workers=num_workers, max_restarts=flags.max_restarts)
    nproc = flags.nproc or ranks_for(merge(flags, mode=mode).get("strategy"), otherwise=default_nproc())
    config = _checked(flags, mode=mode, world_size=nproc)
    return start_ranks(config, mode=mode, nproc_per_node=nproc, max_restarts=flags.max_restarts)


def ranks_for(strategy: Any, *, otherwise: int) -> int:
    """How many ranks to start where nobody said it: `otherwise`, but one under a strategy that does not declare several."""
    try:
        spec = Registry.discover().spec("strategy", str(strategy)) if strategy else None
    except PluginError:  # the checks of the settings tell it
        spec = None
    if spec is None or otherwise <= 1 or Capability.MULTI_RANK in spec.capabilities:
        return otherwise
    print(f"strategy {strategy!r} runs in one process, so one rank is started, not {otherwise}", flush=True)
    return 1


def _checked(flags: Flags, *, mode: Mode, world_size: int) -> Config:
    return checked(_merged(flags, mode=mode), problems=flags.problems, mode=mode, world_size=world_size, typed=typed_alone(flags))


def _merged(flags: Flags, *, mode: Mode) -> dict[str, Any]:
    """Where torchrun or Slurm has started the job again, a training goes on in its folder."""
    values = merge(flags, mode=mode)
    if mode != "train" or not started_again():
        return values
    return going_on(values, run=Path(values.get("output_dir") or Config().output_dir).expanduser())


def start_ranks(config: Config, *, mode: Mode, nproc_per_node: int, max_restarts: int = 0) -> dict[str, Any]:
    """Runs the workers on this machine and returns rank 0's summary; a training is started again up to `max_restarts` times.

    Raises:
        SystemExit: a rank failed; what failed has been printed.
    """
    with tempfile.TemporaryDirectory(prefix="lightrft-") as folder:
        config_path, summary_path = Path(folder) / "config.yaml", Path(folder) / "summary.json"
        command = [sys.executable, "-m", "lightrft.cli.worker", mode, str(config_path), str(summary_path)]

        def start(values: dict[str, Any]) -> LaunchResult:
            config_path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
            return launch(command, nproc_per_node=nproc_per_node, grace_s=config.stop_grace_s)

        keep_going(start, config, mode=mode, most=max_restarts)
        return _summary(summary_path)


def _summary(path: Path) -> dict[str, Any]:
    """Rank 0's; raises SystemExit where it ended without one."""
    if not path.exists():
        print("rank 0 ended with code 0 before the job was over: something that it ran has ended its process (os._exit)", file=sys.stderr)
        raise SystemExit(1)
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def _as_rank(flags: Flags, *, mode: Mode) -> dict[str, Any]:
    """Only rank 0 looks at the files: it may have made the run folder before another rank looks."""
    from lightrft.cli.worker import work

    problems = list(flags.problems)
    if flags.max_restarts:
        problems.append("--max-restarts has no effect under torchrun, which has one of its own (before the script's name)")
    if flags.launcher != "torchrun":
        problems.append(f"--launcher {flags.launcher} has no effect under torchrun, which has started the ranks; leave it out")
    if flags.nproc is not None:
        problems.append("--nproc-per-node has no effect under torchrun, which has started the ranks; leave it out")
    values = _merged(flags, mode=mode)
    if os.environ["RANK"] == "0":
        world_size = int(os.environ["WORLD_SIZE"])
        config = checked(values, problems=problems, mode=mode, world_size=world_size, typed=typed_alone(flags))
    else:
        config = make_config(values)
    with reporting_failures():
        return work(config, mode=mode)
    raise AssertionError("reporting_failures ends the process after an error")
