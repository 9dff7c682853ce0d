"""Packed attention on CUDA: one kernel for all segments, its windows, heads and scale; compiled blocks; two GPUs on one row."""

from typing import Any

import pytest
import torch

from lightrft.distributed.mesh import Mesh
from lightrft.distributed.world import World
from lightrft.models import attention_kernels
from lightrft.models.attention import Segments, packed_forward, use_our_attention
from lightrft.models.attention_kernels import Asked, attend_segments
from lightrft.models.packing_check import check_packing
from lightrft.testing import run_spmd
from lightrft.testing.packed_rows import FAMILIES, family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (300, 1, 129, 64, 17, 700)
SETTING = "packing_samples=True"
BF16 = 2.0**-8


def row(heads: int, kv_heads: int, size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, h, sum(LENGTHS), size, generator=generator).cuda().bfloat16() for h in (heads, kv_heads, kv_heads)]
    return made, torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)


@pytest.mark.parametrize("window", [None, 1, 16, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 8, 64), (8, 2, 64), (4, 1, 128), (2, 2, 256)])
def test_the_kernel_is_as_near_to_float32_as_segments_one_by_one(window: int | None, heads: int, kv_heads: int, size: int) -> None:
    """Values and gradients; a window that is off by one, a head of another group or a scale would be far away."""
    tensors, offsets = row(heads, kv_heads, size)
    asked = Asked(scale=0.11, window=window)
    assert attention_kernels._varlen_kernel(tensors[0], tensors[2], asked) is attention_kernels._torch_kernel
    found = []
    for cast, attend in (
        (torch.float32, lambda *qkv: attention_kernels._one_by_one(*qkv, offsets, asked)),
        (torch.bfloat16, lambda *qkv: attention_kernels._one_by_one(*qkv, offsets, asked)),
        (torch.bfloat16, lambda *qkv: attend_segments(*qkv, offsets, max(LENGTHS), asked)),
    ):
        leaves = [x.detach().clone().to(cast).requires_grad_() for x in tensors]
        out = attend(*leaves)
        torch.autograd.backward((out.float() ** 2).sum())
        found.append([out.detach().float(), *(x.grad.float() for x in leaves if x.grad is not None)])
    for exact, apart, ours in zip(*found, strict=True):
        rounding = float((apart - exact).abs().max())
        assert float((ours - exact).abs().max()) <= 2 * rounding + BF16 * float(exact.abs().max())


def test_a_token_moves_its_own_segment_only() -> None:
    tensors, offsets = row(8, 2, 64)
    asked = Asked(scale=0.125)
    before = attend_segments(*tensors, offsets, max(LENGTHS), asked)
    for x in tensors:
        x[:, :, 310] += 1.0  # in the third segment
    moved = (attend_segments(*tensors, offsets, max(LENGTHS), asked) - before).abs().amax(dim=(0, 1, 3)).split(LENGTHS)
    assert [float(part.max()) > 0 for part in moved] == [False, False, True, False, False, False]


@pytest.mark.parametrize("asked", [Asked(scale=0.1, softcap=5.0), Asked(scale=0.1, sinks=torch.zeros(8))])
def test_what_the_kernel_does_not_know_goes_segment_by_segment(asked: Asked) -> None:
    tensors, _ = row(8, 2, 64)
    assert attention_kernels._varlen_kernel(tensors[0], tensors[2], asked) is None
    assert attention_kernels._varlen_kernel(tensors[0].float(), tensors[2].float(), Asked(scale=0.1)) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_check_of_a_model_holds_in_bfloat16(name: str) -> None:
    model = family(name).cuda().bfloat16()
    use_our_attention(model, setting=SETTING)
    check_packing(lambda **inputs: model(**inputs).logits, model.config, device=torch.device("cuda"), setting=SETTING)


def packed_logits(model: Any, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    positions = torch.cat([torch.arange(n, device="cuda") for n in LENGTHS])[None]
    row = Segments(offsets=offsets, longest=max(LENGTHS))
    with torch.no_grad(), packed_forward():
        logits: torch.Tensor = model(input_ids=ids, position_ids=positions, **row.inputs()).logits
    return logits[0].float()


def test_compiled_blocks_are_as_near_to_float32_and_can_be_checked() -> None:
    model = family("qwen3", max_position_embeddings=1024).cuda()
    use_our_attention(model, setting=SETTING)
    ids = torch.randint(3, 64, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0)).cuda()
    offsets = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    exact = packed_logits(model, ids, offsets)
    model.bfloat16()
    eager = packed_logits(model, ids, offsets)
    for layer in model.model.layers:
        layer.compile(dynamic=True)
    compiled = packed_logits(model, ids, offsets)
    check_packing(lambda **inputs: model(**inputs).logits, model.config, device=torch.device("cuda"), setting=SETTING)
    assert 0 < float((compiled - exact).abs().mean()) < 1.2 * float((eager - exact).abs().mean())


def shared(name: str) -> None:
    world = World.join(need_group=True)
    axis = Mesh.of(world, sequence=2).sequence
    model = family(name).to(world.device).bfloat16()
    use_our_attention(model, setting="sp_size=2")
    check_packing(lambda **inputs: model(**inputs).logits, model.config, device=world.device, setting="sp_size=2", axis=axis)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", FAMILIES)
def test_two_gpus_share_a_row(name: str) -> None:
    run_spmd(shared, 2, name, cuda=True)
