"""Compiled blocks of every family are as near to float32 as uncompiled ones, from few graphs."""

from __future__ import annotations

import pytest
import torch

from lightrft.observe.compiler import graphs_made
from lightrft.strategy.compiled import compile_blocks, has_experts
from lightrft.testing.architectures import KINDS, make_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = ((1, 6), (3, 17), (2, 40), (5, 33), (1, 61))
GRAPHS = 10
"""Of one model at most: with and without gradients, one row or several, a first block whose input has no gradient."""


def outputs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits and every gradient, as one row of float32."""
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    logits.logsumexp(-1).sum().backward()
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return torch.cat([logits.detach().flatten(), *(p.grad.float().flatten() for p in model.parameters() if p.grad is not None)])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not has_experts(make_model(kind))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_family_compiled(kind: str, dtype: torch.dtype) -> None:
    exact, plain, compiled = (make_model(kind).cuda() for _ in range(3))
    plain.to(dtype), compiled.to(dtype)
    before = graphs_made() or 0
    compile_blocks(compiled)
    for shape in SHAPES:
        ids = torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(shape[1])).cuda()
        true = outputs(exact, ids)
        allowed, found = ((outputs(model, ids) - true).norm() / true.norm() for model in (plain, compiled))
        assert found <= 1.5 * allowed + 2e-6, (shape, float(found), float(allowed))
    made = (graphs_made() or 0) - before
    print(f"{kind}, {dtype}: {made} graphs, {float(found):.2g} from float32, uncompiled {float(allowed):.2g}")
    assert made <= GRAPHS
