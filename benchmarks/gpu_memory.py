"""A real shape on one card, and what is mapped in each phase. Random weights of 1.5 B by default; `make gpu-memory`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from arms import PHASES, run_ours, table
from random_models import SHAPES, enders, workload

SETTINGS: dict[str, Any] = {
    "fsdp": True, "bf16": True, "engine_type": "vllm", "rollout_batch_size": 32, "n_samples_per_prompt": 8, "train_batch_size": 256,
    "micro_train_batch_size": 4, "micro_rollout_batch_size": 8, "learning_rate": 1e-6, "num_episodes": 100, "seed": 0, "save_samples": 0,
    "plot_every": 0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="1.5b", choices=SHAPES)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2], help="engine_sleep_level of each arm")
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument(
        "--cut", type=float, default=1.0, help="fraction of completions that reach --new-tokens; the lengths of the others are geometric"
    )
    parser.add_argument("--mem-util", type=float, default=0.5)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE", help="variables of the runs")
    parser.add_argument("--limit", type=float, default=500.0, help="seconds of one arm at most")
    parser.add_argument("--tag", default="")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further settings; null leaves one out")
    given = parser.parse_args()
    own = workload(given.model, given.work.absolute(), prompt_len=given.prompt_len, new_tokens=given.new_tokens)
    own["stop_token_ids"] = enders(given.model, cut=given.cut, new_tokens=given.new_tokens)
    further = {name: json.loads(value) for name, _, value in (word.partition("=") for word in given.set)}
    env = dict(word.split("=", 1) for word in given.env)
    found = []
    for level in given.levels:
        settings = {
            **SETTINGS, **own, "engine_sleep_level": level, "engine_mem_util": given.mem_util, "max_steps": given.steps, **further
        }  # fmt: skip
        settings = {key: value for key, value in settings.items() if value is not None}
        name = f"{given.model} sleep {level}{given.tag}"
        found.append(run_ours(name, settings, work=given.work.absolute(), nproc=given.nproc, env=env, limit_s=given.limit))
        print(json.dumps(found[-1]), flush=True)
    print(table(found, PHASES))


if __name__ == "__main__":
    main()
