"""Faults so plain that everything else fails of them. One for each class here; the kit has to say them first, and once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from kit_mutants.mutant import mutant
from lightrft.engine.base import EngineSetup
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult
from lightrft.testing.fake_engine import FakeEngine
from lightrft.testing.sharded_strategy import ShardedStrategy
from lightrft.types import Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.safetensors_reader import WeightFiles

Module = torch.nn.Module

STEPS = "a_model_is_prepared_steps_and_is_exported"
NAMES = "parameters_leave_under_the_names_of_the_model"
STARTS = "it_starts_awake_and_answers"


@mutant(
    "single",
    "_prepare_trainable raises",
    test=STEPS,
    words="_prepare_trainable raised TypeError: unexpected keyword 'fused_step' (plain.py:",
)
class PrepareRaises(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        raise TypeError("unexpected keyword 'fused_step'")


@mutant("single", "_step returns nothing", test=STEPS, words="_step")
class StepReturnsNothing(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        super()._step(optimizer, model, max_norm)
        nothing: Any = None
        return nothing  # type: ignore[no-any-return]


@mutant("single", "nothing is exported", test=STEPS, words="_export_weights yielded nothing")
class ExportsNothing(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        yield from ()


@mutant("single", "a frozen model has no head", test="a_frozen_model_goes_forward", words="_prepare_frozen raised ValueError")
class FrozenRaises(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        raise ValueError("a model without an optimizer")


@mutant("single", "names leave with the wrapper's `module.`", test=NAMES, words="leave with 'module.' before their names")
class NamesOfTheWrapper(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(weight, names=tuple(f"module.{name}" for name in weight.names)) for weight in bucket]


@mutant("single", "a name is misspelt", test=NAMES, words="parameters do not leave: model.norm.weight")
class NameMisspelt(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(weight, names=tuple(name.replace("model.norm.", "model.n0rm.") for name in weight.names)) for weight in bucket]


@mutant(
    "sharded", "gradients of the last micro-batch are not summed over ranks", test="loss_shares_are_summed_over_micro_batches",
    words="one token in the first micro-batch",
)  # fmt: skip
class LastSyncForgotten(ShardedStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        super()._backward(loss, model, optimizer, final and model not in self._unfinished)


@mutant(
    "sharded",
    "clips each rank's gradient before they are summed",
    test="max_norm_clips_0_is_off_and_none_is_the_configurations",
    words="max_norm=1.75",
)
class ClipsBeforeTheSum(ShardedStrategy):
    max_norm = 0.0

    def _reduced(self, gradient: torch.Tensor) -> torch.Tensor:
        self.local = gradient.clone()
        return super()._reduced(gradient)

    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        if max_norm > 0:
            for parameter in model.parameters():
                if parameter.grad is not None and parameter.grad.shape == self.local.shape:
                    kept = self.local * min(1.0, max_norm / (float(self.local.norm()) + 1e-6))
                    parameter.grad = self.all_reduce(kept, "sum")
        return super()._step(optimizer, model, 0.0)


@mutant(
    "fake engine", "it does not start", test=STARTS, words="the engine does not start: __init__ raised OSError: no such library (plain.py:"
)
class DoesNotStart(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        raise OSError("no such library")


@mutant("fake engine", "generate raises", test=STARTS, words="generate raised AttributeError")
class GenerateRaises(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        raise AttributeError("'NoneType' object has no attribute 'step'")


@mutant(
    "fake engine", "every sync raises", test="greedy_tokens_are_those_of_the_model_before_and_after_each_sync",
    words="a sync of all weights failed, nothing more can be asked: update_weights raised KeyError",
)  # fmt: skip
class SyncRaises(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        raise KeyError("qkv_proj")
