"""Makes a ZeRO-3 model of a model without values. Each parameter is sharded while it is empty; then each rank reads its own part."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.weights.buckets import tied_names
from lightrft.weights.safetensors_reader import WeightFiles
from lightrft_deepspeed.fragments import Fragment, frozen, set_masters
from lightrft_deepspeed.runtime import deepspeed


def shard_empty(model: torch.nn.Module, *, settings: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    """In place: parameters on the meta device become ZeRO-3's, one after the other, tied ones once. `fill` gives them values.

    What `deepspeed.zero.Init(module=...)` does, but for its broadcast of each parameter from rank 0: there is nothing to send.
    """
    # Over an empty module: its constructor also swaps in DeepSpeed's linear function, which keeps no gathered weight for the backward pass.
    init = deepspeed.zero.Init(module=torch.nn.Module(), config_dict_or_path=settings, dtype=dtype)
    for parameter in list(model.parameters()):
        whole = torch.nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), requires_grad=parameter.requires_grad)
        # The same object with other contents, so ties stay; `.data` cannot leave the meta device.
        torch.utils.swap_tensors(parameter, whole)  # type: ignore[no-untyped-call]  # torch does not annotate it
        init._convert_to_deepspeed_param(parameter)
        zero: Any = parameter
        zero.partition()
    for buffer in model.buffers():  # DeepSpeed moves no model that it finds sharded
        buffer.data = buffer.data.to(device)


@torch.no_grad()
def fill(engine: Any, weights: WeightFiles) -> None:
    """Reads this rank's part of every parameter, in float32 where it is trained, also under bf16. Not collective."""
    names = tied_names(engine.module)
    shapes = {name: p.ds_shape for name, p in engine.module.named_parameters()}
    for fragment in frozen(engine):
        fragment.of(fragment.master).copy_(_elements(weights, fragment, names[fragment.name], shapes[fragment.name]))
    set_masters(engine, lambda f: _elements(weights, f, names[f.name], shapes[f.name]))


def _elements(weights: WeightFiles, fragment: Fragment, names: tuple[str, ...], shape: torch.Size) -> torch.Tensor:
    """The rows that hold them are read: at most two rows too many."""
    row = shape[1:].numel()
    first, last = fragment.first // row, -(-(fragment.first + fragment.length) // row)
    skipped = fragment.first - first * row
    return weights.rows(names, first, last).reshape(-1)[skipped : skipped + fragment.length]
