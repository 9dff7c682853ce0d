"""The strategy `deepspeed`: ranks train one model with DeepSpeed. By ZeRO stage 0, 1, 2 or 3, each with the update of one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch

from lightrft.config.schema import Config
from lightrft.errors import StrategyStateError
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import StrategySpec
from lightrft.strategy.shard_export import export_sharded
from lightrft.strategy.shard_load import fill_shards
from lightrft.strategy.sharding import Meshes, shard_frozen
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.lora_merge import is_adapter
from lightrft.weights.safetensors_reader import WeightFiles
from lightrft_deepspeed import state
from lightrft_deepspeed.construct import fill, shard_empty
from lightrft_deepspeed.export import export, export_masters
from lightrft_deepspeed.fragments import set_masters
from lightrft_deepspeed.runtime import DeepSpeedEngine, forget_groups, make_ready, start_engine
from lightrft_deepspeed.settings import deepspeed_settings

Gradients = Literal["partial", "reduced"]


class DeepspeedStrategy(StrategyBase):
    """See `StrategyBase`. Trained models become DeepSpeed engines; frozen ones are sharded by `fully_shard`.

    Trained parameters have float32 masters, also under `bf16`, which computes in bfloat16 and accumulates and reduces gradients in float32.

    Training goes through the engine, `model(...)`: at stage 3 a forward through `unwrap(model)` would lose gradients.
    """

    needs_process_group: ClassVar[bool] = True

    def __init__(self, config: Config, *, spec: StrategySpec, registry: Registry) -> None:
        super().__init__(config, spec=spec, registry=registry)
        self._meshes = Meshes(self.world)
        self._gradients: WeakKeyDictionary[torch.nn.Module, Gradients] = WeakKeyDictionary()

    def _leave_world(self) -> None:
        forget_groups()
        super()._leave_world()

    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        model = shard_frozen(model, mesh=self._meshes.of(shard_size or self.world.world_size), bf16=self.config.bf16)
        if weights is not None:
            fill_shards(model, weights, device=self.world.device)
        return model

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        if weights is not None and self.config.zero_stage == 3:
            make_ready(self.world)
            shard_empty(model, settings=self._settings(), dtype=self._dtype, device=self.world.device)
            engine, optimizer = self._start(model, settings)
            fill(engine, weights)
            return engine, optimizer
        if weights is not None:
            weights.fill(model)
        model = model.float()
        values = {name: p.detach() for name, p in model.named_parameters()}
        engine, optimizer = self._start(model.to(self.world.device), settings)
        if self.config.bf16:  # DeepSpeed takes its masters from the model's parameters, which it has rounded by then
            set_masters(engine, lambda f: values[f.name].view(-1)[f.first : f.first + f.length])
        return engine, optimizer

    def _start(self, model: torch.nn.Module, settings: AdamWSettings) -> tuple[torch.nn.Module, Optimizer]:
        optimizer = settings.over(model)
        # The engine swaps the optimizer's parameters for its partitions and reads the groups at every step: schedulers work on it.
        return start_engine(model, optimizer, settings=self._settings(), world=self.world), optimizer

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.bf16 else torch.float32

    def _describe(self) -> dict[str, Any]:
        return {"deepspeed": self._settings()}

    def _settings(self) -> dict[str, Any]:
        return deepspeed_settings(self.config, pinned=self.world.device.type == "cuda")

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        if self._gradients.get(model) == "reduced":
            raise StrategyStateError("backward after backward(final=True): call optimizer_step first; pass final=True on the last one only")
        engine: Any = model
        engine.set_gradient_accumulation_boundary(final)
        # DeepSpeed averages over ranks, the contract is a sum. Only the average is right at every stage.
        engine.backward(loss * self.world.world_size, scale_wrt_gas=False)
        self._gradients[model] = "reduced" if final else "partial"

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        if self._gradients.get(model) != "reduced":
            raise StrategyStateError(
                "optimizer_step without backward(final=True): the gradients are not reduced; pass final=True on the last one"
            )
        del self._gradients[model]
        engine: Any = model
        if self.config.zero_stage == 0:
            return _plain_step(engine, max_norm)
        engine.optimizer.clip_grad = max_norm  # 0 is off, and the norm is computed all the same
        engine.step()
        skipped = not engine.was_step_applied()
        if skipped and self.config.adam_offload and self.config.zero_stage == 2:
            # Until DeepSpeed (0.19.8) drops them itself: under bf16 the sick sums stay there and every later step would be skipped.
            engine.optimizer.averaged_gradients = dict.fromkeys(engine.optimizer.averaged_gradients)
        return StepResult(grad_norm=float(engine.get_global_grad_norm()), skipped=skipped)

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        if not isinstance(model, DeepSpeedEngine):
            return export_sharded(model, dtype=dtype, max_bytes=max_bytes)
        if self.config.bf16 and dtype != torch.bfloat16:
            return export_masters(model, dtype=dtype, max_bytes=max_bytes)
        return export(self._unwrap(model), sharded=self.config.zero_stage == 3, dtype=dtype, max_bytes=max_bytes)

    def _export_adapters(self, model: torch.nn.Module, max_bytes: int) -> Iterator[WeightBucket]:
        if self.config.bf16:
            return export_masters(model, dtype=None, max_bytes=max_bytes, only=is_adapter)
        return export(self._unwrap(model), sharded=self.config.zero_stage == 3, dtype=None, max_bytes=max_bytes, only=is_adapter)

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        state.save(folder, model, optimizer)

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        state.load(folder, model, optimizer)

    def _shapes(self, model: torch.nn.Module) -> dict[str, list[int]]:
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self._unwrap(model).named_parameters()}

    def _unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        inner: torch.nn.Module = model.module if isinstance(model, DeepSpeedEngine) else model
        return inner


def _plain_step(engine: Any, max_norm: float) -> StepResult:
    """Stage 0 has no optimizer of DeepSpeed's, which would step on NaN; every rank holds the whole gradient, so all decide the same."""
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(p.grad for p in parameters)
    grad_norm = norm.item()
    if not math.isfinite(grad_norm):
        engine.zero_grad()
        return StepResult(grad_norm=grad_norm, skipped=True)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    engine.step()
    return StepResult(grad_norm=grad_norm, skipped=False)
