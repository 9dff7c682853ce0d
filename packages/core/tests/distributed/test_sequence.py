"""Rows shared by the ranks of a sequence: parts and back, heads for tokens and back, ranks out of step."""

from __future__ import annotations

import pytest
import torch

from lightrft.distributed.mesh import Axis, Mesh
from lightrft.distributed.sequence import check_in_step, gather, my_heads, padded_length, padded_offsets, shard, to_heads, to_tokens
from lightrft.distributed.world import World
from lightrft.testing import run_spmd
from lightrft.testing.spmd import SpmdError


def rank_of(size: int, rank: int = 0) -> Axis:
    return Axis(ranks=tuple(range(size)), rank=rank, group=None)


@pytest.mark.parametrize(("length", "size", "full"), [(8, 4, 8), (9, 4, 12), (1, 4, 4), (0, 4, 4), (3, 1, 3), (7, 3, 9)])
def test_a_row_is_padded_to_a_multiple_of_the_ranks(length: int, size: int, full: int) -> None:
    assert padded_length(length, rank_of(size)) == full


def test_padding_is_a_segment_of_its_own() -> None:
    offsets = torch.tensor([0, 3, 5], dtype=torch.int32)
    assert padded_offsets(offsets, rank_of(4)).tolist() == [0, 3, 5, 8]
    assert padded_offsets(offsets, rank_of(5)).tolist() == [0, 3, 5]
    assert padded_offsets(offsets, rank_of(4)).dtype is torch.int32


def test_parts_are_contiguous_and_the_last_is_filled_with_zeros() -> None:
    column = torch.arange(1, 6)[None]
    assert [shard(column, rank_of(2, rank)).tolist() for rank in range(2)] == [[[1, 2, 3]], [[4, 5, 0]]]


def test_labels_cross_the_border_of_a_part() -> None:
    """Shifted over the whole row, the label of a part's last token is the next part's first token; shifted after, it is lost."""
    ids = torch.tensor([11, 12, 13, 14])
    labels = torch.tensor([12, 13, 14, -1])
    assert shard(labels, rank_of(2, 0)).tolist() == [12, 13]
    part = shard(ids, rank_of(2, 0))
    assert part[1:].tolist() == [12]  # what there is to shift inside the part: 13 is missing


def there_and_back(size: int, lengths: list[int]) -> list[bool]:
    axis = Mesh.of(World.join(need_group=True), sequence=size).sequence
    found = []
    for length in lengths:
        column = torch.arange(3.0 * length).reshape(3, length)
        found.append(torch.equal(gather(shard(column, axis), length, axis), column))
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_gathering_is_the_inverse_of_sharding(size: int) -> None:
    """Also for rows of fewer tokens than ranks, and of none."""
    assert run_spmd(there_and_back, size, size, [8, 9, 5, 3, 1, 0]) == [[True] * 6] * size


def weights_of_parts() -> list[float]:
    axis = Mesh.of(World.join(need_group=True), sequence=2).sequence
    column = torch.arange(1.0, 6.0)
    part = shard(column, axis).requires_grad_()
    (gather(part, 5, axis) ** 2).sum().backward()
    assert part.grad is not None
    return part.grad.tolist()


def test_each_part_gets_the_gradient_of_the_common_loss_once() -> None:
    assert run_spmd(weights_of_parts, 2) == [[2.0, 4.0, 6.0], [8.0, 10.0, 0.0]]


def heads_and_back(size: int, heads: int, kv_heads: int) -> float:
    """The largest difference after heads for tokens and back, in values and in the gradient of a weighted sum."""
    axis = Mesh.of(World.join(need_group=True), sequence=size).sequence
    generator = torch.Generator().manual_seed(0)
    query, out_weight = (torch.randn(1, heads, 8, 3, generator=generator) for _ in range(2))
    key, value = (torch.randn(1, kv_heads, 8, 3, generator=generator) for _ in range(2))
    mine = [shard(x.transpose(2, 3), axis).transpose(2, 3).requires_grad_() for x in (query, key, value)]  # a permuted view, on purpose
    q, k, v = to_heads(mine[0], mine[1], mine[2], axis)
    times = heads // kv_heads
    assert torch.equal(q, query.chunk(size, dim=1)[axis.rank])
    expected = key.repeat_interleave(times, dim=1).chunk(size, dim=1)[axis.rank]
    assert torch.equal(k.repeat_interleave(q.shape[1] // k.shape[1], dim=1), expected)
    mixed = q * v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    out = to_tokens(mixed.transpose(2, 3).contiguous().transpose(2, 3), axis)
    weight = shard(out_weight.transpose(2, 3), axis).transpose(2, 3)
    (out * weight).sum().backward()
    whole = [x.clone().requires_grad_() for x in (query, value)]
    (whole[0] * whole[1].repeat_interleave(times, dim=1) * out_weight).sum().backward()
    part = slice(axis.rank * 8 // size, (axis.rank + 1) * 8 // size)
    apart = [(mine[0].grad, whole[0].grad), (mine[2].grad, whole[1].grad)]
    return max(float((a - b[:, :, part]).abs().max()) for a, b in apart if a is not None and b is not None)


@pytest.mark.parametrize(("size", "heads", "kv_heads"), [(2, 4, 2), (2, 4, 1), (4, 4, 2), (4, 12, 3), (2, 6, 3), (4, 8, 8)])
def test_heads_for_tokens_and_back(size: int, heads: int, kv_heads: int) -> None:
    """Key-value heads fewer than ranks, or not divided by them; the gradients are those of one process."""
    assert max(run_spmd(heads_and_back, size, size, heads, kv_heads)) < 1e-6


def test_query_heads_that_the_ranks_do_not_divide_are_refused() -> None:
    query, key = torch.zeros(1, 6, 2, 3), torch.zeros(1, 2, 2, 3)
    with pytest.raises(ValueError, match="sp_size=4 does not divide the 6 attention heads of the model; possible: 1, 2, 3, 6"):
        to_heads(query, key, key, rank_of(4))


def test_what_each_head_has_is_divided_as_heads_are() -> None:
    assert my_heads(torch.arange(6), rank_of(3, 1)).tolist() == [2, 3]


def in_step(rows_of_rank: list[list[list[int]]]) -> None:
    axis = Mesh.of(World.join(need_group=True), sequence=2).sequence
    check_in_step([torch.tensor(row) for row in rows_of_rank[axis.ranks[axis.rank]]], axis, doing="the update")


def test_ranks_of_a_sequence_with_the_same_rows_are_in_step() -> None:
    run_spmd(in_step, 2, [[[1, 2, 3], [4]], [[1, 2, 3], [4]]])


@pytest.mark.parametrize("other", [[[1, 2, 4], [4]], [[2, 1, 3], [4]], [[4], [1, 2, 3]], [[1, 2, 3]], [[1, 2, 3, 0], [4]]])
def test_a_rank_of_a_sequence_that_is_out_of_step_is_named(other: list[list[int]]) -> None:
    """Another token, an order, a row too few, a token too many: said before it is attended to."""
    with pytest.raises(SpmdError, match="the update: rank 1 has other rows than rank 0, with which it shares sequences"):
        run_spmd(in_step, 2, [[[1, 2, 3], [4]], other])
