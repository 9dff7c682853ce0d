"""Faults of a strategy that uncommon models and orders of calls alone show: buffers, tied weights, a fresh run that loads, two models. One
for each class here, on `single`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kit_mutants.mutant import mutant
from kit_mutants.strategy_saving import RESUMED
from kit_mutants.strategy_update import MAX_NORM
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.safetensors_reader import WeightFiles

Module = torch.nn.Module

BUFFERS = "saved_buffers_leave_as_they_are"
FILLED = "models_are_filled_from_weight_files"


# ---- what leaves -------------------------------------------------------------------------------------------------------------------------


@mutant(
    "single", "a cast copy of the weights outlives a step", test="trained_weights_leave_after_a_step",
    words="leave with other values than as float32",
)  # fmt: skip
class StaleCast(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        fresh = super()._export_weights(model, dtype, max_bytes)
        if dtype is None:
            yield from fresh
        else:
            casts: WeakKeyDictionary[Module, Any] = self.__dict__.setdefault("casts", WeakKeyDictionary())
            yield from casts.setdefault(model, list(fresh))


@mutant("single", "saved buffers stay behind", test=BUFFERS, words="of a trained model leaves 0 times")
class BuffersStay(SingleStrategy):
    def export_weights(self, model: Module, *, dtype: torch.dtype | None = None) -> Iterator[WeightBucket]:
        for bucket in super().export_weights(model, dtype=dtype):
            if not any(weight.is_buffer for weight in bucket):
                yield bucket


@mutant("single", "buffers of a frozen model are rounded", test=BUFFERS, words="of a frozen model leaves as")
class BuffersRounded(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        model = super()._prepare_frozen(model, shard_size, weights)
        for buffer in model.buffers():
            buffer.data = buffer.data.bfloat16().to(buffer.dtype)
        return model


# ---- models that are filled from files ---------------------------------------------------------------------------------------------------


@mutant(
    "single", "a model that is filled from files loses the buffers that no file has", test=FILLED, words="its buffers are not the model's"
)
class FilledWithoutBuffers(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        model = super()._prepare_frozen(model, shard_size, weights)
        for buffer in model.buffers() if weights is not None else ():
            buffer.zero_()
        return model


@mutant(
    "single",
    "an actor and its reference share their memory",
    test="a_frozen_model_stays_while_another_trains",
    words="the two share memory",
)
class SharesMemory(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        self.frozen = super()._prepare_frozen(model, shard_size, weights)
        return self.frozen

    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        prepared = super()._prepare_trainable(model, settings, weights)
        if weights is not None:
            for mine, theirs in zip(model.parameters(), self.frozen.parameters(), strict=True):
                theirs.data = mine.data if torch.equal(mine, theirs) else theirs.data
        return prepared


# ---- steps -------------------------------------------------------------------------------------------------------------------------------


@mutant(
    "single", "a tied weight gets half of its gradient", test="tied_weights_are_one_parameter", words="tied weights: the update is not that"
)
class HalfOfATiedGradient(SingleStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        head: Any = getattr(model, "lm_head", None)
        if final and head is not None and head.weight is model.get_input_embeddings().weight:  # type: ignore[operator]  # transformers'
            head.weight.grad.mul_(0.5)
        super()._backward(loss, model, optimizer, final)


@mutant(
    "single", "a step without a gradient is left out", test="a_step_clears_the_gradients", words="a step with a gradient of 0 was left out"
)
class ZeroIsSkipped(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        if any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()):
            return super()._step(optimizer, model, max_norm)
        optimizer.zero_grad()
        return StepResult(grad_norm=0.0, skipped=False)


@mutant("single", "a large gradient is taken for one that is not finite", test=MAX_NORM, words="large and finite, stepped with 0.0000")
class LargeIsSkipped(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        if norm < 1e4:
            return super()._step(optimizer, model, max_norm)
        optimizer.zero_grad()
        return StepResult(grad_norm=norm, skipped=True)


@mutant("single", "clips after each micro-batch", test="micro_batches_do_not_change_the_update", words="is not that of one process")
class ClipsEachMicroBatch(SingleStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        super()._backward(loss, model, optimizer, final)
        if not final:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.max_norm)


@mutant(
    "single",
    "the schedule goes on before the optimizer steps",
    test="a_schedule_reaches_the_optimizer",
    words="learning rate 0.125 / 1: the",
)
class ScheduleOneAhead(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        if scheduler is not None:
            scheduler.step()
        return super().optimizer_step(optimizer, model, None, name, max_norm=max_norm)


# ---- what is saved -----------------------------------------------------------------------------------------------------------------------


class PreparedLast(SingleStrategy):
    """Knows the model that was prepared last, and its optimizer."""

    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        self.last = super()._prepare_trainable(model, settings, weights)
        return self.last


@mutant("single", "the model that was prepared last is saved", test=RESUMED, words="parameters differ from the saved ones")
class SavesTheLast(PreparedLast):
    def _save_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        super()._save_state(folder, *self.last)


@mutant("single", "a load changes the model that was prepared last, too", test=RESUMED, words="a load changed another model")
class LoadsIntoTheLast(PreparedLast):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        super()._load_state(folder, model, optimizer)
        if len(self.last[0].state_dict()) == len(model.state_dict()):
            super()._load_state(folder, *self.last)


@mutant("single", "a forward pass after a load uses the weights of before", test=RESUMED, words="it computes with other weights")
class StaleAfterALoad(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        forward, old = model.forward, copy.deepcopy(model)
        super()._load_state(folder, model, optimizer)
        model.forward = lambda *args, **kwargs: (forward if torch.is_grad_enabled() else old.forward)(*args, **kwargs)


@mutant("single", "moments come back only where there were some", test=RESUMED, words="loaded into a fresh run the run differs by")
class MomentsOfTrainedRunsOnly(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        fresh = not optimizer.state
        super()._load_state(folder, model, optimizer)
        if fresh:
            optimizer.state.clear()


@mutant("single", "a load puts the model into training mode", test=RESUMED, words="in training mode after a load")
class TrainsAfterALoad(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        super()._load_state(folder, model, optimizer)
        model.train()


@mutant(
    "single",
    "adapters are not restored",
    test="a_resumed_run_of_adapters_is_bitwise_the_same",
    words="parameters differ from the saved ones",
)
class AdaptersNotRestored(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        kept = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}
        super()._load_state(folder, model, optimizer)
        for name, value in kept.items():
            model.get_parameter(name).data.copy_(value)
