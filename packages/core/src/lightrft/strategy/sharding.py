"""The parts of a model that `fully_shard` shards, and the ranks. Each block by itself, the rest with the root.

Along dimension 0. Here and not in a backend, because frozen models are sharded so under every backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lightrft.distributed.world import World
from lightrft.errors import ModelError

Kept = Literal["nothing", "root", "all"]


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers to shard one by one: those of a class that the model says must not be split, else the largest list of modules.

    Raises:
        ModelError: there is neither.
    """
    lists: list[nn.ModuleList] = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    named = {name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())}
    blocks = [layer for layers in lists for layer in layers if type(layer).__name__ in named]
    if blocks:
        return blocks
    if lists:
        sizes = [sum(p.numel() for p in layers.parameters()) for layers in lists]
        return list(lists[sizes.index(max(sizes))])
    raise ModelError(
        f"{type(model).__name__} has no blocks to shard: looked for layers of the classes in `_no_split_modules` "
        f"({', '.join(sorted(named)) or 'none named'}) inside a torch.nn.ModuleList, and for any non-empty ModuleList"
    )


def shard(model: nn.Module, *, mesh: DeviceMesh, bf16: bool, keep_for_backward: Kept = "nothing") -> nn.Module:
    """Shards in place over a 1-d mesh and moves to its device; gradients are summed, in float32.

    Everything is resharded after each forward, the root included: a root left whole would hold memory while the engine generates, and a
    later forward would see weights from before a step. `keep_for_backward` excepts passes with gradients, whose backward then does not
    gather it again ("root": what no block holds, the head among it, which it needs first), and reshards; call `reshard` where such a pass
    may have had no backward.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    for block in reversed(find_blocks(model)):  # an inner block before the one around it
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no reduction that divides
    if keep_for_backward != "nothing":
        model.register_forward_pre_hook(partial(_choose_reshard, blocks=keep_for_backward == "all"))
    return model


def reshard(model: nn.Module) -> None:
    """Frees every gathered parameter: what is read next is the shards. Not collective; nothing to do where nothing is gathered."""
    for module in sharded_modules(model):
        module.reshard()


def _choose_reshard(model: nn.Module, _inputs: object, *, blocks: bool) -> None:
    assert isinstance(model, FSDPModule)
    model.set_reshard_after_forward(not torch.is_grad_enabled(), recurse=blocks)


def shard_frozen(model: nn.Module, *, mesh: DeviceMesh, bf16: bool) -> nn.Module:
    """`shard` for a model without gradients: with `bf16` its parameters are held in bfloat16."""
    if bf16:
        hold_in_bfloat16(model)
    return shard(model, mesh=mesh, bf16=bf16)


def hold_in_bfloat16(model: nn.Module) -> None:
    """Rounds the parameters of a frozen model; not buffers: rotary frequencies lose too much in bfloat16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """Every module that `fully_shard` was called on."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


class Meshes:
    """The 1-d meshes of neighbouring ranks, made on first use."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made: dict[int, DeviceMesh] = {}

    def of(self, size: int) -> DeviceMesh:
        """The mesh of this rank's `size` neighbours; `size` divides the world. Collective, the first time for each size."""
        if size not in self._made:
            kind = self._world.device.type
            if size == self._world.world_size:
                self._made[size] = init_device_mesh(kind, (size,))
            else:
                grid = init_device_mesh(kind, (self._world.world_size // size, size), mesh_dim_names=("copy", "shard"))
                self._made[size] = grid["shard"]
        return self._made[size]
