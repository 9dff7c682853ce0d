"""The cost of a rollout around the engine: `gather_and_generate` against the bare engine given the same prompts, as ratios.

make rollout ARGS='--engine vllm'    # hf, vllm or sglang, each in its own environment
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.engine.quiet import no_progress_bars
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.median import interval
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import Request, RequestOutput, SamplingParams

LIMIT = 1.01
"""Of the whole call over the time that the slowest engine spends in `generate`."""
VOCABULARY = 64
SHORTEST, LONGEST = 16, 64
TIMEOUT_S = 1200.0
MOST = 6
"""Rounds go on, at most so many times over, until the 95 % interval of the median lies on one side of `LIMIT`."""

WIDTHS = (10, 7, 5, 9, 9, 9, 11, 28, 8, 8)
TITLES = ("engine", "ranks", "tp", "prompts", "bare s", "ours s", "ours/bare", "call/inside", "rounds", "")


@dataclass(frozen=True)
class Round:
    """Seconds of the slowest rank: the whole call, what it spent inside `engine.generate`, and the bare engine beside it."""

    ours_s: float
    inside_s: float
    bare_s: float


class Watched:
    """Stands before `engine.generate`: adds up its time and keeps what it was last asked."""

    def __init__(self, engine: Any) -> None:
        self._generate = engine.generate
        self.seconds = 0.0
        self.asked: tuple[Sequence[Request], SamplingParams] = ([], SamplingParams())
        engine.generate = self.generate

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        self.asked = requests, sampling
        start = time.perf_counter()
        outputs: list[RequestOutput] = self._generate(requests, sampling)
        self.seconds += time.perf_counter() - start
        return outputs


def main() -> int:
    """Returns 1 where a call takes more than `LIMIT` times what the engine takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="hf")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--tp", type=int, nargs="+", default=[1, 2], help="ranks of one engine; those that do not divide the ranks are left out"
    )
    parser.add_argument("--prompts", type=int, default=512, help="over all ranks")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--rounds", type=int, default=5, help="least calls; more, where they do not say which side of the limit it is")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    print_row(*TITLES)
    rows = []
    for ranks in args.ranks:
        for tp in (size for size in args.tp if ranks % size == 0):
            with tempfile.TemporaryDirectory(prefix="lightrft-rollout-") as name, no_progress_bars():
                folder = str(tiny_model_folder(Path(name), vocab_size=VOCABULARY, kv_heads=2))
                asked = (folder, args.engine, tp, args.prompts, args.tokens, args.rounds)
                rounds = run_spmd(measure, ranks, *asked, timeout_s=TIMEOUT_S)[0]
            row = {"engine": args.engine, "ranks": ranks, "tp": tp, "prompts": args.prompts} | summary(rounds)
            rows.append(row)
            numbers = [f"{row[n]:.2f}" for n in ("bare_s", "ours_s")] + [f"{row['ours_to_bare']:.4f}"]
            numbers += [f"{row['call_to_inside']:.4f} ({row['low']:.4f} to {row['high']:.4f})", str(len(rounds))]
            print_row(args.engine, str(ranks), str(tp), str(args.prompts), *numbers, "ok" if row["ok"] else "BEYOND")
    ok = all(row["ok"] for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "rollout", "limit": LIMIT, "ok": ok, "rows": rows}))
    return 0 if ok else 1


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians. The verdict is about `call_to_inside`, both of one call: two calls differ by more than what is looked for."""
    ratios = [r.ours_s / r.inside_s for r in rounds]
    ratio, (low, high) = statistics.median(ratios), interval(ratios)
    return {
        "bare_s": statistics.median(r.bare_s for r in rounds),
        "ours_s": statistics.median(r.ours_s for r in rounds),
        "ours_to_bare": statistics.median(r.ours_s / r.bare_s for r in rounds),
        "call_to_inside": ratio,
        "low": low,
        "high": high,
        "ok": ratio <= LIMIT,
        "rounds": [asdict(r) for r in rounds],
    }


def measure(folder: str, engine: str, tp: int, num_prompts: int, num_tokens: int, rounds: int) -> list[Round]:
    """For each rank of `run_spmd`: alternately through the strategy and bare, after a round that counts for nothing."""
    config = make_config(
        dict(
            strategy="fsdp", engine_type=engine, engine_tp_size=tp, model_name_or_path=folder, prompt_max_len=LONGEST,
            generate_max_len=num_tokens, micro_rollout_batch_size=64,
        )
    )  # fmt: skip
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    watched = Watched(strategy.inference_engine) if strategy.inference_engine is not None else None
    prompts = drawn(num_prompts, strategy)
    sampling = SamplingParams(max_new_tokens=num_tokens, ignore_eos=True)
    found: list[Round] = []
    for _ in range(rounds * MOST + 1):
        if len(found) > rounds and decided(found[1:]):
            break
        if watched is not None:
            watched.seconds = 0.0
        ours = slowest(strategy, lambda: strategy.gather_and_generate(sampling, all_prompt_token_ids=prompts, sleep_engine=False))
        inside = strategy.all_reduce(watched.seconds if watched is not None else 0.0, "max")
        asked = watched.asked if watched is not None else None
        bare = slowest(strategy, lambda asked=asked: strategy.inference_engine.generate(*asked) if asked is not None else None)  # type: ignore[misc]
        found.append(Round(ours, inside, bare))
    strategy.shutdown()
    return found[1:]


def decided(rounds: Sequence[Round]) -> bool:
    """Whether more rounds would not change the verdict. Alike on all ranks, as their times are."""
    low, high = interval([r.ours_s / r.inside_s for r in rounds])
    return high <= LIMIT or low > LIMIT


def drawn(count: int, strategy: StrategyBase) -> list[list[int]]:
    """This rank's slice of random prompts of many lengths, the same ones whatever the number of ranks."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator).tolist()
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return prompts[strategy.world.rank :: strategy.world.world_size]


def slowest(strategy: StrategyBase, work: Any) -> float:
    """Seconds of the slowest rank; all begin together."""
    strategy.all_reduce(0.0)
    start = time.perf_counter()
    work()
    return float(strategy.all_reduce(time.perf_counter() - start, "max"))


def print_row(*cells: str) -> None:
    """Left-aligned."""
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
