"""The strategy `fsdp`: ranks train one model with FSDP2. Parameters, gradients and optimizer state are sharded over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch.distributed.fsdp import FSDPModule

from lightrft.config.schema import Config
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import StrategySpec
from lightrft.strategy.shard_export import export_sharded
from lightrft.strategy.shard_load import fill_shards
from lightrft.strategy.sharding import Kept, Meshes, reshard, shard, shard_frozen
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.lora_merge import is_adapter
from lightrft.weights.safetensors_reader import WeightFiles
from lightrft_fsdp import offload, state
from lightrft_fsdp.mixed_precision import MixedPrecisionAdamW
from lightrft_fsdp.shards import local


class FSDPV2Strategy(StrategyBase):
    """See `StrategyBase`. Trained parameters are held in float32, also under `bf16`, which computes in bfloat16 and reduces in float32.

    Only with `use_mp_opt` are they held in bfloat16, beside float32 masters in the optimizer; so are the weights that leave.
    After `maybe_load_optimizer` the state is on its way to a GPU: the strategy waits for it; other readers of `optimizer.state` call
    `torch.cuda.synchronize` first.
    """

    needs_process_group: ClassVar[bool] = True

    def __init__(self, config: Config, *, spec: StrategySpec, registry: Registry) -> None:
        super().__init__(config, spec=spec, registry=registry)
        self._meshes = Meshes(self.world)
        self._arriving: WeakKeyDictionary[Optimizer, offload.Arrival] = WeakKeyDictionary()

    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        model = shard_frozen(model, mesh=self._meshes.of(shard_size or self.world.world_size), bf16=self.config.bf16)
        if weights is not None:
            fill_shards(model, weights, device=self.world.device)
        return model

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        mesh = self._meshes.of(self.world.world_size)
        kept: Kept = "root" if self.config.fsdp_reshard_after_forward else "all"
        model = shard(model.float(), mesh=mesh, bf16=self.config.bf16, keep_for_backward=kept)
        if weights is not None:
            fill_shards(model, weights, device=self.world.device)
        if self.config.use_mp_opt:
            return model, MixedPrecisionAdamW(model, settings)
        # foreach is the default on CUDA; on the CPU it is ten times faster over sharded tensors, and the same bits.
        return model, settings.over(model, foreach=True)

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(final)
        if not self.config.fsdp_reshard_after_forward:
            model.set_reshard_after_backward(final)  # gathered once for all micro-batches of a step
        torch.autograd.backward(loss)

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        reshard(model)  # what a forward without a backward left gathered has no gradients, and old weights after the step
        gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
        # Squares are summed in float64, so a large norm does not overflow on the way; NaN and Inf on one rank reach all.
        norm = math.sqrt(self.all_reduce(torch.nn.utils.get_total_norm(gradients).item() ** 2, op="sum"))
        skipped = not math.isfinite(norm)
        if not skipped:
            scale = max_norm / (norm + 1e-6) if max_norm > 0 else 1.0
            if scale < 1:
                for gradient in gradients:
                    gradient.mul_(scale)
            self._arrived(optimizer)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm=norm, skipped=skipped)

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        reshard(model)
        return export_sharded(model, dtype=dtype, max_bytes=max_bytes)

    def _export_adapters(self, model: torch.nn.Module, max_bytes: int) -> Iterator[WeightBucket]:
        reshard(model)
        return export_sharded(model, dtype=None, max_bytes=max_bytes, only=is_adapter)

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        reshard(model)
        with self._on_device(optimizer):
            state.save(folder, model, optimizer, is_rank_0=self.is_rank_0)

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        reshard(model)
        with self._on_device(optimizer):
            state.load(folder, model, optimizer)

    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        self._arrived(optimizer)
        if to == "cpu":
            offload.to_host(optimizer)
        else:
            self._arriving[optimizer] = offload.to_device(optimizer)

    def _arrived(self, optimizer: Optimizer) -> None:
        """Waits for state that is on its way to the device."""
        if arrival := self._arriving.pop(optimizer, None):
            arrival.wait()

    @contextmanager
    def _on_device(self, optimizer: Optimizer) -> Iterator[None]:
        """Offloaded state is brought back for the time of the block."""
        self._arrived(optimizer)
        offloaded = id(optimizer) in self._offloaded
        if offloaded:
            offload.to_device(optimizer).wait()
        try:
            yield
        finally:
            if offloaded:
                offload.to_host(optimizer)
