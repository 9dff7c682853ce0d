"""The cost of a step through a strategy, against a loop written by hand over the same backend. Times and memory as ratios."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from lightrft.config.load import make_config
from lightrft.distributed.memory import memory_report
from lightrft.strategy import get_strategy
from lightrft.strategy.sharding import find_blocks
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.median import interval
from lightrft.testing.tiny import tiny_causal_lm

Step = Callable[[], object]
Loss = Callable[[Any, int], torch.Tensor]

SETTINGS = AdamWSettings(learning_rate=1e-4)
MAX_NORM = 1.0
MICRO_BATCHES = 2
ROWS, LENGTH, VOCABULARY = 4, 128, 2048
MODEL = {"vocab_size": VOCABULARY, "layers": 4, "hidden": 256, "heads": 8, "kv_heads": 8}
LIMIT = 1.03
TIMEOUT_S = 1200.0
SURE, MOST = 0.01, 4
"""Rounds go on until the 95 % interval of the median ratio is that narrow to either side, at most so many times over."""

BACKENDS: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "fsdp": {"fsdp": True},
    **{f"zero {stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in range(4)},
}
WIDTHS = (10, 7, 12, 26, 14, 14)


def main() -> int:
    """Returns 1 if a median step takes more than 3 % longer than that of the loop by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=30, help="least pairs of steps, one through the strategy and one by hand")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    _print_row("backend", "ranks", "by hand ms", "ours / hand", "peak / hand", "step / first")
    rows: list[dict[str, Any]] = []
    for ranks in args.ranks:
        for name in args.backends:
            if name == "single" and ranks > 1:
                continue
            row = {"backend": name, "ranks": ranks, **_compare(BACKENDS[name], ranks, args.rounds)}
            row["to_first"] = row["ours_ms"] / rows[0]["ours_ms"] if rows else 1.0
            rows.append(row)
            ratio = f"{row['time']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            _print_row(name, str(ranks), f"{row['hand_ms']:.1f}", ratio, f"{row['memory']:.3f}", f"{row['to_first']:.2f}")
    ok = all(row["time"] <= LIMIT for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "strategies", "limit": LIMIT, "ok": ok, "rows": rows}))
    return 0 if ok else 1


def _compare(settings: dict[str, Any], ranks: int, rounds: int) -> dict[str, float]:
    """Times from the same processes, in pairs; memory from processes of their own."""
    pairs = run_spmd(timed, ranks, settings, rounds, timeout_s=TIMEOUT_S)[0]
    ours, hand = (max(run_spmd(peak_gib, ranks, settings, by_hand, timeout_s=TIMEOUT_S)) for by_hand in (False, True))
    low, high = interval([mine / other for mine, other in pairs])
    return {
        "time": statistics.median(mine / other for mine, other in pairs),
        "low": low,
        "high": high,
        "rounds": len(pairs),
        "ours_ms": statistics.median(mine for mine, _ in pairs) * 1e3,
        "hand_ms": statistics.median(other for _, other in pairs) * 1e3,
        "memory": ours / hand,
        "ours_gib": ours,
        "hand_gib": hand,
    }


def timed(settings: dict[str, Any], rounds: int) -> list[tuple[float, float]]:
    """(through the strategy, by hand) in seconds for each round. For each rank of `run_spmd`."""
    strategy = get_strategy(make_config(settings))
    ours, hand = _ours(strategy), _by_hand(strategy)
    for step in (ours, hand, ours, hand):
        step()
    pairs: list[tuple[float, float]] = []
    for index in range(rounds * MOST):
        if index % rounds == 0 and index and strategy.all_reduce(_is_sure(pairs), "max"):
            break
        seconds = {}
        for step in (ours, hand) if index % 2 else (hand, ours):
            strategy.all_reduce(0.0)  # ranks begin together
            start = time.perf_counter()
            step()
            seconds[step] = time.perf_counter() - start
        pairs.append((seconds[ours], seconds[hand]))
    return pairs


def _is_sure(pairs: Sequence[tuple[float, float]]) -> float:
    low, high = interval([mine / other for mine, other in pairs])
    return float(high - low <= 2 * SURE)


def peak_gib(settings: dict[str, Any], by_hand: bool) -> float:
    """The most host memory of this rank over three steps. For each rank of `run_spmd`."""
    strategy = get_strategy(make_config(settings))
    step = _by_hand(strategy) if by_hand else _ours(strategy)
    for _ in range(3):
        step()
    return max(memory_report(strategy.world.device).values())


def _ours(strategy: StrategyBase) -> Step:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(**MODEL), optimizer=SETTINGS)
    batches, loss = _work(strategy)

    def step() -> None:
        strategy.accumulate(batches, lambda ids: loss(model, ids), model, optimizer)
        strategy.optimizer_step(optimizer, model, None, max_norm=MAX_NORM)

    return step


def _by_hand(strategy: StrategyBase) -> Step:
    model = tiny_causal_lm(**MODEL).eval()
    batches, loss = _work(strategy)
    if strategy.spec.name == "deepspeed":
        return _deepspeed_by_hand(model, batches, loss, strategy.config.zero_stage)
    return _torch_by_hand(model, batches, loss, shards=strategy.spec.name == "fsdp")


def _torch_by_hand(model: torch.nn.Module, batches: list[Any], loss: Loss, *, shards: bool) -> Step:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if shards:
        for module in [*find_blocks(model), model]:
            fully_shard(module)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, foreach=shards or None)

    def step() -> None:
        for index, ids in enumerate(batches):
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(index == len(batches) - 1)
            loss(model, ids).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        if torch.isfinite(norm.full_tensor() if shards else norm):
            optimizer.step()
        optimizer.zero_grad()

    return step


def _deepspeed_by_hand(model: torch.nn.Module, batches: list[Any], loss: Loss, stage: int) -> Step:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on the CPU it would be compiled, for minutes
    warnings.filterwarnings("ignore", category=FutureWarning)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": MAX_NORM,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    engine.eval()

    def step() -> None:
        for index, ids in enumerate(batches):
            engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            engine.backward(loss(engine, ids) * dist.get_world_size(), scale_wrt_gas=False)
        engine.step()

    return step


def _work(strategy: StrategyBase) -> tuple[list[Any], Loss]:
    """This rank's micro-batches, of one size everywhere, and the loss share of one."""
    generator = torch.Generator().manual_seed(strategy.world.rank)
    batches = [torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator) for _ in range(MICRO_BATCHES)]
    tokens = ROWS * (LENGTH - 1) * MICRO_BATCHES * strategy.world.world_size

    def loss(model: Any, ids: Any) -> torch.Tensor:
        ids = ids.to(strategy.world.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / tokens

    return batches, loss


def _print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
