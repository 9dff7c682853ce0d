"""One process that trains with plain torch: the oracle that every backend is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch

from lightrft.distributed.world import World
from lightrft.errors import CapabilityError
from lightrft.strategy.sharding import hold_in_bfloat16
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.weights.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft.weights.lora_merge import is_adapter
from lightrft.weights.safetensors_reader import WeightFiles

STATE = "state.pt"


class SingleStrategy(StrategyBase):
    """See `StrategyBase`. One rank; trained parameters in float32, also under `bf16`, where passes go through torch's autocast: products
    in bfloat16, gradients added up in float32. Nothing is wrapped.
    """

    def _join_world(self) -> World:
        world = World.join(need_group=False)
        if world.world_size > 1:
            raise CapabilityError(
                f"strategy {self.spec.name!r} is one process, started on {world.world_size} ranks; use --fsdp, or one rank"
            )
        return world

    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        if weights is not None:
            weights.fill(model)
        if self.config.bf16:
            hold_in_bfloat16(model)
        return model.to(self.world.device)

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        if weights is not None:
            weights.fill(model)
        model = model.to(self.world.device).float()
        if self.config.bf16:
            self._autocast(model)
        return model, settings.over(model)

    def _autocast(self, model: torch.nn.Module) -> None:
        """Passes of the model compute in bfloat16 from now on; recomputation in the backward pass does as its pass did."""
        forward = model.forward

        @wraps(forward)
        def in_bfloat16(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(self.world.device.type, dtype=torch.bfloat16):
                return forward(*args, **kwargs)

        model.forward = in_bfloat16

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        torch.autograd.backward(loss)

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        grad_norm = norm.item()
        skipped = not math.isfinite(grad_norm)
        if not skipped:
            if max_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm=grad_norm, skipped=skipped)

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        names = tied_names(model)
        sized = ((item, item[1].numel() * (dtype or item[1].dtype).itemsize) for item in model.named_parameters())
        for bucket in in_buckets(sized, max_bytes=max_bytes):
            yield [Weight(names[name], parameter.detach().to(dtype or parameter.dtype)) for name, parameter in bucket]

    def _export_adapters(self, model: torch.nn.Module, max_bytes: int) -> Iterator[WeightBucket]:
        sized = ((item, item[1].numel() * item[1].itemsize) for item in model.named_parameters() if is_adapter(item[0]))
        for bucket in in_buckets(sized, max_bytes=max_bytes):
            yield [Weight((name,), parameter.detach()) for name, parameter in bucket]

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / STATE)

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        device = torch.device("cpu") if to == "cpu" else self.world.device
        for state in optimizer.state.values():
            state |= {name: value.to(device, copy=True) for name, value in state.items() if value.dim() > 0}  # not the count of steps
