"""The strategy `acme`: data parallel by hand: every rank holds the whole model in float32, gradients are summed once for each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StepResult, StrategyBase
from lightrft.weights.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft.weights.safetensors_reader import WeightFiles

STATE = "acme.pt"


class AcmeStrategy(StrategyBase):
    """See `StrategyBase`: its public methods check and call one of these hooks. It joined the ranks already (`self.world`)."""

    # ---- models --------------------------------------------------------------------------------------------------------------------------

    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        if weights is not None:  # the model is on the meta device
            weights.fill(model)
        return model.to(self.world.device)

    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        if weights is not None:
            weights.fill(model)
        model = model.to(self.world.device).float()
        return model, settings.over(model)

    # ---- the update ----------------------------------------------------------------------------------------------------------------------

    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        torch.autograd.backward(loss)  # this rank's loss share; `_step` sums the ranks' gradients, whatever the number of micro-batches

    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._sum_gradients(parameters)
        with_gradients = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(p.grad for p in with_gradients if p.grad is not None)
        grad_norm = norm.item()
        skipped = not math.isfinite(grad_norm)  # the same number on all ranks: they skip together
        if not skipped:
            if max_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(with_gradients, max_norm, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm=grad_norm, skipped=skipped)

    def _sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """One all-reduce for all of them. A parameter that no rank used has no gradient, as in one process: AdamW leaves it alone."""
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.world.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        summed = self.all_reduce(torch.cat([used, *(grad.flatten() for grad in grads)]), op="sum")
        sizes = [len(parameters), *(p.numel() for p in parameters)]
        num_ranks, *parts = summed.split(sizes)
        for parameter, ranks, part in zip(parameters, num_ranks.tolist(), parts, strict=True):
            parameter.grad = part.view_as(parameter) if ranks else None

    # ---- what leaves it ------------------------------------------------------------------------------------------------------------------

    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        names = tied_names(model)
        sized = ((item, item[1].numel() * (dtype or item[1].dtype).itemsize) for item in model.named_parameters())
        for bucket in in_buckets(sized, max_bytes=max_bytes):
            yield [Weight(names[name], parameter.detach().to(dtype or parameter.dtype)) for name, parameter in bucket]

    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        if self.is_rank_0:  # all ranks hold the same
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / STATE)

    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
