"""`lightrft prove-resume RUN`: a part of a run again, from a checkpoint of it, and compared. The command, and the program of its ranks."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightrft.config.load import make_config, read_recipe
from lightrft.distributed.failure import reporting_failures
from lightrft.distributed.launch import follow_launcher, launch

SHOWN = 12
"""Differences that are printed; --json has all."""


def run_prove(words: Sequence[str], *, description: str) -> tuple[dict[str, Any], bool]:
    """The report, and whether it is wanted as JSON.

    Raises:
        RunFolderError, CheckpointError: no run, or nothing in it that could be run again and compared.
        SystemExit: a rank failed; what failed has been printed.
    """
    parser = argparse.ArgumentParser(prog="lightrft prove-resume", description=description)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder (output_dir)")
    parser.add_argument("--from", dest="begin", type=int, metavar="STEP", help="the checkpoint (default: the last that another follows)")
    parser.add_argument("--to", dest="until", type=int, metavar="STEP", help="the last rollout (default: that of the next checkpoint)")
    within = "how far metrics may differ, relatively; 0, the default, asks for the same bits of metrics, weights and state"
    parser.add_argument("--within", type=_fraction, default=0.0, metavar="X", help=within)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args(words)
    from lightrft.trainer.prove import compare, config_of, plan_replay  # imports torch

    run = given.run.expanduser()
    replay = plan_replay(run, begin=given.begin, until=given.until)
    print(f"from {replay.begin.folder} again to rollout {replay.until}, on {replay.world_size} ranks", flush=True)
    with tempfile.TemporaryDirectory(prefix=f".{run.resolve().name}-again-", dir=run.resolve().parent) as place:
        folder, recipe = Path(place) / "run", Path(place) / "config.yaml"
        recipe.write_text(yaml.safe_dump(config_of(replay, folder).model_dump(), allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "lightrft.cli.prove", str(recipe), str(replay.until)]
        result = launch(command, nproc_per_node=replay.world_size)
        if result.exit_code:
            raise SystemExit(result.exit_code)
        return compare(replay, folder, within=given.within), given.json


def print_report(report: Mapping[str, Any]) -> None:
    """For a person: what was compared, the differences, the verdict."""
    for line in report["differences"][:SHOWN]:
        print(line)
    if len(report["differences"]) > SHOWN:
        print(f"... and {len(report['differences']) - SHOWN} more")
    what = f"rollouts {report['from'] + 1} to {report['to']}: {report['metrics']} metrics"
    what += f" and {report['files']} files of weights and optimizer, with all other state," if report["files"] else ""
    if report["within"]:
        far = f"within {report['within']:g}" if report["same"] else f"NOT within {report['within']:g}"
        print(f"{what} compared; the metrics of the resumed run are {far} of the run's; {len(report['state'])} parts of the state differ")
    else:
        print(f"{what} compared; the resumed run is {'bitwise the run' if report['same'] else 'NOT the run'}", flush=True)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("give a number of at least 0 and below 1")
    return value


def main() -> None:
    """One rank."""
    follow_launcher()
    with reporting_failures():
        from lightrft.trainer.prove import run_again

        summary = run_again(make_config(read_recipe(Path(sys.argv[1]))), until=int(sys.argv[2]))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({"rollouts": summary["steps"]}), flush=True)


if __name__ == "__main__":
    main()
