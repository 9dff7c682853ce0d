"""Faults of a strategy that only several ranks show. One for each class here, on the sharded strategy, on two."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kit_mutants.mutant import mutant
from lightrft.plugins.specs import Capability
from lightrft.strategy.strategy_base import Optimizer, StepResult
from lightrft.testing.sharded_strategy import ShardedStrategy
from lightrft.types import RequestOutput
from lightrft.weights.safetensors_reader import WeightFiles

T = TypeVar("T")
Module = torch.nn.Module

OVER_RANKS = "loss_shares_are_summed_over_ranks"
PROMPTS = "ranks_bring_different_numbers_of_prompts"
GATHER = "all_gather_is_in_rank_order_and_takes_ragged_rows"
RESHARDED = "a_run_is_resumed_on_another_number_of_ranks"


@mutant("sharded", "the mean of the ranks' gradients", test=OVER_RANKS, words="would be a mean over 2 ranks")
class MeanOfMeans(ShardedStrategy):
    def _reduced(self, gradient: torch.Tensor) -> torch.Tensor:
        return super()._reduced(gradient) / self.world.world_size


@mutant("sharded", "gradients are not reduced", test=OVER_RANKS, words="and two on the last is 0.3333")
class NotReduced(ShardedStrategy):
    def _reduced(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


@mutant("sharded", "the norm of the local shard only", test="max_norm_clips_0_is_off_and_none_is_the_configurations", words="reported norm")
class NormOfTheShard(ShardedStrategy):
    def _norm(self, parts: list[torch.Tensor]) -> float:
        return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


@mutant(
    "sharded", "with NaN one rank says that it stepped", test="a_norm_that_is_not_finite_skips_the_step_on_all_ranks",
    words="was not skipped here (rank 0)",
)  # fmt: skip
class SkipsOnOneRank(ShardedStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        result = super()._step(optimizer, model, max_norm)
        return result if self.world.rank else replace(result, skipped=False)


@mutant(
    "sharded", "one rank keeps its old parameters", test="trained_weights_leave_after_a_step", words="of 2: a step did not reach the export"
)
class OneRankKeepsItsWeights(ShardedStrategy):
    def _refill(self, model: Module) -> None:
        kept = [p.detach().clone() for p in model.parameters()]
        super()._refill(model)
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.data.copy_(value if self.world.rank else parameter.data)


@mutant("sharded", "all_reduce in place", test="all_reduce_writes_nothing_into_its_input", words="wrote into the tensors")
class ReducesInPlaceOnRanks(ShardedStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        found = super().all_reduce(data, op)
        if isinstance(data, dict) and op == "sum" and isinstance(data.get("a"), torch.Tensor):
            data["a"].copy_(found["a"])
        return found


@mutant("sharded", "a mean is a sum", test="all_reduce_gives_mean_sum_max_and_min", words="all_reduce mean of rank + 1 over 2 ranks")
class MeanIsASum(ShardedStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        return super().all_reduce(data, "sum" if op == "mean" else op)


@mutant("sharded", "a gather in the wrong order", test=GATHER, words="in another order than the ranks'")
class GathersInReverse(ShardedStrategy):
    def all_gather(self, data: Any) -> Any:
        found = super().all_gather(data)
        return {**found, "number": found["number"][::-1]} if isinstance(found, dict) and "number" in found else found


@mutant("sharded", "ragged rows are truncated to the shortest", test=GATHER, words="gathered rows are")
class RaggedRowsAreCut(ShardedStrategy):
    def all_gather(self, data: Any) -> Any:
        if isinstance(data, dict) and "rows" in data:
            data = data | {"rows": data["rows"][:0]}
        return super().all_gather(data)


@mutant("sharded", "every rank prints", test="rank_0_prints_alone", words="rank 1 printed")
class EveryRankPrints(ShardedStrategy):
    def print(self, *values: object) -> None:
        print(*values)


@mutant("sharded", "a rank without prompts is skipped", test=PROMPTS, words="hangs: it did not come back")
class EmptyRankSkipped(ShardedStrategy):
    def gather_and_generate(self, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        return super().gather_and_generate(*args, **kwargs) if kwargs["all_prompt_token_ids"] else []


@mutant("sharded", "outputs reach the wrong rank", test=PROMPTS, words="and got outputs for")
class OutputsReachTheWrongRank(ShardedStrategy):
    def gather_and_generate(self, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        outputs = super().gather_and_generate(*args, **kwargs)
        everyone: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(everyone, outputs)
        found: list[RequestOutput] = everyone[self.world.rank - 1]
        return found


@mutant(
    "sharded",
    "a rank without micro-batches is skipped",
    test="a_rank_without_micro_batches_takes_part",
    words="a_rank_without_micro_batches_takes_part",
)
class EmptyStepSkipped(ShardedStrategy):
    def accumulate(self, micro_batches: Sequence[T], loss_share: Callable[[T], torch.Tensor], model: Module, optimizer: Optimizer) -> None:
        for index, batch in enumerate(micro_batches):
            self.backward(loss_share(batch), model, optimizer, final=index == len(micro_batches) - 1)


@mutant("sharded", "resharded state is dealt in the wrong order", test=RESHARDED, words="loaded parameters differ")
class ReshardedInReverse(ShardedStrategy):
    def _dealt(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return super()._dealt(parts if len(parts) == self.world.world_size else parts[::-1])


@mutant("sharded", "resharded moments are lost", test=RESHARDED, words="the optimizer's state was not dealt out again")
class ReshardedMomentsLost(ShardedStrategy):
    def _dealt(self, parts: list[torch.Tensor]) -> torch.Tensor:
        dealt, smallest = super()._dealt(parts), float(torch.cat(parts).min()) if parts[0].dim() else 1.0
        moments = len(parts) != self.world.world_size and smallest >= 0 and float(dealt.max()) < 0.5 if dealt.numel() else False
        return dealt.zero_() if moments and dealt.dim() else dealt


@mutant("sharded", "shard_size is ignored", test="neighbouring_ranks_share_one_copy", words="shard_size=1 is not honoured")
class ShardSizeIgnored(ShardedStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        return super()._prepare_frozen(model, None, weights)


@mutant(
    "sharded", "shard_size is not declared and silently accepted", test="neighbouring_ranks_share_one_copy",
    words="silently accepted by a strategy that does not declare 'sharded_frozen'", hides=[Capability.SHARDED_FROZEN],
)  # fmt: skip
class ShardSizeAccepted(ShardedStrategy):
    def _require(self, capability: Capability, asked: str) -> None:
        """Nothing."""


@mutant(
    "sharded", "one rank hangs", test="memory_is_reported_in_gib", words="rank 1 of 2 hangs: it did not come back from memory_is_reported"
)
class OneRankHangs(ShardedStrategy):
    def report_memory(self, prefix: str = "") -> dict[str, float]:
        time.sleep(1e6 if self.world.rank == 1 else 0)
        return super().report_memory(prefix)


@mutant("sharded", "one rank dies without a word", test="memory_is_reported_in_gib", words="rank 1 of 2 died in memory_is_reported")
class OneRankDies(ShardedStrategy):
    def report_memory(self, prefix: str = "") -> dict[str, float]:
        if self.world.rank == 1:
            os._exit(3)
        return super().report_memory(prefix)


@mutant(
    "sharded",
    "a full disk on one rank stays its secret",
    test="a_save_that_fails_leaves_the_old_one_whole",
    words="a full disk on the last rank",
)
class FullDiskIsSecret(ShardedStrategy):
    def save_ckpt(self, folder: Any, **what: Any) -> Any:
        try:
            return super().save_ckpt(folder, **what)
        except Exception:
            if self.world.rank:
                raise
            return folder


@mutant("sharded", "the process group outlives the strategy", test="it_ends_twice_over", words="the process group is still there")
class LeavesTheGroup(ShardedStrategy):
    def _leave_world(self) -> None:
        """Nothing."""


@mutant(
    "sharded", "a rank that brings all prompts gets other draws", test="outputs_do_not_depend_on_who_brings_the_prompts",
    words="completions depend on which rank brings a prompt",
)  # fmt: skip
class DrawsDependOnTheRank(ShardedStrategy):
    def gather_and_generate(self, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        outputs = super().gather_and_generate(*args, **kwargs)
        numbers: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(numbers, len(outputs))
        alone = sum(number > 0 for number in numbers) == 1 and self.world.world_size > 1 and sum(numbers) > 1
        return [replace(o, completions=o.completions[::-1]) for o in outputs] if alone else outputs


@mutant("sharded", "ranks that share a row count it twice", test="shared_rows_give_the_same_update", words="sp 2: the update is not")
class SharedRowsCountTwice(ShardedStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        super()._backward(loss * self.config.sp_size, model, optimizer, final)
