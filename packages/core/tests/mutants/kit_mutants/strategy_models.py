"""Faults of a strategy's values, models and exports. One for each class here, on one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from kit_mutants.mutant import mutant
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer
from lightrft.testing.fake_strategy import FakeStrategy
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.safetensors_reader import WeightFiles

Module = torch.nn.Module

FROZEN = "a_frozen_model_has_no_gradients"
TIED = "tied_weights_leave_once_with_all_their_names"
BITWISE = "every_parameter_leaves_once_and_bitwise"
DTYPE = "weights_leave_in_the_dtype_asked_for"
BOUND = "buckets_keep_their_bound"


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
    "a mean of integers is rounded down to an integer",
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


@mutant("single", "one name of a tied parameter is missing", test=TIED, words="the export lacks the name lm_head.weight")
class OneTiedNameMissing(SingleStrategy):
    def _export_weights(self, model: Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        for bucket in super()._export_weights(model, dtype, max_bytes):
            yield [replace(weight, names=weight.names[:1]) for weight in bucket]


@mutant(
    "single", "a parameter is missing", test="parameters_leave_under_the_names_of_the_model",
    words="parameters do not leave: model.norm.weight",
)  # fmt: skip
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


# ---- values again ------------------------------------------------------------------------------------------------------------------------


@mutant("fake strategy", "a gather loses the dtype", test="all_gather_keeps_kinds_and_nesting", words="all_gather of int64 and bool gives")
class GatherLosesTheDtype(FakeStrategy):
    def all_gather(self, data: Any) -> Any:
        def floats(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: floats(one) for key, one in value.items()}
            return value.float() if isinstance(value, torch.Tensor) else value

        return floats(super().all_gather(data))


@mutant("fake strategy", "a gather flattens nested dicts", test="all_gather_keeps_kinds_and_nesting", words="all_gather of a nested dict")
class GatherFlattens(FakeStrategy):
    def all_gather(self, data: Any) -> Any:
        found, flat = super().all_gather(data), dict[str, Any]()
        if not isinstance(found, dict):
            return found
        for key, value in found.items():
            flat |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        return flat


@mutant("fake strategy", "values are reduced in float32", test="all_reduce_keeps_kinds_and_digits", words="digits are lost on the way")
class ReducesInFloat32(FakeStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        if isinstance(data, torch.Tensor):
            return super().all_reduce(data.float(), op).to(data.dtype if op != "mean" else torch.float32)
        return super().all_reduce(data, op)


@mutant("fake strategy", "integers come back as floats", test="all_reduce_keeps_kinds_and_digits", words="gives ['float', 'float']")
class IntegersComeBackAsFloats(FakeStrategy):
    def all_reduce(self, data: Any, op: Any = "mean") -> Any:
        found = super().all_reduce(data, op)
        return float(found) if isinstance(found, int) else found
