"""The checksums of many CUDA tensors in one kernel: every element is read once, and nothing is written but they."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

SPAN, BLOCK = 2**16, 2**11
"""Elements that one program sums, and that it reads at a time."""

ALIGNED = 16
"""Bytes; from there a thread reads as many at a time."""


def checksums_on_cuda(flats: Sequence[torch.Tensor]) -> torch.Tensor:
    """[N, 2] int64 on the device: of each flat tensor the sum of its elements' bit patterns, unsigned, and of their squares, modulo 2**64.

    The host does not wait: the result, as the tensors, belongs to the current stream.
    """
    device = flats[0].device
    found = torch.zeros(len(flats), 2, dtype=torch.int64, device=device)
    kinds: dict[tuple[int, bool], list[int]] = {}
    for index, flat in enumerate(flats):
        if flat.numel():
            kinds.setdefault((flat.element_size(), flat.data_ptr() % ALIGNED == 0), []).append(index)
    for (size, aligned), owners in kinds.items():
        numels = torch.tensor([flats[i].numel() for i in owners])
        programs = (numels + SPAN - 1) // SPAN
        owner_of = torch.repeat_interleave(torch.arange(len(owners)), programs)
        before = torch.repeat_interleave(programs.cumsum(0) - programs, programs)
        firsts = (torch.arange(len(owner_of)) - before) * SPAN
        rows = torch.tensor([[flats[i].data_ptr() for i in owners], numels.tolist(), owners])
        per_program = torch.stack([rows[0][owner_of], rows[1][owner_of], rows[2][owner_of], firsts]).to(device, non_blocking=True)
        with torch.cuda.device(device):
            _sum_span[(len(owner_of),)](per_program, found, len(owner_of), SIZE=size, AT_16=aligned, SPAN=SPAN, BLOCK=BLOCK)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _sum_span(table, found, programs, SIZE: tl.constexpr, AT_16: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds one span of one tensor. `table` [4, programs]: the tensor's address, its number of elements, its row in `found`,
    and the span's first element.
    """
    program = tl.program_id(0)
    address = tl.load(table + program)
    numel = tl.load(table + programs + program)
    row = tl.load(table + 2 * programs + program)
    first = tl.load(table + 3 * programs + program)
    if SIZE == 1:
        data = address.to(tl.pointer_type(tl.uint8))
    elif SIZE == 2:
        data = address.to(tl.pointer_type(tl.uint16))
    elif SIZE == 4:
        data = address.to(tl.pointer_type(tl.uint32))
    else:
        data = address.to(tl.pointer_type(tl.int64))
    data += first
    if AT_16:
        data = tl.multiple_of(data, 16)
    left = numel - first
    bits = tl.zeros((BLOCK,), dtype=tl.int64)
    squares = tl.zeros((BLOCK,), dtype=tl.int64)
    if left >= SPAN:
        for start in range(0, SPAN, BLOCK):
            value = tl.load(data + start + tl.arange(0, BLOCK)).to(tl.int64)
            bits += value
            squares += value * value
    else:
        for start in range(0, SPAN, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(data + at, mask=at < left, other=0).to(tl.int64)
            bits += value
            squares += value * value
    tl.atomic_add(found + 2 * row, tl.sum(bits, 0))
    tl.atomic_add(found + 2 * row + 1, tl.sum(squares, 0))
