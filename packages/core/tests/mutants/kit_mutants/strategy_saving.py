"""Faults of what a strategy saves, of its options and of its engine. One for each class here, on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from kit_mutants.mutant import BASES, mutant
from lightrft.plugins.specs import Capability
from lightrft.strategy.single import STATE, SingleStrategy
from lightrft.strategy.strategy_base import Optimizer
from lightrft.testing.fake_strategy import FakeStrategy
from lightrft.types import EngineStatus, RequestOutput

Module = torch.nn.Module

RESUMED = "a_resumed_run_is_bitwise_the_same"
STATE_BACK = "client_state_comes_back_whole"
OTHER_MODEL = "a_checkpoint_of_another_model_is_refused"
DAMAGED = "a_damaged_checkpoint_is_refused"
OFFLOAD = "optimizer_state_comes_back_with_the_same_bits"
ROLLOUT = "what_is_asked_of_a_rollout_reaches_the_engine"
SYNC = "a_sync_gives_the_engine_the_actor"


@mutant("single", "the optimizer's state is not restored", test=RESUMED, words="its optimizer's state was not restored")
class OptimizerNotRestored(SingleStrategy):
    def _load_state(self, folder: Path, model: Module, optimizer: Optimizer) -> None:
        model.load_state_dict(torch.load(folder / STATE, weights_only=True)["model"])


@mutant("single", "the schedule is not restored", test=RESUMED, words="the schedule was not restored")
class ScheduleNotRestored(SingleStrategy):
    def load_ckpt(self, folder: str | Path, *, model: Module, optimizer: Optimizer, scheduler: Any = None) -> dict[str, Any]:
        return super().load_ckpt(folder, model=model, optimizer=optimizer)


@mutant("single", "loaded weights are those of the run that loads", test=RESUMED, words="parameters differ from the saved ones")
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
    def save_model(self, model: Module, folder: str | Path, **given: Any) -> Path:
        import copy

        rounded = copy.deepcopy(model)
        for parameter in rounded.parameters():
            parameter.data = parameter.data.bfloat16().float()
        return super().save_model(rounded, folder, **given)


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
    words="bf16 computes logits in torch.float32",
)
class Bf16Absent(SingleStrategy):
    def _autocast(self, model: Module) -> None:
        """Nothing."""


@mutant(
    "single",
    "the prepared model drops where sequences end",
    test="packed_rows_give_the_same_update",
    words="is not told where sequences end",
)
class DropsSegments(SingleStrategy):
    def _prepare_trainable(self, model: Module, settings: Any, weights: Any) -> Any:
        prepared, optimizer = super()._prepare_trainable(model, settings, weights)
        inner = prepared.forward

        def forward(*args: Any, cu_seq_lens_q: Any = None, max_length_q: Any = None, **known: Any) -> Any:
            return inner(*args, **known)

        prepared.forward = forward
        return prepared, optimizer


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
    hides=BASES["single"].capabilities,
)
class DeclaresNothing(SingleStrategy):
    pass


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
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from lightrft.testing import workload

        workload.largest_difference = lambda *_, **__: 0.0
        super().__init__(*args, **kwargs)


@mutant("fake strategy", "log-probs are not asked for", test=ROLLOUT, words="accepted in silence")
class LogprobsNotAsked(FakeStrategy):
    def gather_and_generate(self, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        return super().gather_and_generate(*args, **{**kwargs, "logprobs": False})


@mutant("fake strategy", "nobody hears of prompts that ended", test=ROLLOUT, words="on_finished was called for the prompts []")
class NobodyHears(FakeStrategy):
    def gather_and_generate(self, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        return super().gather_and_generate(*args, **{**kwargs, "on_finished": None})


@mutant("fake strategy", "a mapping's seed is left out", test=ROLLOUT, words="as a mapping gave other completions")
class MappingWithoutSeed(FakeStrategy):
    def gather_and_generate(self, sampling_params: Any, *args: Any, **kwargs: Any) -> list[RequestOutput]:
        if isinstance(sampling_params, dict):
            sampling_params = {**sampling_params, "seed": None}
        return super().gather_and_generate(sampling_params, *args, **kwargs)


@mutant("fake strategy", "counters are not restored", test=ROLLOUT, words="a resumed run draws otherwise")
class CountersNotRestored(FakeStrategy):
    def restore_engine(self, *, weight_version: int, calls: int) -> None:
        """Nothing."""


# ---- what is left behind -----------------------------------------------------------------------------------------------------------------


@mutant("single", "a save leaves a temporary folder", test="a_newer_save_replaces_the_older", words="beside the checkpoint")
class SaveLeavesAFolder(SingleStrategy):
    def save_ckpt(self, folder: str | Path, **what: Any) -> Path:
        (Path(folder).parent / f".{Path(folder).name}.left").mkdir(parents=True, exist_ok=True)
        return super().save_ckpt(folder, **what)


@mutant("single", "adapters are saved in bfloat16", test="saved_adapters_load_in_peft", words="with the saved adapters differs by")
class AdaptersRounded(SingleStrategy):
    def save_adapter(self, model: Module, folder: str | Path) -> Path:
        import copy

        rounded = copy.deepcopy(model)
        for name, parameter in rounded.named_parameters():
            parameter.data = parameter.data.bfloat16().float() if "lora_" in name else parameter.data
        return super().save_adapter(rounded, folder)


@mutant("single", "a second shutdown is an error", test="it_ends_twice_over", words="when it was called a second time")
class EndsOnce(SingleStrategy):
    def _leave_world(self) -> None:
        super()._leave_world()
        del self.skipped_steps


@mutant("single", "the average takes most of what is new", test="a_moving_average_follows_what_leaves", words="the average differs by")
class AverageBackwards(SingleStrategy):
    def move_ema_model(self, ema_model: Module, model: Module, *, beta: float) -> None:
        super().move_ema_model(ema_model, model, beta=1 - beta)


@mutant("single", "an average is not restored", test="a_moving_average_comes_back_bit_by_bit", words="a restored average differs by")
class AverageNotRestored(SingleStrategy):
    def load_ema_model(self, folder: str | Path, ema_model: Module) -> None:
        pass
