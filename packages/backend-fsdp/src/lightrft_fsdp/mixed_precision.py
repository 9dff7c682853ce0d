"""Trains bfloat16 parameters without losing small updates. AdamW steps on float32 masters, which are then rounded.

Everything is computed as under `bf16` alone, where the parameters themselves are float32, so both train the same model, bit by bit. What
differs is where float32 is held: here in the optimizer's state, which `fsdp_cpu_offload` moves to the host between updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from lightrft.strategy.strategy_base import AdamWSettings
from lightrft_fsdp.gradients import keep_float32
from lightrft_fsdp.shards import cut_as, local

MASTER = "master"


class MixedPrecisionAdamW(torch.optim.Optimizer):
    """AdamW over the trained parameters of a model that `shard` has sharded and that has its float32 values.

    Rounds the model's parameters to bfloat16, in place, and keeps its float32 values as `state[parameter]["master"]`, sharded as the
    parameter is. The moments, made by the first step, have the names that torch's AdamW gives them.
    """

    def __init__(self, model: torch.nn.Module, settings: AdamWSettings) -> None:
        masters = {p: p.detach() for p in model.parameters() if p.requires_grad}
        assert all(isinstance(m, DTensor) and m.dtype is torch.float32 for m in masters.values())
        masters = {p: cut_as(p, local(m)) for p, m in masters.items()}
        apply: Any = model._apply  # as `fill_shards`; buffers stay: rotary frequencies lose too much in bfloat16
        apply(lambda tensor: tensor.to(torch.bfloat16) if isinstance(tensor, DTensor) else tensor)
        keep_float32(model)
        defaults = {
            "lr": settings.learning_rate,
            "betas": settings.betas,
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
        }
        super().__init__(list(masters), defaults)
        for parameter, master in masters.items():
            self.state[parameter] = {"step": torch.tensor(0.0), MASTER: master}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # there is no loss to return
        """One step of torch's AdamW on the masters of the parameters that have gradients; then these are rounded again."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self._state_of(p) for p in parameters]
            masters = [local(state[MASTER]) for state in states]
            adamw(
                masters,
                [local(p.grad) for p in parameters],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                [],
                [state["step"] for state in states],
                foreach=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            torch._foreach_copy_([local(p) for p in parameters], masters)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = cut_as(parameter, torch.zeros_like(local(state[MASTER])))
        return state
