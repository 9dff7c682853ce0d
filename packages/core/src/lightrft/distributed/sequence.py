"""The parts of packed rows that the ranks of a sequence hold, and the exchange around attention (Ulysses).

A row of S tokens is padded to a multiple of the ranks and divided into equal contiguous parts. Attention alone needs
whole sequences: before it, an all-to-all turns "all heads of my tokens" into "all tokens of my heads", after it back
(DeepSpeed Ulysses, arXiv:2309.14509). What is collective here is so over `axis`; an axis of one rank changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
import torch.distributed as dist

from lightrft.distributed.collectives import gather_objects
from lightrft.distributed.mesh import Axis
from lightrft.errors import PeerError

# ---- rows into parts and back -----------------------------------------------------------------------------------


def padded_length(length: int, axis: Axis) -> int:
    """The least multiple of the axis's size that is at least `length`, and at least one token for each rank."""
    return max(-(-length // axis.size), 1) * axis.size


def padded_offsets(offsets: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Borders [K + 1] of a row's segments with its padding as a further segment, where there is any.

    No token of a sequence sees the padding, however short the sequence: even one of fewer tokens than ranks.
    """
    length = int(offsets[-1])
    full = padded_length(length, axis)
    return offsets if full == length else torch.cat([offsets, offsets.new_tensor([full])])


def shard(column: torch.Tensor, axis: Axis) -> torch.Tensor:
    """This rank's part [..., s] of a column [..., S] of the row, its padding filled with zeros. Not collective.

    Columns are those of the whole row on every rank of the axis: labels are shifted before they come here, so that
    the label of a part's last token is not lost.
    """
    full = padded_length(column.shape[-1], axis)
    padded = torch.nn.functional.pad(column, (0, full - column.shape[-1]))
    part = full // axis.size
    return padded[..., axis.rank * part : (axis.rank + 1) * part].contiguous()


def gather(part: torch.Tensor, length: int, axis: Axis) -> torch.Tensor:
    """The inverse: the column [..., S] of the whole row, on every rank, from the parts [..., s]. Collective.

    Differentiable under one condition: every rank of the axis computes the same loss from the result. The gradient of
    a part is then that of this rank's own copy, without communication, and parameters get each token's gradient once.
    """
    if axis.size == 1:
        return part[..., :length]
    whole: torch.Tensor = _Gather.apply(part, axis)  # type: ignore[no-untyped-call]
    return whole[..., :length]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, axis: Axis) -> torch.Tensor:
        ctx.axis = axis
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(axis.size)]
        dist.all_gather(parts, part, group=axis.group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].chunk(ctx.axis.size, dim=-1)[ctx.axis.rank], None


def check_in_step(rows: Sequence[torch.Tensor], axis: Axis, *, doing: str) -> None:
    """Raises where the ranks of the axis are about to work on different rows: integer tensors, the row's offsets among
    them. Collective, one small message; for once a pass, not for each micro-batch.

    Raises:
        PeerError: on every rank, naming the first rank that differs from the axis's first.
    """
    if axis.size == 1:
        return
    found = gather_objects(_digest(rows), group=axis.group)
    different = [axis.ranks[i] for i, digest in enumerate(found) if digest != found[0]]
    if different:
        raise PeerError(
            f"{doing}: rank {different[0]} has other rows than rank {axis.ranks[0]}, with which it shares sequences (sp_size="
            f"{axis.size}): {found[axis.ranks.index(different[0])]} and {found[0]} as (rows, tokens, checksum)"
        )


def _digest(rows: Sequence[torch.Tensor]) -> tuple[int, int, int]:
    """(number, elements, checksum that depends on every element and its place)."""
    checksum = 0
    for row in rows:
        flat = row.detach().reshape(-1).to(torch.int64)
        places = torch.arange(1, flat.numel() + 1, device=flat.device)
        checksum = (checksum * 1_000_003 + int(((flat + 1) * (places * 2_654_435_761 % 2**31)).sum())) % 2**61
    return len(rows), sum(row.numel() for row in rows), checksum


# ---- around attention -------------------------------------------------------------------------------------------


def to_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, axis: Axis) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[1, heads, s, D] of all heads and this rank's tokens -> [1, heads / size, S, D] of all tokens. One collective.

    Key-value heads that the ranks do not divide are repeated as often as needed; autograd adds the copies up.

    Raises:
        ValueError: the ranks do not divide the query heads.
    """
    heads, size = query.shape[1], axis.size
    if heads % size:
        possible = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ValueError(f"sp_size={size} does not divide the {heads} attention heads of the model; possible: {possible}")
    times = size // gcd(key.shape[1], size)
    key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    tensors = [x.squeeze(0).reshape(size, -1, *x.shape[2:]) for x in (query, key, value)]
    sent = torch.cat([x.flatten(1) for x in tensors], dim=1)
    came = torch.split(_exchange(sent, axis), [x[0].numel() for x in tensors], dim=1)
    whole = [part.reshape(x.shape).transpose(0, 1).flatten(1, 2).unsqueeze(0) for part, x in zip(came, tensors, strict=True)]
    return whole[0], whole[1], whole[2]


def to_tokens(out: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The reverse for one tensor: [1, heads / size, S, D] -> [1, heads, s, D]. Collective."""
    parts = torch.stack(out.squeeze(0).chunk(axis.size, dim=1))  # [size, heads / size, s, D]
    return _exchange(parts, axis).flatten(0, 1).unsqueeze(0)


def my_heads(per_head: torch.Tensor, axis: Axis) -> torch.Tensor:
    """This rank's [heads / size] of a value [heads] that each query head has. Not collective."""
    return per_head.chunk(axis.size)[axis.rank]


def _exchange(slots: torch.Tensor, axis: Axis) -> torch.Tensor:
    """[size, ...]: slot i goes to the axis's rank i, and comes from it."""
    came: torch.Tensor = _AllToAll.apply(slots, axis.group)  # type: ignore[no-untyped-call]
    return came


class _AllToAll(torch.autograd.Function):
    """Its own adjoint."""

    @staticmethod
    def forward(ctx: Any, slots: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _all_to_all(slots, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_to_all(gradients[0], ctx.group), None


def _all_to_all(slots: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    # Contiguous before `empty_like`, which keeps the strides of what is not: the collective would fill it in another order.
    slots = slots.contiguous()
    came = torch.empty_like(slots)
    dist.all_to_all_single(came, slots, group=group)
    return came
