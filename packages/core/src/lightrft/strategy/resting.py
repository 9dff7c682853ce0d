"""Frozen models that rest in host memory: their parameters are on the device only while somebody goes through the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class Rest:
    """Of one model, a plain one or one of `fully_shard`. From now on its parameters lie in host memory, pinned where there is CUDA.

    `begin` copies them to the device and `end` takes the copies away; the values in host memory stay, so nothing travels back, and what is
    written to the copies is lost. Pairs of calls may be nested: the outermost one counts. A forward pass outside of any is one by itself.
    Buffers stay where they are. Nothing here is collective.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._at_work = 0
        self._host: dict[str, torch.Tensor] = {}
        _place(model, {name: _host_copy(p) for name, p in model.named_parameters()})
        model.register_forward_pre_hook(lambda module, inputs: self.begin(module), prepend=True)  # before FSDP's, which gathers
        model.register_forward_hook(lambda module, inputs, outputs: self.end(module), always_call=True)

    def begin(self, model: nn.Module) -> None:
        """The parameters are on the device until `end`."""
        if not self._at_work:
            host = {name: p.detach() for name, p in model.named_parameters()}
            _place(model, {name: _device_copy(value, self._device) for name, value in host.items()})
            self._host = host
        self._at_work += 1

    def end(self, model: nn.Module) -> None:
        """The reverse. Nothing happens where `begin` failed."""
        if self._at_work == 1:
            _place(model, self._host)
            self._host = {}
        self._at_work = max(0, self._at_work - 1)


class FrozenSide:
    """What `StrategyBase` does with frozen models that rest."""

    _resting: WeakKeyDictionary[nn.Module, Rest]

    def _rest(self, model: nn.Module, device: torch.device) -> None:
        self._resting[model] = Rest(model, device)

    @contextmanager
    def on_device(self, model: nn.Module) -> Iterator[None]:
        """Within the block, a frozen model that rests in host memory (`offload_frozen`) has its parameters on the device. Not collective.

        For several passes: outside of a block each brings the parameters and takes them away by itself. Blocks may be nested. The values
        in host memory are the ones that stay: change a frozen model outside of a block. Nothing to do for any other model.

        Example::

            >>> import lightrft
            >>> import torch
            >>> settings = {"model_name_or_path": "model", "strategy": "single", "kl_coef": 0.1, "offload_frozen": True}
            >>> config = lightrft.make_config(settings)
            >>> strategy = lightrft.get_strategy(config)
            >>> reference = lightrft.build_initial_model(config, strategy, model_path="model")
            >>> with strategy.on_device(reference):
            ...     passes = [reference(input_ids=torch.tensor([[1, 2, 3]])).logits for _ in range(4)]
            >>> strategy.shutdown()
        """
        rest = self._resting.get(model)
        if rest is None:
            yield
            return
        rest.begin(model)
        try:
            yield
        finally:
            rest.end(model)


@torch.no_grad()
def _place(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Gives each parameter the tensor of its name; FSDP takes notice of what comes by `_apply`."""
    of = {id(p): values[name] for name, p in model.named_parameters()}
    apply: Any = model._apply
    apply(lambda tensor: of.get(id(tensor), tensor))


@torch.no_grad()
def _host_copy(parameter: torch.Tensor) -> torch.Tensor:
    pinned = torch.cuda.is_available()
    shard = _local(parameter)
    copy = torch.empty(shard.shape, dtype=shard.dtype, device="cpu", pin_memory=pinned).copy_(shard)
    if not isinstance(parameter, DTensor):
        return copy
    whole: Any = torch.empty_like(parameter, device="cpu")  # `from_local` would take the copy back to the mesh's device
    whole._local_tensor = copy
    return whole  # type: ignore[no-any-return]


@torch.no_grad()
def _device_copy(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    copy = torch.empty_like(host, device=device)
    _local(copy).copy_(_local(host), non_blocking=True)
    return copy


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
