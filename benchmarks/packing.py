"""Packed rows against padded ones: tokens that are computed for nothing, the time of an update, and how even the work of ranks is.

Lengths are log-normal (shown). Both kinds of rows make the same optimizer step of the same model, in turn, in one thread on CPUs; times are
ratios in one run. The ranks' work is that of the plan: what `balance` deals out to 4 ranks, in tokens and their attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightrft.batch.planning import Batching, epochs
from lightrft.batch.stages import Trainable
from lightrft.config.load import make_config
from lightrft.distributed.mesh import Mesh
from lightrft.distributed.world import World
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.batches import batch_of
from lightrft.testing.spmd import run_spmd
from lightrft.trainer.rows import ready_for_rows
from lightrft.trainer.update import PolicyUpdate

MAX_PADDING, MIN_SPEEDUP, MAX_SPREAD = 0.05, 1.5, 0.05
RANKS = 4


def main() -> int:
    """Returns 1 where a bound is missed."""
    args = arguments()
    torch.set_num_threads(1)  # the seconds of a process count the threads that wait for each other, too
    batch = rollout(args.sequences, args, seed=0)
    lengths = sorted(batch.lengths.tolist())
    tenths = [lengths[min(len(lengths) * k // 10, len(lengths) - 1)] for k in range(11)]
    print(f"lengths of {len(lengths)} sequences, tenths: {' '.join(map(str, tenths))}")
    updates = {kind: Measured(batch, args, packed=kind == "packed") for kind in ("padded", "packed")}
    for _ in range(args.rounds + 1):
        for update in updates.values():
            update.step()
    found: dict[str, Any] = {f"{kind}_padding": update.padding for kind, update in updates.items()}
    found |= {f"{kind}_s": update.seconds for kind, update in updates.items()}
    found["speedup"] = found["padded_s"] / found["packed_s"]
    found["spread"] = max(run_spmd(spread_of, RANKS, vars(args), timeout_s=300)[0])
    good = {
        "packed_padding": found["packed_padding"] <= MAX_PADDING,
        "speedup": found["speedup"] >= MIN_SPEEDUP,
        "spread": found["spread"] <= MAX_SPREAD,
    }
    for kind in updates:
        print(f"{kind:8} {found[f'{kind}_padding']:6.1%} of the computed tokens are padding, {found[f'{kind}_s']:.3f} s a step")
    print(f"packed is {found['speedup']:.2f}x as fast; cost over {RANKS} ranks differs by {found['spread']:.1%} at most in a step")
    if args.json:
        print(json.dumps({"benchmark": "packing", "ok": all(good.values()), "settings": vars(args), **found}))
    return 0 if all(good.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--sequences", type=int, default=64, help="of one optimizer step")
    parser.add_argument("--median", type=float, default=240.0 if gpu else 60.0, help="of the lengths, in tokens")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the logarithm of the lengths")
    parser.add_argument("--longest", type=int, default=2048 if gpu else 512)
    parser.add_argument("--budget", type=int, default=8192 if gpu else 1024, help="tokens of a packed row")
    parser.add_argument("--rows", type=int, default=8, help="of a padded micro-batch")
    parser.add_argument("--hidden", type=int, default=1024 if gpu else 128)
    parser.add_argument("--layers", type=int, default=12 if gpu else 3)
    parser.add_argument("--vocabulary", type=int, default=32_000 if gpu else 1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    return parser.parse_args()


def rollout(number: int, args: Any, *, seed: int) -> Trainable:
    """Sequences that begin with a prompt of 8 tokens."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (args.median * torch.exp(args.sigma * torch.randn(number, generator=generator))).long().clamp(10, args.longest)
    ids = [torch.randint(2, args.vocabulary, (n,), generator=generator).tolist() for n in drawn.tolist()]
    advantages = torch.randn(number, generator=generator).tolist()
    return batch_of(Trainable, [(row[:8], row[8:]) for row in ids], advantages=advantages, old_logprobs=[float("nan")] * number)


def now() -> float:
    """Seconds: of the process on CPUs, which other work on the machine does not lengthen; on a GPU, once it has done what it was asked."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Measured:
    """The optimizer steps of one kind of rows, on a model of their own."""

    def __init__(self, batch: Trainable, args: Any, *, packed: bool) -> None:
        config = make_config(
            {
                "strategy": "single", "engine_type": "hf", "train_batch_size": len(batch), "micro_train_batch_size": args.rows,
                "packing_samples": packed, "max_tokens_per_micro_batch": args.budget, "bf16": torch.cuda.is_available(),
            }
        )  # fmt: skip
        self.strategy = get_strategy(config)
        torch.manual_seed(0)
        heads = max(args.hidden // 64, 1)
        shape = {"hidden_size": args.hidden, "intermediate_size": 3 * args.hidden, "num_hidden_layers": args.layers, "head_dim": 64}
        shape |= {"num_attention_heads": heads, "num_key_value_heads": max(heads // 2, 1), "vocab_size": args.vocabulary}
        settings = AdamWSettings(learning_rate=1e-6)
        model, optimizer = self.strategy.prepare_trainable(Qwen3ForCausalLM(Qwen3Config(**shape)), optimizer=settings)
        ready_for_rows(model, config=config, strategy=self.strategy)
        loss = self.strategy.registry.load("policy_loss", "ppo_clip")
        self.update = PolicyUpdate(
            strategy=self.strategy, config=config, actor=model, optimizer=optimizer, scheduler=None, policy_loss=loss
        )
        self.batch = batch
        self._seconds: list[float] = []

    def step(self) -> None:
        """One optimizer step."""
        start = now()
        self.update.run(self.batch, seed=0)
        self._seconds.append(now() - start)

    @property
    def seconds(self) -> float:
        """The median; the first step warms up."""
        return statistics.median(self._seconds[1:])

    @property
    def padding(self) -> float:
        """Of the tokens that the step computes."""
        batching, device = self.update.batching, torch.device("cpu")
        parts = batching.micro_batches(self.batch, torch.arange(len(self.batch)))
        computed = sum(batching.micro(self.batch, part, device=device).num_tokens for part in parts)
        return 1 - int(self.batch.offsets[-1]) / computed


def spread_of(settings: dict[str, Any]) -> list[float]:
    """For each step how far the dearest rank's work is above the cheapest's, as a fraction of the dearest's."""
    args = argparse.Namespace(**settings)
    world = World.join(need_group=True)
    axis = Mesh.of(world).data
    batch = rollout(args.sequences * 4 // RANKS, args, seed=1 + world.rank)
    batching = Batching(
        train_batch_size=args.sequences, micro_batch_size=args.rows, token_budget=args.budget, balance=True,
        attention_length=12.0 * args.hidden,
    )  # fmt: skip
    costs = []
    for step in (plan := epochs(batch, batching, axis=axis, seed=0)[0]).steps:
        costs.append(float(batching.costs(plan.dealing.there(batch).lengths[step.index]).sum()))
    every = torch.zeros(world.world_size, len(costs), dtype=torch.float64)
    every[world.rank] = torch.tensor(costs, dtype=torch.float64)
    torch.distributed.all_reduce(every)
    return ((every.amax(0) - every.amin(0)) / every.amax(0)).tolist()


if __name__ == "__main__":
    raise SystemExit(main())
