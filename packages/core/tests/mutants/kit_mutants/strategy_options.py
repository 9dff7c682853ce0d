"""Faults of a strategy that show with one option, one kind of model or one way to accumulate. One for each class here, on `single`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from kit_mutants.mutant import mutant
from lightrft.plugins.specs import Capability
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import Optimizer
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.safetensors_reader import WeightFiles

T = TypeVar("T")
Module = torch.nn.Module

DIFFERS = "the update is not that of one process"


class LossOffBy(SingleStrategy):
    """Its loss is a tenth larger where `wrong` says so."""

    def wrong(self) -> bool:
        raise NotImplementedError

    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        super()._backward(loss * 1.1 if self.wrong() else loss, model, optimizer, final)


@mutant(
    "single", "ZeRO 3 has another gradient", test="every_zero_stage_gives_the_same_update", words="{'zero_stage': 3}",
    declares=[Capability.ZERO_STAGES],
)  # fmt: skip
class Zero3Differs(LossOffBy):
    def wrong(self) -> bool:
        return self.config.zero_stage == 3


@mutant(
    "single", "AdamW in host memory has another gradient", test="adam_in_host_memory_gives_the_same_update", words="adam_offload",
    declares=[Capability.ADAM_OFFLOAD],
)  # fmt: skip
class AdamOffloadDiffers(LossOffBy):
    def wrong(self) -> bool:
        return bool(self.config.adam_offload)


@mutant(
    "single", "parameters that stay gathered have another gradient", test="keeping_parameters_gathered_gives_the_same_update",
    words="fsdp_reshard_after_forward", declares=[Capability.RESHARD_POLICY],
)  # fmt: skip
class GatheredDiffers(LossOffBy):
    def wrong(self) -> bool:
        return self.config.fsdp_reshard_after_forward is False


@mutant(
    "single", "bfloat16 parameters have another gradient", test="a_mixed_precision_optimizer_keeps_float32_masters", words="use_mp_opt",
    declares=[Capability.MIXED_PRECISION_OPTIMIZER],
)  # fmt: skip
class MixedPrecisionDiffers(LossOffBy):
    def wrong(self) -> bool:
        return bool(self.config.use_mp_opt)


@mutant("single", "recomputed activations change the gradient", test="recomputed_activations_change_nothing", words="with recomputation")
class RecomputationDiffers(LossOffBy):
    def wrong(self) -> bool:
        return bool(self.config.gradient_checkpointing)


@mutant("single", "the third micro-batch is lost", test="micro_batches_do_not_change_the_update", words=DIFFERS)
class ThirdMicroBatchLost(SingleStrategy):
    passes = 0

    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        self.passes += 1
        super()._backward(loss * 0.0 if self.passes == 3 else loss, model, optimizer, final)
        self.passes = 0 if final else self.passes


@mutant("single", "one half of the adapters is not trained", test="adapters_alone_are_trained", words="LoRA: the update is not")
class HalfOfTheAdapters(SingleStrategy):
    def _backward(self, loss: torch.Tensor, model: Module, optimizer: Optimizer, final: bool) -> None:
        super()._backward(loss, model, optimizer, final)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name and parameter.grad is not None:
                parameter.grad.zero_()


@mutant(
    "single", "a step without an input is taken in silence", test="accumulate_without_a_smallest_input_says_what_is_possible",
    words="was accepted",
)  # fmt: skip
class AccumulatesNothing(SingleStrategy):
    def accumulate(self, micro_batches: Sequence[T], loss_share: Callable[[T], torch.Tensor], model: Module, optimizer: Optimizer) -> None:
        with suppress(ValueError):
            super().accumulate(micro_batches, loss_share, model, optimizer)


@mutant(
    "single", "a frozen model computes with other values", test="a_frozen_model_gives_the_outputs_of_the_whole", words="logits of a frozen"
)
class FrozenValuesDiffer(SingleStrategy):
    def _prepare_frozen(self, model: Module, shard_size: int | None, weights: WeightFiles | None) -> Module:
        model = super()._prepare_frozen(model, shard_size, weights)
        next(model.parameters()).data.mul_(1.5)
        return model


@mutant(
    "single", "the export of a frozen model is rounded", test="frozen_models_leave_whole_too", words="the export of a frozen model differs"
)
class FrozenExportRounded(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        frozen = not any(p.requires_grad for p in model.parameters())
        yield from super()._export_weights(model, torch.bfloat16 if frozen and dtype is None else dtype, max_bytes)


@mutant("single", "packed rows have another gradient", test="packed_rows_give_the_same_update", words="packed: the update is not")
class PackedDiffers(LossOffBy):
    def wrong(self) -> bool:
        return bool(self.config.packing_samples)


@mutant("single", "frozen models stay on the device", test="a_frozen_model_rests_between_its_passes", words="did not move")
class FrozenStays(SingleStrategy):
    def _rest(self, model: Module, device: torch.device) -> None:
        pass


@mutant(
    "single",
    "frozen models come back with other values",
    test="a_frozen_model_rests_between_its_passes",
    words="logits of a model that rests",
)
class FrozenComesBackRounded(SingleStrategy):
    def _rest(self, model: Module, device: torch.device) -> None:
        super()._rest(model, device)
        next(model.parameters()).data.mul_(1.5)
