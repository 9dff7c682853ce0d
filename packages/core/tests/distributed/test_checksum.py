"""Checksums are exact, and see every bit and nothing but the numbers."""

from __future__ import annotations

import struct

import pytest
import torch

from lightrft.weights.checksum import CHUNK, MODULUS, WeightChecksum, tensor_checksum, tensor_checksums


def test_bf16_by_hand() -> None:
    # 1.0 is 0x3F80, -2.0 is 0xC000
    tensor = torch.tensor([1.0, -2.0, 0.0], dtype=torch.bfloat16)
    assert tensor_checksum(tensor) == (0x3F80 + 0xC000, 0x3F80**2 + 0xC000**2)


def test_fp16_and_integers_by_hand() -> None:
    assert tensor_checksum(torch.tensor([1.0, 0.5], dtype=torch.float16)) == (0x3C00 + 0x3800, 0x3C00**2 + 0x3800**2)
    assert tensor_checksum(torch.tensor([3, 255], dtype=torch.uint8)) == (258, 9 + 255**2)
    assert tensor_checksum(torch.tensor([-1], dtype=torch.int8)) == (255, 255**2)
    assert tensor_checksum(torch.tensor(-1, dtype=torch.int64)) == ((2**64 - 1) % MODULUS, (2**64 - 1) ** 2 % MODULUS)


def test_fp32_beyond_a_chunk_and_beyond_64_bits_equals_python() -> None:
    tensor = torch.randn(CHUNK + 5, generator=torch.Generator().manual_seed(0))
    patterns = struct.unpack(f"<{len(tensor)}I", tensor.numpy().tobytes())
    assert sum(p * p for p in patterns) > 2**64, "the squares' sum wraps around"
    assert tensor_checksum(tensor) == (sum(patterns) % MODULUS, sum(p * p for p in patterns) % MODULUS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_padding_and_cutting_do_not_count(dtype: torch.dtype) -> None:
    tensor = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = tensor_checksum(tensor)
    assert tensor_checksum(tensor.transpose(0, 2)) == whole
    assert tensor_checksum(torch.nn.functional.pad(tensor, (0, 3))) == whole
    first, second = (WeightChecksum(*found) for found in tensor_checksums([tensor[:2], tensor[2:, :, ::1]]))
    assert (first + second).same_as(WeightChecksum(*whole))
    assert tensor_checksum(tensor[:, ::2]) == tensor_checksum(tensor[:, ::2].contiguous())


def test_one_bit_counts_and_so_does_a_change_that_keeps_the_plain_sum() -> None:
    tensor = torch.ones(1000)
    changed = tensor.clone()
    changed.view(torch.int32)[7] ^= 1
    assert tensor_checksum(changed) != tensor_checksum(tensor)
    kept = tensor.clone()
    kept.view(torch.int32)[3] += 1
    kept.view(torch.int32)[4] -= 1
    assert tensor_checksum(kept)[0] == tensor_checksum(tensor)[0]
    assert tensor_checksum(kept)[1] != tensor_checksum(tensor)[1]


def test_nothing_sums_to_nothing() -> None:
    assert tensor_checksums([]) == []
    assert tensor_checksum(torch.zeros(0)) == tensor_checksum(torch.zeros(4, 4)) == (0, 0)
