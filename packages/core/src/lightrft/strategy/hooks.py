"""What a training backend writes. Hooks: the public methods of `StrategyBase` validate and guard, then call one of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from lightrft.distributed.world import World
from lightrft.plugins.specs import StrategySpec
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.lora_merge import is_adapter
from lightrft.weights.safetensors_reader import WeightFiles

Optimizer = torch.optim.Optimizer
Scheduler = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """The optimizer that `prepare_trainable` makes (decoupled weight decay, Loshchilov & Hutter 2019, on every trained parameter)."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def over(self, model: torch.nn.Module, *, foreach: bool | None = None) -> torch.optim.AdamW:
        """torch's AdamW over the parameters of `model` that require gradients."""
        return torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            foreach=foreach,
        )


@dataclass(frozen=True)
class StepResult:
    """What a step did: the global gradient norm before clipping (the same on every rank), and whether the step was skipped."""

    grad_norm: float
    skipped: bool


class StrategyHooks(ABC):
    """What is abstract has to be written, the rest has a default. Every hook is *collective* but `_describe`, `_unwrap` and `_shapes`."""

    needs_process_group: ClassVar[bool] = False
    """Whether the backend needs a process group even for one rank, as torch's DDP and FSDP do."""

    world: World
    """`rank`, `world_size`, `local_rank`, `device` (of this rank), and `group`: None where one rank runs without a process group."""

    spec: StrategySpec

    def _join_world(self) -> World:
        """Joins the ranks; override for a backend that starts the process group itself."""
        return World.join(need_group=self.needs_process_group)

    def _leave_world(self) -> None:
        """The reverse, idempotent; override for a backend that keeps groups of its own."""
        self.world.leave()

    @abstractmethod
    def _prepare_frozen(self, model: torch.nn.Module, shard_size: int | None, weights: WeightFiles | None) -> torch.nn.Module:
        """Returns the model ready for forward passes, on the device. `model` is in eval mode without gradients; `shard_size` divides the
        world.

        With `weights` its parameters are on the meta device; `weights.fill(model)` is the plain way to give it all of them.
        """

    @abstractmethod
    def _prepare_trainable(
        self, model: torch.nn.Module, settings: AdamWSettings, weights: WeightFiles | None
    ) -> tuple[torch.nn.Module, Optimizer]:
        """Returns the model that is trained, and `settings` as an optimizer over those of its parameters that require gradients.

        `model` is in eval mode (no dropout) and has such parameters; `weights` as in `_prepare_frozen`. What is returned is what the other
        hooks are given.
        """

    def _begin_micro_batch(self, model: torch.nn.Module, final: bool) -> None:  # noqa: B027  # a default, not a method to write
        """Called before the forward pass of each micro-batch of `accumulate`, with the `final` that its `_backward` will have.

        Override where the forward decides on communication, as that of torch's DDP does (`require_backward_grad_sync`). A caller that goes
        forward by itself and calls `backward` comes without it.
        """

    @abstractmethod
    def _backward(self, loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, final: bool) -> None:
        """Adds the gradient of `loss`, a scalar, this rank's loss share: gradients are summed over micro-batches and ranks, not averaged.

        `final` says that no micro-batch follows before the step; every rank makes the same number of calls.
        """

    @abstractmethod
    def _step(self, optimizer: Optimizer, model: torch.nn.Module, max_norm: float) -> StepResult:
        """Clips the norm over this model and all ranks (`max_norm` 0: not at all), steps, clears the gradients.

        A norm that is not finite skips the step on all ranks together. The result has the norm before clipping.
        """

    @abstractmethod
    def _export_weights(self, model: torch.nn.Module, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
        """Yields every parameter, whole, as buckets of at most `max_bytes` (`in_buckets`), cast to `dtype` before it is gathered (None: its
        own). Collective; a tied parameter once, with all its names (`tied_names`).
        """

    def _export_adapters(self, model: torch.nn.Module, max_bytes: int) -> Iterator[WeightBucket]:
        """The same of the adapters' parameters (`is_adapter`), in their own dtype. Override to gather nothing else: by default all weights
        are gathered, and all but the adapters are dropped.
        """
        for bucket in self._export_weights(model, None, max_bytes):
            yield [weight for weight in bucket if is_adapter(weight.names[0])]

    @abstractmethod
    def _save_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        """Writes model and optimizer into an existing empty folder that all ranks see. Collective."""

    @abstractmethod
    def _load_state(self, folder: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        """The reverse. Collective. The parameters' names were compared before."""

    def _describe(self) -> dict[str, Any]:
        """Override where the backend has settings of its own."""
        return {}

    def _unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Override where `prepare_*` returns a wrapper."""
        return model

    def _shapes(self, model: torch.nn.Module) -> dict[str, list[int]]:
        """Names and full shapes of the parameters. Override where a sharded parameter does not know its full shape."""
        return {name: list(p.shape) for name, p in model.named_parameters()}

    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        """Override together with the capability `optimizer_offload`."""
        raise AssertionError(f"{type(self).__name__} declares optimizer_offload and does not move optimizer state")
