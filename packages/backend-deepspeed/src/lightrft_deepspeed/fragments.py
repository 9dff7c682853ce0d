"""The elements of parameters that this rank's optimizer holds: ZeRO's flat partitions, read as fragments of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Fragment:
    """Elements `first` to `first + length` - 1 of a flattened parameter lie in the tensor `master`, from its element `begin` on."""

    name: str
    first: int
    length: int
    master: torch.Tensor
    begin: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fragment's part of a tensor that is sharded as `master` is, such as a moment; shares its memory."""
        return tensor.detach().view(-1)[self.begin : self.begin + self.length]


def masters(engine: Any) -> list[torch.Tensor]:
    """What AdamW steps on: this rank's float32 partitions, at stage 0 the trained parameters themselves."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [p for p in engine.module.parameters() if p.requires_grad]
    if stage == 3:
        return list(zero.fp32_partitioned_groups_flat)
    # Stage 1 under bf16 is another class of DeepSpeed's, with other names for the same.
    return list(zero.fp32_groups_flat_partition if _is_bf16_optimizer(zero) else zero.single_partition_of_fp32_groups)


def trained(engine: Any) -> list[Fragment]:
    """Every part of a trained parameter that this rank's masters hold; of one parameter at most one."""
    names = {id(p): name for name, p in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [Fragment(names[id(p)], 0, p.numel(), p, 0) for p in masters(engine)]
    return list(_of_stage_3(engine, names) if stage == 3 else _of_flat_groups(engine, names))


def frozen(engine: Any) -> list[Fragment]:
    """The same of parameters that are not trained: whole, at stage 3 this rank's part. `master` is what DeepSpeed computes with."""
    named: list[tuple[str, Any]] = [(name, p) for name, p in engine.module.named_parameters() if not p.requires_grad]
    if engine.zero_optimization_stage() < 3:
        return [Fragment(name, 0, p.numel(), p, 0) for name, p in named]
    return [Fragment(name, *_held(p), p.ds_tensor, 0) for name, p in named if _held(p)[1]]


def held_once(engine: Any) -> tuple[list[Fragment], list[Fragment]]:
    """`trained` and `frozen`, but what all ranks hold on rank 0 only: over all ranks each element of each parameter once."""
    stage, is_rank_0 = engine.zero_optimization_stage(), dist.get_rank() == 0
    return trained(engine) if stage or is_rank_0 else [], frozen(engine) if stage == 3 or is_rank_0 else []


@torch.no_grad()
def set_masters(engine: Any, read: Callable[[Fragment], torch.Tensor]) -> None:
    """Gives trained parameters the values of `read` in float32, and then what DeepSpeed computes with. Collective."""
    for fragment in trained(engine):
        fragment.of(fragment.master).copy_(read(fragment))
    masters_to_parameters(engine)


def masters_to_parameters(engine: Any) -> None:
    """Gives the model's parameters the values of the masters, as a step does at its end. Collective at stages 1 and 2."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        for index in range(len(masters(engine))):
            engine.optimizer._reassign_or_swap_out_partitioned_parameters(index)
    elif stage:
        engine.optimizer.update_lp_params()


def _of_flat_groups(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Stages 1 and 2: the parameters of a group one after the other, padded at the end, split into one equal part for each rank."""
    zero = engine.optimizer
    groups = zero.bf16_groups if _is_bf16_optimizer(zero) else zero.bit16_groups  # in order: round_robin_gradients is off
    for master, parameters in zip(masters(engine), groups, strict=True):
        start = dist.get_rank() * master.numel()
        at = 0
        for p in parameters:
            left, right = max(at, start), min(at + p.numel(), start + master.numel())
            if left < right:
                yield Fragment(names[id(p)], left - at, right - left, master, left - start)
            at += p.numel()


def _of_stage_3(engine: Any, names: dict[int, str]) -> Iterator[Fragment]:
    """Each parameter is sharded by itself; this rank's parts follow one another."""
    for master, parameters in zip(masters(engine), engine.optimizer.fp16_groups, strict=True):
        begin = 0
        for p in parameters:
            first, length = _held(p)
            if length:
                yield Fragment(names[id(p)], first, length, master, begin)
            begin += p.partition_numel()


def _held(parameter: Any) -> tuple[int, int]:
    """First element and number of elements of this rank's part at stage 3, without what fills up the last part."""
    size = parameter.partition_numel()
    first = dist.get_rank() * size
    return first, max(0, min(size, parameter.ds_numel - first))


def _is_bf16_optimizer(zero: Any) -> bool:
    return hasattr(zero, "fp32_groups_flat_partition")
