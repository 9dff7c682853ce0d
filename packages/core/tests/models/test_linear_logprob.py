"""Log-probs and entropies of an output layer: by hand for three tokens, against autograd in float64, and what is held meanwhile."""

from __future__ import annotations

import itertools
from math import log
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightrft.models import fused_logprob, plain_logprob
from lightrft.models.linear_logprob import linear_logprob
from lightrft.models.logprob_spec import LogitTransform, LogprobSpec

BOTH = pytest.mark.parametrize("chunk_size", [None, 2], ids=["plain", "fused"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several chunks and blocks at the sizes of these tests, the last of each incomplete."""
    monkeypatch.setattr(plain_logprob, "PLAIN_CHUNK", 5)
    monkeypatch.setattr(fused_logprob, "VOCAB_BLOCK", {"cpu": 2})


def weights(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[:, None].requires_grad_()


@BOTH
def test_three_tokens_by_hand(chunk_size):
    """Logits 0, log 2, log 5 are the probabilities 1/8, 1/4, 5/8; at temperature 1/2 they are 1/30, 4/30, 25/30."""
    hidden, weight = torch.ones(1, 1, requires_grad=True), weights(0.0, log(2), log(5))
    spec = LogprobSpec(temperatures=(1.0, 0.5), entropy=True, chunk_size=chunk_size)
    columns = linear_logprob([(hidden, weight)], torch.tensor([1]), spec=spec)
    assert columns.logprobs[0].item() == pytest.approx(log(1 / 4))
    assert columns.logprobs[1].item() == pytest.approx(log(4 / 30))
    assert columns.entropy.item() == pytest.approx(log(8) / 8 + log(4) / 4 + log(8 / 5) * 5 / 8)
    (columns.logprobs[0] + 3 * columns.logprobs[1]).sum().backward()
    expected = [a + 3 * 2 * b for a, b in zip((-1 / 8, 3 / 4, -5 / 8), (-1 / 30, 26 / 30, -25 / 30), strict=True)]
    assert weight.grad[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert hidden.grad.item() == pytest.approx(expected[1] * log(2) + expected[2] * log(5), rel=1e-6)


@BOTH
def test_gradient_of_the_entropy_by_hand(chunk_size):
    """dH / dz_j = -p_j (log p_j + H)."""
    hidden, weight = torch.ones(1, 1), weights(0.0, log(2), log(5))
    spec = LogprobSpec(entropy=True, chunk_size=chunk_size)
    columns = linear_logprob([(hidden, weight)], torch.tensor([1]), spec=spec)
    columns.entropy.sum().backward()
    p = (1 / 8, 1 / 4, 5 / 8)
    entropy = -sum(x * log(x) for x in p)
    assert weight.grad[:, 0].tolist() == pytest.approx([-x * (log(x) + entropy) for x in p], rel=1e-5)


@BOTH
def test_soft_cap_and_scale_by_hand(chunk_size):
    """2 tanh(log(3) / 2) is 1, with a slope of 3/4: the raw logits log 3 / 2, scaled by 2, become 1."""
    weight = weights(0.0, log(3) / 2, -log(3) / 2)
    spec = LogprobSpec(transform=LogitTransform(scale=2.0, softcap=2.0), chunk_size=chunk_size)
    columns = linear_logprob([(torch.ones(1, 1), weight)], torch.tensor([0]), spec=spec)
    e = torch.tensor(1.0).exp().item()
    total = 1 + e + 1 / e
    assert columns.logprobs[0].item() == pytest.approx(-log(total))
    columns.logprobs[0].sum().backward()
    assert weight.grad[:, 0].tolist() == pytest.approx([(1 - 1 / total) * 2, -e / total * 0.75 * 2, -1 / e / total * 0.75 * 2], rel=1e-6)


@BOTH
def test_forbidden_tokens_have_probability_0_and_no_part_in_the_entropy(chunk_size):
    """The first two of five tokens are forbidden, which is one whole block of the fused path; the other three are 1/8, 1/4, 5/8."""
    weight = weights(1.0, 1.0, 0.0, log(2), log(5))
    bias = torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0, 0.0], requires_grad=True)
    hidden = torch.ones(2, 1, requires_grad=True)
    spec = LogprobSpec(temperatures=(1.0, 0.5), entropy=True, chunk_size=chunk_size)
    columns = linear_logprob([(hidden, weight)], torch.tensor([3, 0]), spec=spec, bias=bias)
    assert columns.logprobs[0].tolist() == pytest.approx([log(1 / 4), -torch.inf])
    assert columns.entropy.tolist() == pytest.approx([log(8) / 8 + log(4) / 4 + log(8 / 5) * 5 / 8] * 2)
    (columns.logprobs[0][0] + columns.entropy.sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in (hidden, weight, bias))
    assert bias.grad[:2].tolist() == [0.0, 0.0]


@BOTH
@pytest.mark.parametrize(("size", "terms", "softcap", "with_bias"), list(itertools.product((0, 1, 13), (1, 2), (None, 2.0), (False, True))))
def test_values_and_gradients_are_those_of_autograd_in_float64(chunk_size, size, terms, softcap, with_bias):
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    vocab_size = 7
    pairs = [(random(size, width).requires_grad_(), random(vocab_size, width).requires_grad_()) for width in (8, 3)[:terms]]
    bias = random(vocab_size).requires_grad_() if with_bias else None
    labels = torch.randint(vocab_size, (size,), generator=generator)
    spec = LogprobSpec(temperatures=(0.7, 1.0), entropy=True, transform=LogitTransform(scale=0.3, softcap=softcap), chunk_size=chunk_size)
    found = linear_logprob(pairs, labels, spec=spec, bias=bias)
    expected = _by_definition(pairs, labels, spec, bias)
    upstream = [random(size) for _ in expected]
    inputs = [tensor for pair in pairs for tensor in pair] + ([] if bias is None else [bias])
    gradients = [_gradients(columns, upstream, inputs) for columns in (found.all(), expected)]
    for mine, theirs in zip([*found.all(), *gradients[0]], [*expected, *gradients[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@BOTH
def test_the_weight_gradient_of_bfloat16_is_summed_in_float32(chunk_size):
    """1,024 tokens add 1/2 each; a sum in bfloat16 stands still at 128, where 1/2 is half of the last bit."""
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    columns = linear_logprob([(hidden, weight)], torch.zeros(1024, dtype=torch.long), spec=LogprobSpec(chunk_size=chunk_size))
    assert columns.logprobs[0].dtype == torch.float32
    columns.logprobs[0].sum().backward()
    assert weight.grad.dtype == torch.bfloat16 and weight.grad[:, 0].tolist() == [512.0, -512.0]


@BOTH
def test_autocast_counts_in_the_backward_pass_that_comes_after_it(chunk_size):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(size, 8, generator=generator).requires_grad_() for size in (13, 7)]
    labels, spec = torch.randint(7, (13,), generator=generator), LogprobSpec(chunk_size=chunk_size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_logprob([(leaves[0], leaves[1])], labels, spec=spec).logprobs[0]
    expected = linear_logprob([(leaves[0].bfloat16(), leaves[1].bfloat16())], labels, spec=spec).logprobs[0]
    assert torch.equal(found, expected)
    both = [torch.autograd.grad(column.sum(), leaves) for column in (found, expected)]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*both, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 64], ids=["plain", "fused"])
def test_bfloat16_is_as_near_to_float64_as_logits_are(chunk_size, monkeypatch):
    monkeypatch.setattr(plain_logprob, "PLAIN_CHUNK", 64)
    monkeypatch.setattr(fused_logprob, "VOCAB_BLOCK", {"cpu": 300})
    generator = torch.Generator().manual_seed(0)
    exact = [
        torch.randn(200, 64, generator=generator).bfloat16().double(),
        torch.randn(1000, 64, generator=generator).div(8).bfloat16().double(),
    ]
    labels = torch.randint(1000, (200,), generator=generator)
    spec = LogprobSpec(temperatures=(0.7,), entropy=True, chunk_size=chunk_size)

    def run(tensors: list[torch.Tensor], by_definition: bool) -> list[torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        if by_definition:
            columns = _by_definition([(leaves[0], leaves[1])], labels, spec, None)
        else:
            found = linear_logprob([(leaves[0], leaves[1])], labels, spec=spec)
            columns = found.all()
        gradients = torch.autograd.grad(sum((c * (1 + i)).sum() for i, c in enumerate(columns)), leaves)
        return [tensor.detach().double() for tensor in (*columns, *gradients)]

    expected = run(exact, True)
    rounded = [tensor.bfloat16() for tensor in exact]
    for mine, logits, truth in zip(run(rounded, False), run(rounded, True), expected, strict=True):
        distance = lambda x, t=truth: float((x - t).abs().max() / t.abs().max())  # noqa: E731
        assert distance(mine) <= 1.2 * distance(logits) and distance(mine) <= 1e-2


def test_no_tensor_is_larger_than_a_chunk():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 4, generator=generator, requires_grad=True)
    weight = torch.randn(32, 4, generator=generator, requires_grad=True)
    labels = torch.randint(32, (64,), generator=generator)
    for chunk_size, bound in ((None, plain_logprob.PLAIN_CHUNK * 32), (8, 64 * 4)):  # 64 x 4 is the hidden states' gradient
        with _Largest() as largest:
            columns = linear_logprob([(hidden, weight)], labels, spec=LogprobSpec(entropy=True, chunk_size=chunk_size))
            (columns.logprobs[0] + columns.entropy).sum().backward()
        assert largest.numel <= max(bound, 64 * 4), (chunk_size, largest.numel)


@BOTH
def test_an_unused_column_changes_no_gradient(chunk_size):
    weight = weights(0.0, 1.0, 2.0)
    spec = LogprobSpec(temperatures=(0.7, 1.0), entropy=True, chunk_size=chunk_size)
    columns = linear_logprob([(torch.ones(1, 1), weight)], torch.tensor([1]), spec=spec)
    alone = linear_logprob([(torch.ones(1, 1), weight)], torch.tensor([1]), spec=LogprobSpec(chunk_size=chunk_size))
    both = [torch.autograd.grad(column.sum(), weight)[0] for column in (columns.logprobs[1], alone.logprobs[0])]
    assert torch.equal(*both)


class _Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(found) if isinstance(t, torch.Tensor))])
        return found


def _by_definition(pairs: Any, labels: torch.Tensor, spec: LogprobSpec, bias: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    raw = sum(hidden @ weight.T for hidden, weight in pairs)
    logits = spec.transform((raw if bias is None else raw + bias).to(torch.promote_types(raw.dtype, torch.float32)))
    normalized = [(logits / temperature).log_softmax(-1) for temperature in spec.temperatures]
    logprobs = [n.gather(1, labels[:, None])[:, 0] for n in normalized]
    return (*logprobs, -(normalized[0].exp() * normalized[0]).sum(-1)) if spec.entropy else tuple(logprobs)


def _gradients(columns: Any, upstream: list[torch.Tensor], inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(sum((c * u).sum() for c, u in zip(columns, upstream, strict=True)), inputs)
