"""The program of each rank: `python -m lightrft.cli.worker MODE CONFIG.yaml SUMMARY.json`, started by the launcher."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from lightrft.config.load import make_config, read_recipe
from lightrft.config.schema import Config
from lightrft.distributed.failure import reporting_failures
from lightrft.distributed.launch import follow_launcher
from lightrft.distributed.rank_exit import exit_rank


def main() -> NoReturn:
    """One rank, from its command line to its end."""
    follow_launcher()
    if os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one bar is enough, and none in a file
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("train", "eval", "bisect", "invariance"))
    parser.add_argument("config", type=Path)
    parser.add_argument("summary", type=Path)
    given = parser.parse_args()
    with reporting_failures():
        summary = work(make_config(read_recipe(given.config)), mode=given.mode)
        if os.environ.get("RANK", "0") == "0":
            given.summary.write_text(json.dumps(summary), encoding="utf-8")
    exit_rank(0)


def work(config: Config, *, mode: str) -> dict[str, Any]:
    """Trains, evaluates, looks for a mismatch or checks the update in this process, which is one rank."""
    if mode == "bisect":
        from lightrft.trainer.bisect_command import bisect

        return bisect(config)
    if mode == "invariance":
        from lightrft.trainer.invariance_command import check_invariance

        return check_invariance(config)
    from lightrft.trainer.run import evaluate, train  # imports torch: inside, so that a failing import is reported too

    return evaluate(config) if mode == "eval" else train(config)


if __name__ == "__main__":
    main()
