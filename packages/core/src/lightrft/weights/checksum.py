"""Whether two tensors hold the same numbers. Exact sums of bit patterns, which do not depend on order, layout or splitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

MODULUS = 2**63
CHUNK, DEVICE_CHUNK = 2**16, 2**22
"""Elements that are widened to 64 bits at a time: half a MiB stays in a core's cache, 32 MiB keep a GPU busy."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class WeightChecksum:
    """Of one tensor: the sums, modulo 2**63, of its elements' bit patterns and of their squares.

    A zero adds nothing, so padding does not count; the checksum of a fused tensor is that of its parts, added up. `sharded`: the ranks of
    the engine's group hold parts, and the whole is the sum over them (a part that several hold counts once); else each rank holds all.
    """

    bits: int
    squares: int
    sharded: bool = False

    def __add__(self, other: WeightChecksum) -> WeightChecksum:
        return WeightChecksum((self.bits + other.bits) % MODULUS, (self.squares + other.squares) % MODULUS, self.sharded or other.sharded)

    def same_as(self, other: WeightChecksum) -> bool:
        """Whether the numbers agree, wherever they are held."""
        return (self.bits, self.squares) == (other.bits, other.squares)


NOTHING = WeightChecksum(0, 0)


def tensor_checksum(tensor: torch.Tensor) -> tuple[int, int]:
    """`bits` and `squares` of a `WeightChecksum`, of a tensor of any dtype and shape on any device."""
    [found] = tensor_checksums([tensor])
    return found


@torch.no_grad()
def tensor_checksums(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """`tensor_checksum` of each (all on one device), with one copy to the host for all of them."""
    return read_checksums([checksums_on_device(tensors)])


@torch.no_grad()
def checksums_on_device(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same as [N, 2] int64 where the tensors are, modulo 2**64: on CUDA the host does not wait for them."""
    if not tensors:
        return torch.zeros(0, 2, dtype=torch.int64)
    flats = [_flat(tensor.detach()) for tensor in tensors]
    if flats[0].is_cuda and find_spec("triton"):
        from lightrft.weights.checksum_kernel import checksums_on_cuda

        return checksums_on_cuda(flats)
    return torch.stack([_by_chunks(flat) for flat in flats])


def read_checksums(found: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """What `checksums_on_device` gave, once or several times on one device, as numbers: one copy to the host."""
    rows: list[list[int]] = torch.cat(list(found)).tolist() if found else []
    return [(bits % MODULUS, squares % MODULUS) for bits, squares in rows]


def _by_chunks(flat: torch.Tensor) -> torch.Tensor:
    size = flat.element_size()
    patterns = flat.view(_INTEGERS[size])
    total = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for chunk in torch.split(patterns, CHUNK if flat.device.type == "cpu" else DEVICE_CHUNK):
        # torch's 64-bit integers wrap around modulo 2**64, of which 2**63 is a divisor: the low 63 bits stay exact.
        wide = chunk.to(torch.int64, copy=True)
        if size < 8:
            wide &= 2 ** (8 * size) - 1
        total[0] += wide.sum()
        total[1] += wide.mul_(wide).sum()
    return total


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in the order of memory, which for a transposed tensor takes no copy."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)
