"""Values across ranks: reductions, ragged gathers and agreement on errors; nothing writes into its input.

Every function here is collective over `group` (the same calls in the same order on each of its ranks); `group` None means one rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from lightrft.errors import PeerError

ReduceOp = Literal["mean", "sum", "max", "min"]
Group = dist.ProcessGroup | None
T = TypeVar("T")

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the newer name of the same, from torch 2.13 on
_OPS = {"mean": dist.ReduceOp.SUM, "sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def all_reduce(data: Any, *, op: ReduceOp, group: Group, device: torch.device) -> Any:
    """Reduces a tensor, a number, or a (nested) mapping of them, element by element over the ranks.

    Returns the same shape of thing: tensors on their own device and of their own dtype (integer tensors become float32 for the mean),
    numbers as Python numbers (the mean as float). Mappings are reduced in the order of their sorted keys.

    Raises:
        ValueError: unknown `op`, or a value that is neither.
    """
    if op not in _OPS:
        raise ValueError(f"op={op!r}; possible: {', '.join(_OPS)}")
    if isinstance(data, Mapping):
        return {key: all_reduce(data[key], op=op, group=group, device=device) for key in sorted(data)}
    if isinstance(data, (bool, int, float)):
        dtype = torch.int64 if isinstance(data, (bool, int)) and op != "mean" else torch.float64
        return _reduce(torch.tensor(data, dtype=dtype), op, group, device).item()
    if isinstance(data, torch.Tensor):
        work = data.float() if op == "mean" and not data.is_floating_point() else data
        return _reduce(work, op, group, device).to(data.device)
    raise ValueError(f"cannot reduce a {type(data).__name__}; give a tensor, a number or a mapping of them")


def all_gather(data: Any, *, group: Group, device: torch.device) -> Any:
    """Gathers in rank order: a tensor [k, ...] is concatenated along its first dimension (k may differ from rank to rank), a 0-d tensor
    becomes [world]; a number becomes a list of numbers; a (nested) mapping is gathered value by value, in the order of its sorted keys.

    Raises:
        ValueError: a value that is neither.
    """
    if isinstance(data, Mapping):
        return {key: all_gather(data[key], group=group, device=device) for key in sorted(data)}
    if isinstance(data, (bool, int, float)):
        return gather_objects(data, group=group)
    if isinstance(data, torch.Tensor):
        rows = data.detach().reshape(1) if data.dim() == 0 else data.detach()
        return torch.cat(_gather_ragged(rows, group, device)).to(data.device)
    raise ValueError(f"cannot gather a {type(data).__name__}; give a tensor, a number or a mapping of them")


def gather_rows(row: torch.Tensor, *, group: Group) -> torch.Tensor:
    """A CPU tensor [K] of each rank, K the same on all, as [world, K] in rank order: one message."""
    if group is None:
        return row[None]
    rows = row.new_empty(dist.get_world_size(group) * len(row))
    _all_gather(rows, row, group=group)
    return rows.view(-1, len(row))


def gather_ragged(rows: torch.Tensor, *, group: Group) -> list[torch.Tensor]:
    """A CPU tensor [k, ...] of each rank, k its own, in rank order: two messages."""
    if group is None:
        return [rows]
    lengths = gather_rows(torch.tensor([len(rows)]), group=group)[:, 0].tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    every = gather_rows(padded.flatten(), group=group).view(len(lengths), *padded.shape)
    return [part[:length] for part, length in zip(every, lengths, strict=True)]


def gather_objects(data: T, *, group: Group) -> list[T]:
    """One picklable object of each rank, in rank order, on every rank. For small things."""
    if group is None:
        return [data]
    out: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(out, data, group=group)
    return out


def broadcast_object(data: T, *, source: int, group: Group) -> T:
    """The picklable object of the group's rank `source`, on every rank."""
    if group is None:
        return data
    box = [data]
    dist.broadcast_object_list(box, group_src=source, group=group)
    return box[0]


TOGETHER = "lightrft_raised_together"
"""The mark of an error that the other ranks of its group have heard of, whatever its class; theirs is a PeerError."""


def agree(error: BaseException | None, *, group: Group, doing: str) -> None:
    """Raises on all ranks if any rank brings an error: its own where it happened, a PeerError that names the first such rank elsewhere."""
    raise_together(error, gather_objects(in_words(error), group=group), doing=doing)


def in_words(error: BaseException | None) -> str | None:
    """What other ranks are told of an error."""
    return None if error is None else f"{type(error).__name__}: {error}"


def raise_together(error: BaseException | None, words: Sequence[str | None], *, doing: str) -> None:
    """The end of `agree`, where `words` of all ranks have come already, with something else. Not collective."""
    if error is not None:
        setattr(error, TOGETHER, True)
        raise error
    found = [(rank, text) for rank, text in enumerate(words) if text is not None]
    if found:
        raise PeerError(f"{doing} failed on rank {found[0][0]} of its group: {found[0][1]}")


def gather_to_first(tensor: torch.Tensor, *, group: Group) -> list[torch.Tensor]:
    """Ragged 1-d CPU tensors of one dtype: all of them, in rank order, on the group's first rank; an empty list elsewhere."""
    if group is None:
        return [tensor]
    sizes = gather_objects(tensor.numel(), group=group)
    widest = max(sizes)
    first = dist.get_rank(group) == 0
    if widest == 0:
        return [tensor.new_empty(0) for _ in sizes] if first else []
    padded = tensor.new_zeros(widest)
    padded[: tensor.numel()] = tensor
    rows = [torch.empty_like(padded) for _ in sizes] if first else None
    dist.gather(padded, rows, group=group, group_dst=0)
    return [row[:size] for row, size in zip(rows, sizes, strict=True)] if rows else []


def scatter_from_first(tensors: Sequence[torch.Tensor], *, dtype: torch.dtype, group: Group) -> torch.Tensor:
    """The reverse: the first rank gives one 1-d CPU tensor for each rank of the group (others give nothing), each rank gets its own."""
    if group is None:
        return tensors[0]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sizes = broadcast_object([t.numel() for t in tensors] if rank == 0 else [0] * size, source=0, group=group)
    widest = max(sizes)
    mine = torch.zeros(widest, dtype=dtype)
    if widest == 0:
        return mine
    rows = [torch.nn.functional.pad(t, (0, widest - t.numel())) for t in tensors] if rank == 0 else None
    dist.scatter(mine, rows, group=group, group_src=0)
    return mine[: sizes[rank]]


def _reduce(tensor: torch.Tensor, op: ReduceOp, group: Group, device: torch.device) -> torch.Tensor:
    out = tensor.detach().to(device, copy=True)
    if group is not None:
        dist.all_reduce(out, op=_OPS[op], group=group)
        if op == "mean":
            out /= dist.get_world_size(group)
    return out


def _gather_ragged(rows: torch.Tensor, group: Group, device: torch.device) -> list[torch.Tensor]:
    if group is None:
        return [rows.clone()]
    lengths = gather_objects(rows.shape[0], group=group)
    padded = torch.zeros((max(lengths), *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: rows.shape[0]] = rows
    out = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(out, padded, group=group)
    return [part[:length] for part, length in zip(out, lengths, strict=True)]
