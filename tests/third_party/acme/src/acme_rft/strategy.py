"""How does a third party train? Data parallel by hand: every rank holds the whole model, gradients are summed before the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from lightrft.distributed.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.strategy.weight_files import WeightFiles


class AcmeStrategy(StrategyBase):
    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        if weights is not None:
            weights.fill(model)
        return model.to(self.world.device)

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        if weights is not None:
            weights.fill(model)
        model = model.to(self.world.device)
        return model, settings.over(model)

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        torch.autograd.backward(loss)
        if final:
            for parameter in model.parameters():
                grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self.all_reduce(grad, op="sum")

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf))
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        return StepResult(grad_norm=norm, skipped=not math.isfinite(norm))

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        names = tied_names(model)
        weights = [Weight(names[name], parameter.detach().to(dtype or parameter.dtype)) for name, parameter in model.named_parameters()]
        yield from in_buckets(((w, w.tensor.numel() * w.tensor.element_size()) for w in weights), max_bytes=max_bytes)

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        if self.is_rank_0:
            torch.save([model.state_dict(), optimizer.state_dict()], folder / "acme.pt")

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        weights, state = torch.load(folder / "acme.pt", weights_only=True)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
