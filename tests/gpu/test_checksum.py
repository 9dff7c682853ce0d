"""The one kernel of the checksums on a GPU gives what the CPU gives, of every dtype, size and alignment; and how fast it reads."""

from __future__ import annotations

import time

import pytest
import torch

from lightrft.weights.checksum import tensor_checksums

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64)


def drawn(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern is possible."""
    octets = torch.randint(0, 256, (numel * dtype.itemsize,), dtype=torch.uint8)
    return octets.view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    sizes = (0, 1, 5, 2047, 2**16 - 1, 2**16, 2**16 + 3, 300_001)
    tensors = [drawn(size, dtype) for size in sizes]
    tensors += [drawn(64 * 65, dtype).view(64, 65).t(), drawn(4097, dtype)[1:], drawn(4096, dtype).view(64, 64)[:, ::2]]
    assert tensor_checksums([t.cuda() for t in tensors]) == tensor_checksums(tensors)
    shifted = drawn(2**17, dtype).cuda()
    assert tensor_checksums([shifted[3:]]) == tensor_checksums([shifted[3:].cpu()]), "from an address that is no multiple of 16"


def test_tensors_of_several_kinds_at_once() -> None:
    tensors = [drawn(1000 + i, dtype) for i, dtype in enumerate(DTYPES * 40)]
    assert tensor_checksums([t.cuda() for t in tensors]) == tensor_checksums(tensors)


def test_it_reads_at_the_memorys_speed() -> None:
    tensors = [torch.randn(2048, 1024, device="cuda").bfloat16() for _ in range(256)]
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        tensor_checksums(tensors)
        seconds.append(time.perf_counter() - start)
    best = min(seconds)
    print(f"{len(tensors) * 2048 * 1024 * 2 / 1e9:.2f} GB in {best * 1e3:.2f} ms, {len(tensors) * 2048 * 1024 * 2 / best / 1e12:.2f} TB/s")
    assert best < 0.005
