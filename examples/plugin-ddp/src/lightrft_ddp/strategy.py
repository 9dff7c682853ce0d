"""The strategy `ddp`: every rank holds the whole model in float32, and torch's DDP reduces gradients during the last backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.parallel import DistributedDataParallel

from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.weights.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft.weights.safetensors_reader import WeightFiles

STATE = "ddp.pt"


class DDPStrategy(StrategyBase):
    """See `StrategyBase`."""

    needs_process_group: ClassVar[bool] = True  # DDP wants one for a single rank as well

    # ---- models --------------------------------------------------------------------------------------------------------------------------

    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        if weights is not None:
            weights.fill(model)
        return model.to(self.world.device)

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        if weights is not None:
            weights.fill(model)
        model = model.to(self.world.device).float()
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self.world.device] if self.world.device.type == "cuda" else None,
            process_group=self.world.group,
            broadcast_buffers=False,  # every rank computes the same ones
            find_unused_parameters=True,  # a parameter that no rank used keeps no gradient, as in one process
        )
        return wrapped, settings.over(model)

    def _unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _shapes(self, model: torch.nn.Module) -> dict[str, list[int]]:
        return super()._shapes(self._unwrap(model))

    # ---- the update ----------------------------------------------------------------------------------------------------------------------

    def _begin_micro_batch(self, model: torch.nn.Module, final: bool) -> None:
        """DDP decides in the forward pass whether the backward pass will reduce: only that of the last micro-batch has to."""
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = final

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        """DDP takes the mean over ranks, the contract asks for the sum.

        What was reduced before is the same on all ranks, and so its own mean: a caller that goes forward without `_begin_micro_batch`
        reduces more often, and gets the same gradient.
        """
        torch.autograd.backward(loss * self.world.world_size)
        if final and isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = True

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        with_gradients = [p for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(p.grad for p in with_gradients if p.grad is not None)
        grad_norm = norm.item()
        skipped = not math.isfinite(grad_norm)  # gradients are the same on all ranks: they skip together
        if not skipped:
            if max_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(with_gradients, max_norm, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm=grad_norm, skipped=skipped)

    # ---- what leaves it ------------------------------------------------------------------------------------------------------------------

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        inner = self._unwrap(model)  # names are those of the Hugging Face model, without DDP's `module.`
        names = tied_names(inner)
        sized = ((item, item[1].numel() * (dtype or item[1].dtype).itemsize) for item in inner.named_parameters())
        for bucket in in_buckets(sized, max_bytes=max_bytes):
            yield [Weight(names[name], parameter.detach().to(dtype or parameter.dtype)) for name, parameter in bucket]

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        if self.is_rank_0:  # all ranks hold the same
            torch.save({"model": self._unwrap(model).state_dict(), "optimizer": optimizer.state_dict()}, folder / STATE)

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        self._unwrap(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
