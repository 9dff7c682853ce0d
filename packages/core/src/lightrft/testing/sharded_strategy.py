"""The smallest strategy of several ranks. Whole parameters on each, optimizer state sharded over all of them, plain torch.

Stage 1 of ZeRO (Rajbhandari et al. 2020, section 5.1), without its speed: the kit's own subject where ranks matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch

from lightrft.config.schema import Config
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, StrategySpec
from lightrft.strategy.shard_export import export_sharded
from lightrft.strategy.shard_load import fill_shards
from lightrft.strategy.sharding import Meshes, shard_frozen, sharded_modules
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.weights.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft.weights.safetensors_reader import WeightFiles

SHARDED_STRATEGY = StrategySpec(
    name="sharded",
    target="lightrft.testing.sharded_strategy:ShardedStrategy",
    capabilities=frozenset({Capability.MULTI_RANK, Capability.OPTIMIZER_OFFLOAD, Capability.SHARDED_FROZEN, Capability.FROZEN_OFFLOAD}),
    summary="optimizer state sharded over the ranks, plain torch",
)


class ShardedStrategy(StrategyBase):
    """See `StrategyBase`. Each rank steps its slice of every flattened parameter and gives it to the others."""

    needs_process_group: ClassVar[bool] = True

    def __init__(self, config: Config, *, spec: StrategySpec, registry: Registry) -> None:
        super().__init__(config, spec=spec, registry=registry)
        self._meshes = Meshes(self.world)
        self._slices: WeakKeyDictionary[torch.nn.Module, dict[str, torch.nn.Parameter]] = WeakKeyDictionary()

    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        model = shard_frozen(model, mesh=self._meshes.of(shard_size or self.world.world_size), bf16=False)
        if weights is not None:
            fill_shards(model, weights, device=self.world.device)
        return model

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        if weights is not None:
            weights.fill(model)
        model = model.to(self.world.device).float()
        mine = {n: torch.nn.Parameter(self._slice(p.detach()).clone()) for n, p in model.named_parameters() if p.requires_grad}
        self._slices[model] = mine
        return model, settings.over(torch.nn.ParameterList(mine.values()))

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        torch.autograd.backward(loss)
        if final:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                    parameter.grad = self._reduced(gradient)

    def _reduced(self, gradient: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self.all_reduce(gradient, "sum")
        return summed

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        named = dict(model.named_parameters())
        mine = self._slices[model]
        for name, part in mine.items():
            gradient = named[name].grad
            part.grad = self._slice(gradient) if gradient is not None else None
        norm = self._norm([part.grad for part in mine.values() if part.grad is not None])
        skipped = not math.isfinite(norm)
        if not skipped:
            if 0 < max_norm < norm:
                for part in mine.values():
                    if part.grad is not None:
                        part.grad.mul_(max_norm / (norm + 1e-6))
            optimizer.step()
            self._refill(model)
        optimizer.zero_grad(set_to_none=True)
        model.zero_grad(set_to_none=True)
        return StepResult(grad_norm=norm, skipped=skipped)

    def _norm(self, parts: list[torch.Tensor]) -> float:
        squares = sum(float(part.double().square().sum()) for part in parts)
        return math.sqrt(self.all_reduce(squares, "sum"))

    def _refill(self, model: torch.nn.Module) -> None:
        """Every parameter from the slices of all ranks."""
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, part in self._slices[model].items():
                named[name].copy_(self.all_gather(part.detach()).view(named[name].shape))

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of a flattened tensor; the last ranks' may be shorter, or empty."""
        size = -(-tensor.numel() // self.world.world_size)
        return tensor.reshape(-1)[self.world.rank * size : (self.world.rank + 1) * size]

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        if any(sharded_modules(model)):
            yield from export_sharded(model, dtype=dtype, max_bytes=max_bytes)
            return
        names = tied_names(model)
        sized = ((item, item[1].numel() * (dtype or item[1].dtype).itemsize) for item in model.named_parameters())
        for bucket in in_buckets(sized, max_bytes=max_bytes):
            yield [Weight(names[name], parameter.detach().to(dtype or parameter.dtype)) for name, parameter in bucket]

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        mine: dict[str, Any] = {
            name: {"weight": part.detach(), **optimizer.state.get(part, {})} for name, part in self._slices[model].items()
        }
        torch.save(mine, folder / f"{self.world.rank}.pt")
        if self.is_rank_0:
            torch.save({"groups": optimizer.state_dict()["param_groups"], "ranks": self.world.world_size}, folder / "common.pt")

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        common = torch.load(folder / "common.pt", weights_only=True)
        saved = [torch.load(folder / f"{rank}.pt", weights_only=True, map_location="cpu") for rank in range(common["ranks"])]
        for group, values in zip(optimizer.param_groups, common["groups"], strict=True):
            group |= {name: value for name, value in values.items() if name != "params"}
        for name, part in self._slices[model].items():
            values = {key: self._dealt([parts[name][key] for parts in saved]) for key in saved[0][name]}
            with torch.no_grad():
                part.copy_(values.pop("weight"))
            optimizer.state.pop(part, None)
            if values:
                optimizer.state[part] = {key: value.to(part.device) if value.dim() else value for key, value in values.items()}
        self._refill(model)

    def _dealt(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """What this rank holds of what those ranks held; a count of steps, which has no dimension, is the same on each."""
        return self._slice(torch.cat(parts)).clone() if parts[0].dim() else parts[0]

    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        device = torch.device("cpu") if to == "cpu" else self.world.device
        for state in optimizer.state.values():
            state |= {name: value.to(device, copy=True) for name, value in state.items() if value.dim() > 0}
