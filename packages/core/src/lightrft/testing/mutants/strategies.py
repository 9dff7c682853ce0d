"""Which faults may a strategy have on one rank? One for each class here, on `single` and on the fake strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lightrft.distributed.buckets import WeightBucket
from lightrft.plugins.specs import Capability
from lightrft.strategy.single import STATE, SingleStrategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult
from lightrft.strategy.weight_files import WeightFiles
from lightrft.testing.fake_strategy import FakeStrategy
from lightrft.testing.mutants.mutant import mutant
from lightrft.types import EngineStatus

Module = torch.nn.Module

MICRO = "shares_are_summed_over_micro_batches"
MAX_NORM = "max_norm_clips_0_is_off_and_none_is_the_configurations"
ADAMW = "the_optimizer_is_adamw_with_the_settings_asked_for"
NOT_FINITE = "a_norm_that_is_not_finite_skips_the_step_on_all_ranks"
FROZEN = "a_frozen_model_has_no_gradients"
TIED = "tied_weights_leave_once_with_all_their_names"
BITWISE = "every_parameter_leaves_once_and_bitwise"
DTYPE = "weights_leave_in_the_dtype_asked_for"
BOUND = "buckets_keep_their_bound"
RESUMED = "a_resumed_run_is_bitwise_the_same"
STATE_BACK = "client_state_comes_back_whole"
OTHER_MODEL = "a_checkpoint_of_another_model_is_refused"
DAMAGED = "a_damaged_checkpoint_is_refused"
OFFLOAD = "optimizer_state_comes_back_with_the_same_bits"
SYNC = "a_sync_gives_the_engine_the_actor"


# ---- the update --------------------------------------------------------------------------------------------------------------------------


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
        if max_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.latest.parameters(), max_norm)
        return super()._step(optimizer, model, 0.0)


@mutant("single", "max_norm 0 sets every gradient to zero", test=MAX_NORM, words="(0 is off)")
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


# ---- values and models -------------------------------------------------------------------------------------------------------------------


@mutant("fake strategy", "all_reduce in place", test="all_reduce_writes_nothing_into_its_input", words="in place")
class ReducesInPlace(FakeStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        super().all_reduce(data, op)
        return data if op == "sum" else super().all_reduce(data, op)


@mutant("fake strategy", "an unknown reduction is a sum", test="values_that_cannot_be_reduced_are_refused", words="'median'")
class AnyReduction(FakeStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        return super().all_reduce(data, op if op != "median" else "sum")


@mutant(
    "fake strategy",
    "a mean of integers is cut to an integer",
    test="all_reduce_gives_mean_sum_max_and_min",
    words="the mean of integer tensors",
)
class IntegerMean(FakeStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        found = super().all_reduce(data, op)
        return found.to(data.dtype) if isinstance(data, torch.Tensor) else found


@mutant("fake strategy", "describes itself with objects", test="it_describes_itself_in_plain_data", words="JSON")
class DescribesWithObjects(FakeStrategy):
    def _describe(self) -> dict[str, Any]:
        return {"device": self.world.device}


@mutant("single", "a frozen model with gradients", test=FROZEN, words="require gradients")
class FrozenWithGradients(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        return super()._prepare_frozen(model.requires_grad_(True), shard_size, weights)


@mutant("single", "a frozen model in training mode", test=FROZEN, words="in training mode")
class FrozenInTrainingMode(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        return super()._prepare_frozen(model.train(), shard_size, weights)


@mutant("single", "any shard_size is taken", test="shard_size_divides_the_world", words="shard_size=2 was accepted")
class AnyShardSize(SingleStrategy):
    def prepare_model(self, model: Module, *, shard_size: int | None = None, weights: WeightFiles | None = None) -> Module:
        return super().prepare_model(model, weights=weights)


@mutant(
    "single", "weight files fill half of a model", test="models_are_filled_from_weight_files", words="does not hold the values of its files"
)
class HalfFilled(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        model = super()._prepare_frozen(model, shard_size, weights)
        if weights is not None:
            next(model.parameters()).data.zero_()
        return model


@mutant("single", "unwrap gives a part of the model", test="unwrap_gives_the_model_of_transformers", words="unwrap gives a")
class UnwrapsTooFar(SingleStrategy):
    def unwrap(self, model: Module) -> Any:
        inner: Any = super().unwrap(model)
        return inner.model if hasattr(inner, "model") else inner


# ---- export ------------------------------------------------------------------------------------------------------------------------------


@mutant("single", "one name of a tied parameter is missing", test=TIED, words="the tied name lm_head.weight is missing")
class OneTiedNameMissing(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(weight, names=weight.names[:1]) for weight in bucket]


@mutant("single", "a parameter is missing", test=BITWISE, words="export lacks ['model.norm.weight']")
class ParameterMissing(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [weight for weight in bucket if weight.names[0] != "model.norm.weight"]


@mutant("single", "values are rounded on the way", test=BITWISE, words="not bitwise what was prepared")
class RoundedOnTheWay(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(weight, tensor=weight.tensor.bfloat16().to(weight.tensor.dtype)) for weight in bucket]


@mutant("single", "weights leave in the wrong dtype", test=DTYPE, words="left as torch.float32")
class WrongDtype(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        return super()._export_weights(model, None, max_bytes)


@mutant("single", "weights leave with their gradient graph", test=DTYPE, words="with its gradient graph")
class ExportsTheGraph(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        named = dict(model.named_parameters())
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(weight, tensor=named[weight.names[0]].to(weight.tensor.dtype)) for weight in bucket]


@mutant("single", "buckets are over the bound", test=BOUND, words="the bound is 30000")
class OverTheBound(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        return super()._export_weights(model, dtype, 2 * max_bytes)


@mutant("single", "every tensor has a bucket of its own", test=BOUND, words="closed although the next tensor had room")
class OneBucketEach(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        return super()._export_weights(model, dtype, 1)


@mutant("single", "weights leave as they were prepared", test="trained_weights_leave_after_a_step", words="a step did not reach the export")
class ExportsTheStart(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: AdamWSettings, weights: WeightFiles | None) -> tuple[Module, Optimizer]:
        model, optimizer = super()._prepare_trainable(model, settings, weights)
        self.__dict__.setdefault("start", {})[id(model)] = {n: p.detach().clone() for n, p in model.named_parameters()}
        return model, optimizer

    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        start: Mapping[str, torch.Tensor] = self.__dict__.get("start", {}).get(id(model), {})
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(w, tensor=start.get(w.names[0], w.tensor).to(w.tensor.dtype)) for w in bucket]


# ---- what is saved -----------------------------------------------------------------------------------------------------------------------


@mutant("single", "the optimizer's state is not restored", test=RESUMED, words="its optimizer's state was not restored")
class OptimizerNotRestored(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        model.load_state_dict(torch.load(folder / STATE, weights_only=True)["model"])


@mutant("single", "the schedule is not restored", test=RESUMED, words="the schedule was not restored")
class ScheduleNotRestored(SingleStrategy):
    def load_ckpt(self, folder: str | Path, *, model: Module, optimizer: Optimizer, scheduler: Any = None) -> dict[str, Any]:
        return super().load_ckpt(folder, model=model, optimizer=optimizer)


@mutant("single", "loaded weights are those of the run that loads", test=RESUMED, words="loaded parameters differ")
class WeightsNotRestored(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        optimizer.load_state_dict(torch.load(folder / STATE, weights_only=True)["optimizer"])


@mutant("single", "saving changes the run", test="a_run_is_not_changed_by_saving", words="because the run was saved")
class SavingChangesTheRun(SingleStrategy):
    def _save_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        super()._save_state(folder, model, optimizer)
        optimizer.state.clear()


@mutant("single", "the states of random generators are not restored", test=STATE_BACK, words="came back without rng")
class RngNotRestored(SingleStrategy):
    def load_ckpt(self, folder: str | Path, *, model: Module, optimizer: Optimizer, scheduler: Any = None) -> dict[str, Any]:
        found = super().load_ckpt(folder, model=model, optimizer=optimizer, scheduler=scheduler)
        return {name: value for name, value in found.items() if name != "rng"}


@mutant("single", "a random generator starts anew", test=STATE_BACK, words="a resumed run would draw otherwise")
class RngStartsAnew(SingleStrategy):
    def load_ckpt(self, folder: str | Path, *, model: Module, optimizer: Optimizer, scheduler: Any = None) -> dict[str, Any]:
        found = super().load_ckpt(folder, model=model, optimizer=optimizer, scheduler=scheduler)
        return found | ({"rng": torch.Generator().get_state()} if "rng" in found else {})


@mutant(
    "single",
    "a save that is not atomic",
    test="a_save_that_fails_leaves_the_old_one_whole",
    words="not written under a temporary name first",
)
class SavesInPlace(SingleStrategy):
    def save_ckpt(self, folder: str | Path, **what: Any) -> Path:
        if Path(folder).exists():
            SingleStrategy._save_state(self, Path(folder), what["model"], what["optimizer"])
        return super().save_ckpt(folder, **what)


@mutant("single", "a save never replaces an older one", test="a_newer_save_replaces_the_older", words="the folder holds step 0")
class FirstSaveStays(SingleStrategy):
    def save_ckpt(self, folder: str | Path, **what: Any) -> Path:
        return Path(folder) if Path(folder).exists() and "step" in what["client_state"] else super().save_ckpt(folder, **what)


@mutant("single", "a load that ignores missing parameters", test=OTHER_MODEL, words="was loaded without a word")
class IgnoresMissingKeys(SingleStrategy):
    def _shapes(self, model: Module) -> dict[str, list[int]]:
        return {}

    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        state = torch.load(folder / STATE, weights_only=True)
        model.load_state_dict(state["model"], strict=False)
        if len(state["optimizer"]["state"]) in (0, len(list(model.parameters()))):
            optimizer.load_state_dict(state["optimizer"]) if state["optimizer"]["state"] else optimizer.state.clear()


@mutant("single", "loads a damaged checkpoint", test=DAMAGED, words="a checkpoint that is nowhere was loaded")
class LoadsWhatIsNotThere(SingleStrategy):
    def load_ckpt(self, folder: str | Path, *, model: Module, optimizer: Optimizer, scheduler: Any = None) -> dict[str, Any]:
        if not Path(folder).exists():
            return {}
        return super().load_ckpt(folder, model=model, optimizer=optimizer, scheduler=scheduler)


@mutant("single", "the HF folder holds rounded weights", test="a_saved_model_loads_in_transformers", words="the saved folder differs")
class SavesRounded(SingleStrategy):
    def save_model(self, model: Module, folder: str | Path, *, tokenizer: Any = None) -> Path:
        import copy

        rounded = copy.deepcopy(model)
        for parameter in rounded.parameters():
            parameter.data = parameter.data.bfloat16().float()
        return super().save_model(rounded, folder, tokenizer=tokenizer)


# ---- optimizer offload -------------------------------------------------------------------------------------------------------------------


@mutant("single", "the optimizer's state is lost when it is offloaded", test=OFFLOAD, words="did not come back as it left")
class OffloadLosesState(SingleStrategy):
    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        super()._move_optimizer_state(optimizer, to)
        for state in optimizer.state.values() if to == "device" else ():
            state["exp_avg_sq"].zero_()


@mutant("single", "offloading declared and absent", test="optimizer_state_really_leaves", words="declared and absent")
class OffloadDoesNothing(SingleStrategy):
    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        """Nothing."""


@mutant(
    "single",
    "steps while its optimizer is offloaded",
    test="a_step_while_offloaded_is_refused",
    words="while the optimizer's state was offloaded",
)
class StepsWhileOffloaded(SingleStrategy):
    def optimizer_step(
        self, optimizer: Optimizer, model: Module, scheduler: Any, name: str = "model", *, max_norm: float | None = None
    ) -> Any:
        self.maybe_load_optimizer(optimizer)
        return super().optimizer_step(optimizer, model, scheduler, name, max_norm=max_norm)


@mutant(
    "single",
    "bf16 declared and absent",
    test="bf16_computes_in_bfloat16_over_float32_masters",
    words="bf16 computes logits in",
    declares=[Capability.BF16],
)
class Bf16Absent(SingleStrategy):
    pass


@mutant(
    "single",
    "packing declared, which no contract knows",
    test="packing_is_tested_elsewhere",
    words="nothing could test it",
    declares=[Capability.PACKING],
)
class PackingDeclared(SingleStrategy):
    pass


@mutant(
    "single",
    "several ranks declared and absent",
    test="more_than_one_rank_is_run_or_refused",
    words="is one process",
    declares=[Capability.MULTI_RANK],
)
class RanksAbsent(SingleStrategy):
    pass


@mutant(
    "single",
    "no capability is declared",
    test="the_plugin_declares_what_it_can_do",
    words="declares no capability",
    hides=[Capability.OPTIMIZER_OFFLOAD],
)
class DeclaresNothing(SingleStrategy):
    pass


# ---- the engine --------------------------------------------------------------------------------------------------------------------------


@mutant("fake strategy", "the version is not raised after a sync", test=SYNC, words="weight_version is 0")
class SyncVersionNotRaised(FakeStrategy):
    @property
    def weight_version(self) -> int:
        return 0


@mutant("fake strategy", "a sync sends nothing", test=SYNC, words="the engine does not hold the actor")
class SyncSendsNothing(FakeStrategy):
    def update_engine_weights(self, actor: Module) -> None:
        self._engine().version += 1
        held: Any = self._engine().engine
        held._version += 1


@mutant("fake strategy", "the status of the engine is made up", test="the_engine_sleeps_and_wakes", words="states are")
class StatusMadeUp(FakeStrategy):
    @property
    def inference_engine_status(self) -> EngineStatus:
        return EngineStatus.AWAKE


@mutant("fake strategy", "a second engine replaces the first", test="ranks_train_on_without_an_engine", words="a second engine was set up")
class SecondEngine(FakeStrategy):
    def setup_inference_engine(self, args: Any, engine_type: str | None = None, *, model_path: str | None = None) -> None:
        self.shutdown_inference_engine()
        super().setup_inference_engine(args, engine_type, model_path=model_path)


@mutant("fake strategy", "replaces a function of the kit", test="nothing_replaced_the_kit_on_the_ranks", words="largest_difference")
class ReplacesTheKit(FakeStrategy):
    def report_memory(self, prefix: str = "") -> dict[str, float]:
        from lightrft.testing import workload

        workload.largest_difference = lambda *_, **__: 0.0
        return super().report_memory(prefix)
