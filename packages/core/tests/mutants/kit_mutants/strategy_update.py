"""Faults of the update of a strategy on one rank. One for each class here, on `single`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from kit_mutants.mutant import mutant
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult
from lightrft.weights.safetensors_reader import WeightFiles

Module = torch.nn.Module

MICRO = "loss_shares_are_summed_over_micro_batches"
MAX_NORM = "max_norm_clips_0_is_off_and_none_is_the_configurations"
ADAMW = "the_optimizer_is_adamw_with_the_settings_asked_for"
NOT_FINITE = "a_norm_that_is_not_finite_skips_the_step_on_all_ranks"


@mutant(
    "single", "a loss divided by the accumulation steps a second time", test=MICRO, words="divided by the accumulation steps a second time"
)
class DoubleDivision(SingleStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        parts = 1 if final and model not in self._unfinished else 2
        super()._backward(loss / parts, model, optimizer, final)


@mutant("single", "each micro-batch replaces the gradient of the one before", test=MICRO, words="the last micro-batch alone")
class LastMicroBatchAlone(SingleStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        model.zero_grad()
        super()._backward(loss, model, optimizer, final)


@mutant("single", "takes a loss that is no scalar", test="backward_takes_a_scalar", words="was accepted")
class LossOfAnyShape(SingleStrategy):
    def backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, *, final: bool = True) -> None:
        super().backward(loss.sum(), model, optimizer, final=final)


@mutant("single", "clips over the model that was prepared last", test="each_model_is_clipped_alone", words="actor and critic")
class ClipsTheWrongModel(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        self.latest = model
        return super()._prepare_trainable(model, settings, weights)

    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        if max_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.latest.parameters(), max_norm)
        return replace(super()._step(optimizer, model, 0.0), grad_norm=norm)


@mutant("single", "max_norm 0 sets every gradient to zero", test="loss_shares_are_summed_over_ranks", words="on the last is 0.0000")
class ZeroClipsAll(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        return super()._step(optimizer, model, max_norm or 1e-12)


@mutant("single", "max_norm is ignored", test=MAX_NORM, words="max_norm=1.75 stepped with")
class NeverClips(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        return super()._step(optimizer, model, 0.0)


@mutant("single", "reports the norm after clipping", test=MAX_NORM, words="before clipping it is")
class ReportsTheClippedNorm(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        result = super()._step(optimizer, model, max_norm)
        return replace(result, grad_norm=min(result.grad_norm, max_norm or math.inf))


@mutant("single", "steps with NaN", test=NOT_FINITE, words="was not skipped")
class StepsWithNan(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        bad = any(not bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        if bad:
            optimizer.step()
        return replace(super()._step(optimizer, model, max_norm), skipped=False)


@mutant("single", "a skipped step moves the parameters", test=NOT_FINITE, words="although the step was skipped")
class SkipsTooLate(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        for parameter in model.parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                parameter.data.mul_(0.9)
        return super()._step(optimizer, model, max_norm)


@mutant("single", "the scheduler goes on with a skipped step", test=NOT_FINITE, words="the scheduler moved with the skipped step")
class SchedulerGoesOn(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        result = super().optimizer_step(optimizer, model, scheduler, name, max_norm=max_norm)
        if result.skipped and scheduler is not None:
            scheduler.step()
        return result


@mutant("single", "gradients of a skipped step are kept", test=NOT_FINITE, words="gradients of the skipped step are left")
class KeepsSickGradients(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        kept = {p: p.grad for p in model.parameters()}
        result = super()._step(optimizer, model, max_norm)
        if result.skipped:
            for parameter, gradient in kept.items():
                parameter.grad = gradient
        return result


@mutant(
    "single", "gradients are not cleared after a step", test="a_step_clears_the_gradients", words="gradients of the step before are left"
)
class GradientsNotCleared(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        kept = {p: p.grad for p in model.parameters()}
        result = super()._step(optimizer, model, max_norm)
        for parameter, gradient in kept.items():
            parameter.grad = None if result.skipped else gradient
        return result


@mutant("single", "weight decay is forgotten", test=ADAMW, words="by hand")
class NoWeightDecay(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        return super()._prepare_trainable(model, replace(settings, weight_decay=0.0), weights)


@mutant("single", "the optimizer has torch's betas", test=ADAMW, words="after step 2")
class TorchsBetas(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        return super()._prepare_trainable(model, replace(settings, betas=(0.9, 0.999)), weights)


@mutant("single", "the scheduler is never stepped", test="a_schedule_reaches_the_optimizer", words="learning rate 0.125 / 2")
class NoSchedule(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        return super().optimizer_step(optimizer, model, None, name, max_norm=max_norm)


@mutant("single", "a trained model is in training mode", test="a_trained_model_is_in_eval_mode", words="dropout would be on")
class TrainsWithDropout(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        return super()._prepare_trainable(model.train(), settings, weights)


@mutant(
    "single",
    "trains what requires no gradients",
    test="only_what_requires_gradients_is_trained",
    words="requires no gradient and was changed",
)
class TrainsEverything(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        return super()._prepare_trainable(model.requires_grad_(True), settings, weights)


@mutant(
    "single", "a forward pass keeps answering with old weights", test="a_forward_after_a_step_sees_the_new_weights", words="old weights"
)
class StaleForward(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        model, optimizer = super()._prepare_trainable(model, settings, weights)
        forward, seen = model.forward, dict[str, Any]()
        model.forward = lambda **inputs: forward(**inputs) if torch.is_grad_enabled() else seen.setdefault(str(inputs), forward(**inputs))
        return model, optimizer


@mutant(
    "single",
    "steps before the last micro-batch",
    test="a_step_before_the_final_micro_batch_is_refused",
    words="final micro-batch was taken",
)
class StepsEarly(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        self._unfinished.discard(model)
        return super().optimizer_step(optimizer, model, scheduler, name, max_norm=max_norm)


@mutant("single", "max_norm of the configuration is ignored", test=MAX_NORM, words="and 0.5 in the configuration")
class ConfiguredNormIgnored(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        return super().optimizer_step(optimizer, model, scheduler, name, max_norm=1.0 if max_norm is None else max_norm)


@mutant("single", "clips to a little less than was asked", test=MAX_NORM, words="max_norm=1.75 stepped with")
class ClipsWithALargeEps(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        return super()._step(optimizer, model, max_norm * 0.99)


@mutant("single", "reports the norm as a tensor", test=MAX_NORM, words="a plain float and a plain bool")
class NormIsATensor(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        result = super()._step(optimizer, model, max_norm)
        norm: Any = torch.tensor(result.grad_norm)
        return replace(result, grad_norm=norm)


@mutant("single", "clips each parameter by itself", test="a_clipped_update_is_that_of_one_process", words="is not that of one process")
class ClipsEachParameter(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        norms = [p.grad.norm().square() for p in model.parameters() if p.grad is not None]
        for parameter in model.parameters():
            if parameter.grad is not None and max_norm > 0 and bool(parameter.grad.isfinite().all()):
                torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        result = super()._step(optimizer, model, 0.0)
        return replace(result, grad_norm=math.sqrt(float(torch.stack(norms).sum())) if norms else 0.0)


@mutant("single", "a step clears the gradients of every model", test="each_model_is_clipped_alone", words="is not that of one process")
class ClearsEveryModel(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        self.__dict__.setdefault("all", []).append(model)
        return super()._prepare_trainable(model, settings, weights)

    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        result = super()._step(optimizer, model, max_norm)
        for other in self.__dict__["all"]:
            other.zero_grad()
        return result


@mutant("single", "weights of one dimension do not decay", test="an_update_is_that_of_one_process", words="is not that of one process")
class DecaysMatricesAlone(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        model, optimizer = super()._prepare_trainable(model, settings, weights)
        flat = [p for p in model.parameters() if p.dim() == 1]
        group = optimizer.param_groups[0]
        group["params"] = [p for p in group["params"] if p.dim() > 1]
        if flat:
            optimizer.add_param_group({**{k: v for k, v in group.items() if k != "params"}, "params": flat, "weight_decay": 0.0})
        return model, optimizer


@mutant("single", "a step puts the model into training mode", test="a_trained_model_is_in_eval_mode", words="after a step and an export")
class TrainsAfterAStep(SingleStrategy):
    def _step(self, optimizer: Optimizer, model: Module, max_norm: float) -> StepResult:
        result = super()._step(optimizer, model, max_norm)
        model.train()
        return result


@mutant("single", "the schedule goes on twice in a step", test="a_schedule_reaches_the_optimizer", words="learning rate 0.125 / 2")
class ScheduleTwice(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        result = super().optimizer_step(optimizer, model, scheduler, name, max_norm=max_norm)
        if scheduler is not None and not result.skipped:
            scheduler.step()
        return result
