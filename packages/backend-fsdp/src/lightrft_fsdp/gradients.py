"""Keeps the gradients of bfloat16 parameters in float32, in which they were reduced.

FSDP2 reduces in `MixedPrecisionPolicy.reduce_dtype`, but then rounds to the dtype of the sharded parameter (torch 2.13, `foreach_reduce`:
`_to_dtype_if_needed(reduce_output, orig_dtype)`). The policy has no setting for it, and `Tensor.grad_dtype` by itself comes too late: it
decides what may be assigned, not what FSDP2 assigns. Measured on the tiny model: the rounding moves a gradient by up to 2^-9 of itself,
and every further reduction of a step is added up in bfloat16. So two public hooks catch the float32 sum before the rounding and put it in
the place of what was rounded. To be removed once FSDP2 itself goes by `grad_dtype`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from lightrft.strategy.sharding import sharded_modules
from lightrft_fsdp.shards import cut_as, local


def keep_float32(model: torch.nn.Module) -> None:
    """From now on `p.grad` of every trained parameter of a model that `shard` has sharded is float32, whatever the parameter's dtype."""
    known: set[Parameter] = set()
    for module in reversed(list(sharded_modules(model))):  # an inner one before the one around it: parameters belong to the innermost
        assert isinstance(module, torch.nn.Module)
        own = [p for p in module.parameters() if p not in known and p.requires_grad]
        known.update(own)
        reduced = _Reduced(own)
        module.set_all_reduce_hook(reduced.arrive)
        for parameter in own:
            parameter.grad_dtype = None  # any
            parameter.register_post_accumulate_grad_hook(reduced.put)  # type: ignore[no-untyped-call]


class _Reduced:
    """The gradients of one group of `fully_shard` between reduction and rounding.

    FSDP2 calls `arrive` with this rank's part of the sums, flat, then `put` for each parameter that has a gradient, in the order of the
    flat tensor, in which every parameter has as many rows as the rank with most of it.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        self._flat: torch.Tensor | None = None
        self._begin = 0
        self._before: dict[Parameter, torch.Tensor] = {}

    def arrive(self, flat: torch.Tensor) -> None:
        assert flat.dtype is torch.float32 and self._flat is None
        self._flat, self._begin = flat, 0
        for parameter in self._parameters:
            if parameter.grad is not None:  # of an earlier reduction; FSDP2 would add to it what it rounded
                self._before[parameter] = local(parameter.grad)
                parameter.grad = None

    @torch.no_grad()
    def put(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, Parameter) and isinstance(parameter, DTensor) and self._flat is not None
        rounded = parameter.to_local()
        exact = self._flat[self._begin : self._begin + rounded.numel()].view(rounded.shape)
        if parameter in self._before:
            exact += self._before.pop(parameter)
        parameter.grad = cut_as(parameter, exact)
        self._begin += -(-parameter.shape[0] // parameter.device_mesh.size()) * parameter.shape[1:].numel()
        if self._begin == self._flat.numel():
            self._flat = None  # its memory is the gradients' alone
