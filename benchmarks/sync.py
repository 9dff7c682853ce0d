"""The cost of a weight sync: bytes a second against a plain copy of the same bytes, and its and its checks' fraction of a step."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.diagnostics.sync_probe import SyncProbe
from lightrft.engine.quiet import no_progress_bars
from lightrft.models.load import load_causal_lm, load_tokenizer
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import SamplingParams

LIMIT = 0.01
"""Of a step: what verifying a sync costs, the checksums at every sync and the fixed prompts every `verify_sync_every` steps."""
MODEL: dict[str, Any] = dict(vocab_size=4096, layers=4, hidden=256, heads=8, kv_heads=4)
PROMPTS, SAMPLES, PROMPT_LEN, NEW_TOKENS = 32, 8, 64, 64
"""Of one step, over all ranks: a small one, of 33,000 tokens."""
STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "fsdp": {"strategy": "fsdp"},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}
TIMEOUT_S = 1200.0
WIDTHS = (10, 10, 7, 7, 11, 11, 11, 9, 9, 9, 9, 9, 8)
TITLES = (
    "engine", "strategy", "ranks", "MB", "copy GB/s", "sync GB/s", "copy/sync", "step s", "sync s", "checksums s", "probe s", "verify", "",
)  # fmt: skip


def main() -> int:
    """Returns 1 where verifying costs more than `LIMIT` of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="hf")
    parser.add_argument("--strategies", nargs="+", default=["single", "fsdp", "zero 3"], choices=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="beside `single`, which has one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    print_row(*TITLES)
    rows = []
    for name in args.strategies:
        for ranks in [1] if name == "single" else args.ranks:
            with tempfile.TemporaryDirectory(prefix="lightrft-sync-") as folder, no_progress_bars():
                path = str(tiny_model_folder(Path(folder), **MODEL))
                found = run_spmd(measure, ranks, path, STRATEGIES[name], args.engine, args.rounds, timeout_s=TIMEOUT_S)[0]
            row = {"engine": args.engine, "strategy": name, "ranks": ranks} | found | {"ok": found["verify_fraction"] <= LIMIT}
            rows.append(row)
            print_row(args.engine, name, str(ranks), *numbers(row), "ok" if row["ok"] else "BEYOND")
    ok = all(row["ok"] for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "sync", "limit": LIMIT, "ok": ok, "rows": rows}))
    return 0 if ok else 1


def measure(folder: str, settings: dict[str, Any], engine: str, rounds: int) -> dict[str, float]:
    """For each rank of `run_spmd`: medians of the slowest rank, after a round that counts for nothing.

    `checksums_s` is how much longer a sync with checksums takes, `probe_s` asking and scoring the fixed prompts before and after one.
    """
    config = make_config(
        dict(model_name_or_path=folder, engine_type=engine, prompt_max_len=256, generate_max_len=NEW_TOKENS, micro_rollout_batch_size=16)
        | settings
    )
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    actor, optimizer = strategy.prepare_trainable(load_causal_lm(folder, dtype=torch.float32), optimizer=AdamWSettings(learning_rate=1e-4))
    mine = drawn(PROMPTS, strategy)
    probe = SyncProbe(strategy=strategy, actor=actor, config=config, prompts=mine or drawn(1, None), tokenizer=load_tokenizer(folder))
    controller: Any = strategy._controller  # the checksums are switched here alone
    kept = controller._verify_checksums
    seconds: dict[str, list[float]] = {name: [] for name in ("rollout", "update", "plain", "verified", "probe", "copy")}
    for _ in range(rounds + 1):
        seconds["rollout"].append(slowest(strategy, lambda: rollout(strategy, mine)))
        seconds["update"].append(slowest(strategy, lambda: update(strategy, actor, optimizer, mine)))
        seconds["copy"].append(slowest(strategy, copier(folder)))
        for name, verify in (("plain", False), ("verified", kept)):
            controller._verify_checksums = verify
            seconds[name].append(slowest(strategy, lambda: strategy.update_engine_weights(actor)))
        seconds["probe"].append(slowest(strategy, probe.before_sync) + slowest(strategy, probe.after_sync))
    strategy.shutdown()
    return summary(
        {name: statistics.median(found[1:]) for name, found in seconds.items()}, folder, every=config.verify_sync_every, checksums=kept
    )


def summary(median: dict[str, float], folder: str, *, every: int, checksums: bool) -> dict[str, float]:
    """What is printed. A step is a rollout, an update and a verified sync."""
    checksums_s = max(median["verified"] - median["plain"], 0.0) if checksums else 0.0
    step = median["rollout"] + median["update"] + median["verified"]
    size = float(sum(p.numel() * 4 for p in load_causal_lm(folder, dtype=torch.float32).parameters()))
    return {
        "bytes": size,
        "copy_bytes_per_s": size / median["copy"],
        "sync_bytes_per_s": size / median["plain"],
        "copy_to_sync": median["plain"] / median["copy"],
        "step_s": step,
        "sync_s": median["plain"],
        "checksums_s": checksums_s,
        "probe_s": median["probe"],
        "sync_fraction": median["plain"] / step,
        "verify_fraction": (checksums_s + median["probe"] / every) / step,
    }


def copier(folder: str) -> Callable[[], None]:
    """Copies tensors of the model's sizes into others that are there."""
    source = [p.detach().clone() for p in load_causal_lm(folder, dtype=torch.float32).parameters()]
    target = [torch.zeros_like(p) for p in source]

    def copy() -> None:
        for mine, other in zip(target, source, strict=True):
            mine.copy_(other)

    copy()
    return copy


def rollout(strategy: StrategyBase, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(n=SAMPLES, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    strategy.gather_and_generate(sampling, all_prompt_token_ids=prompts, sleep_engine=False)


def update(strategy: StrategyBase, actor: Any, optimizer: Any, prompts: list[list[int]]) -> None:
    """As many forward and backward passes as the rollout has completions, in micro-batches of the samples of one prompt."""
    rows = [torch.tensor([(prompt + prompt)[: PROMPT_LEN + NEW_TOKENS]] * SAMPLES, device=strategy.world.device) for prompt in prompts]
    strategy.accumulate(rows, lambda ids: actor(input_ids=ids).logits.float().logsumexp(-1).mean() / PROMPTS, actor, optimizer)
    strategy.optimizer_step(optimizer, actor, None, name="actor")


def drawn(count: int, strategy: StrategyBase | None) -> list[list[int]]:
    """This rank's slice of random prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts: list[list[int]] = torch.randint(3, MODEL["vocab_size"], (count, PROMPT_LEN), generator=generator).tolist()
    return prompts if strategy is None else prompts[strategy.world.rank :: strategy.world.world_size]


def slowest(strategy: StrategyBase, work: Callable[[], Any]) -> float:
    """Seconds of the slowest rank; all begin together."""
    strategy.all_reduce(0.0)
    start = time.perf_counter()
    work()
    return float(strategy.all_reduce(time.perf_counter() - start, "max"))


def numbers(row: dict[str, Any]) -> Sequence[str]:
    """The columns of a row, from the megabytes on."""
    speeds = [f"{row[name] / 1e9:.2f}" for name in ("copy_bytes_per_s", "sync_bytes_per_s")]
    seconds = [f"{row[name]:.3f}" for name in ("step_s", "sync_s", "checksums_s", "probe_s")]
    return [f"{row['bytes'] / 1e6:.0f}", *speeds, f"{row['copy_to_sync']:.1f}", *seconds, f"{row['verify_fraction']:.2%}"]


def print_row(*cells: str) -> None:
    """Left-aligned."""
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
