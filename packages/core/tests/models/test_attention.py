"""Packed rows through our attention function: exact, whatever a layer asks for, and no way to unpack them silently."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from lightrft.errors import ModelError
from lightrft.models import attention_kernels
from lightrft.models.attention import NAME, Segments, packed_forward, use_our_attention
from lightrft.models.attention_kernels import Asked, attend_rows, attend_segments
from lightrft.testing.packed_rows import FAMILIES, LENGTHS, WINDOW, family, logprobs_alone, logprobs_packed, reference, sequences

EXACT = 1e-5
"""Of log-probs in float32, of models whose scores are large; CPUs round differently. A fault moves them by more than 0.01."""

WEIGHTS = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(9))


def ours(name: str, **config: Any) -> Any:
    model = family(name, **config)
    use_our_attention(model, setting="packing_samples=True")
    return model


def gradients(model: Any, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logprobs * WEIGHTS).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative to each tensor's largest."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).abs().max() / expected[n].abs().max().clamp(min=1e-12)) for n in expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_row_is_its_sequences_one_by_one(name: str) -> None:
    """Log-probs and gradients against transformers' own attention, one sequence at a time; one is a single token."""
    rows, model, theirs = sequences(), ours(name), reference(name)
    found, expected = logprobs_packed(model, rows), logprobs_alone(theirs, rows)
    assert float((found - expected).detach().abs().max()) < EXACT
    assert furthest(gradients(model, found), gradients(theirs, expected)) < 1e-5  # experts multiply other shapes in a packed row


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_moves_its_own_sequence_only(name: str) -> None:
    model, rows = ours(name), sequences()
    changed = [rows[0], rows[1], rows[2].clone(), rows[3]]
    changed[2][4] = 3 if int(changed[2][4]) != 3 else 4
    with torch.no_grad():
        moved = (logprobs_packed(model, changed) - logprobs_packed(model, rows)).abs().split(LENGTHS)
    assert [float(part.max()) > EXACT for part in moved] == [False, False, True, False]


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_rows_too_are_what_transformers_gives(name: str) -> None:
    rows = sequences()
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        found, expected = (model(input_ids=ids, use_cache=False).logits for model in (ours(name), reference(name)))
    for row, length in enumerate(LENGTHS):
        assert float((found[row, :length] - expected[row, :length]).abs().max()) < 1e-5


def test_transformers_sdpa_drops_the_soft_cap_that_ours_keeps() -> None:
    """Why models with one get our function for padded rows as well."""
    ids = sequences()[2][None]
    sdpa = family("gemma2")
    assert sdpa.config._attn_implementation == "sdpa"
    with torch.no_grad():
        dropped, kept, expected = (m(input_ids=ids, use_cache=False).logits for m in (sdpa, ours("gemma2"), reference("gemma2")))
    assert float((dropped - expected).abs().max()) > 0.01
    assert float((kept - expected).abs().max()) < 1e-5


def test_activations_computed_again_know_the_segments() -> None:
    """The borders are arguments of each layer, so the backward pass has them when the forward pass is long over."""
    rows, model = sequences(), ours("gemma2")
    plain = gradients(model, logprobs_packed(model, rows))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    again = gradients(model, logprobs_packed(model, rows))
    assert furthest(again, plain) == 0.0


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_a_window_counts_the_token_itself(length: int) -> None:
    rows = sequences((length, 2 * WINDOW))
    with torch.no_grad():
        found, expected = logprobs_packed(ours("gemma2"), rows), logprobs_alone(reference("gemma2"), rows)
    assert float((found - expected).abs().max()) < EXACT


# ---- planted --------------------------------------------------------------------------------------------------------


def test_a_mask_of_ones_is_refused_and_unpacks_nothing() -> None:
    """transformers' sdpa gives up its block-diagonal mask where an all-ones mask comes along, and says nothing."""
    rows, model = sequences(), ours("qwen3")
    ones = {"attention_mask": torch.ones(1, sum(LENGTHS))}
    with torch.no_grad(), pytest.raises(ModelError, match="a packed row has no attention mask"):
        logprobs_packed(model, rows, **ones)
    sdpa = family("qwen3")
    with torch.no_grad():
        expected = logprobs_packed(sdpa, rows)
        assert float((logprobs_packed(sdpa, rows, **ones) - expected).abs().max()) > 0.01
        assert float((logprobs_packed(model, rows) - expected).abs().max()) < EXACT


def test_a_cache_changes_nothing() -> None:
    """With `use_cache`, too, transformers' sdpa would take the row for one sequence."""
    rows, model = sequences(), ours("qwen3")
    with torch.no_grad():
        assert torch.equal(logprobs_packed(model, rows, use_cache=True), logprobs_packed(model, rows))


def test_tokens_of_an_earlier_call_are_refused() -> None:
    model = ours("qwen3")
    with torch.no_grad():
        cache = model(input_ids=sequences()[0][None], use_cache=True).past_key_values
        with pytest.raises(ModelError, match=r"remembers tokens of an earlier call \(use_cache\)"):
            logprobs_packed(model, sequences((4, 5)), past_key_values=cache, use_cache=True)


def test_several_packed_rows_at_once_are_refused() -> None:
    row = Segments(offsets=torch.tensor([0, 3, 6], dtype=torch.int32), longest=3)
    with torch.no_grad(), packed_forward(), pytest.raises(ModelError, match="was given 2 rows"):
        ours("qwen3")(input_ids=torch.ones(2, 6, dtype=torch.long), **row.inputs())


def test_a_model_that_drops_the_segments_is_refused() -> None:
    with torch.no_grad(), packed_forward(), pytest.raises(ModelError, match="is not told where sequences end"):
        ours("qwen3")(input_ids=torch.ones(1, 6, dtype=torch.long), use_cache=False)


def test_how_many_logits_are_kept_is_none_of_attention_s_business() -> None:
    """LLaVA-OneVision hands it down to every layer, and was refused to be packed for it."""
    ids = torch.arange(6)[None]
    with torch.no_grad():
        model = ours("qwen3").model
        torch.testing.assert_close(
            model(input_ids=ids, use_cache=False, logits_to_keep=1).last_hidden_state,
            model(input_ids=ids, use_cache=False).last_hidden_state,
        )


def test_arguments_of_attention_that_nobody_knows_are_refused() -> None:
    with torch.no_grad(), pytest.raises(ModelError, match="Qwen3Attention gives its attention position_bias, which this"):
        ours("qwen3")(input_ids=torch.ones(1, 6, dtype=torch.long), use_cache=False, position_bias=torch.zeros(1))


def test_a_model_with_attention_of_its_own_is_refused_by_name() -> None:
    import transformers

    config: Any = transformers.BloomConfig
    make: Any = transformers.BloomForCausalLM
    bloom = make(config(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match=r"packing_samples=True: BloomForCausalLM computes attention by itself.*leave packing_samples out"):
        use_our_attention(bloom, setting="packing_samples=True")


def test_of_an_image_text_model_the_text_alone_gets_our_attention() -> None:
    from lightrft.testing.architectures import make_model

    model = make_model("qwen2.5-vl")
    use_our_attention(model, setting="packing_samples=True")
    assert model.config.get_text_config()._attn_implementation == NAME
    assert model.config.vision_config._attn_implementation != NAME


# ---- kernels --------------------------------------------------------------------------------------------------------


def random_row(heads: int, kv_heads: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, sum(LENGTHS), size, generator=generator) for h in (heads, kv_heads, kv_heads))
    return q, k, v, torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_segments_against_one_mask_of_the_whole_row(window: int | None, softcap: float | None) -> None:
    """By hand: every score, the mask written out, one softmax."""
    q, k, v, offsets = random_row(4, 2, 8)
    at = torch.arange(sum(LENGTHS))
    document = torch.bucketize(at, offsets[1:], right=True)
    back = at[:, None] - at[None]
    sees = (document[:, None] == document[None]) & (back >= 0) & (back < (window or 10**9))
    scores = q @ k.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v.repeat_interleave(2, dim=1)
    found = attend_segments(q, k, v, offsets, max(LENGTHS), Asked(scale=0.3, window=window, softcap=softcap))
    assert float((found - expected).abs().max()) < 5e-6


def test_flash_attn_gets_what_a_layer_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed here: a stand-in with its arguments and its meaning of a window."""
    q, k, v, offsets = random_row(4, 2, 8)
    calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(*tensors: Any, **settings: Any) -> torch.Tensor:
        calls.append(settings)
        query, key, value, borders, _, longest, _ = tensors
        left, right = settings["window_size"]
        assert (right, settings["causal"], longest) == (0, True, max(LENGTHS))
        window = None if left < 0 else left + 1
        asked = Asked(scale=settings["softmax_scale"], window=window, softcap=settings["softcap"] or None)
        rows = [x.transpose(0, 1)[None] for x in (query, key, value)]
        return attention_kernels._one_by_one(rows[0], rows[1], rows[2], borders, asked)[0].transpose(0, 1)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    for asked in (Asked(scale=0.3, softcap=0.5, window=4), Asked(scale=0.3)):
        expected = attend_segments(q, k, v, offsets, max(LENGTHS), asked)
        with monkeypatch.context() as patch:
            patch.setattr(attention_kernels, "_varlen_kernel", lambda *_: attention_kernels._flash_attn_kernel)
            assert torch.equal(attend_segments(q, k, v, offsets, max(LENGTHS), asked), expected)
    assert [(c["softcap"], c["window_size"]) for c in calls] == [(0.5, (3, 0)), (0.0, (-1, 0))]


def whole_graphs(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """It compiled in one piece for any length, and the graphs that come of its calls."""
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(function, dynamic=True, fullgraph=True, backend=keep), graphs


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what earlier tests left, whenever it is collected
@pytest.mark.filterwarnings("error")
def test_the_kernel_on_cuda_is_one_graph_for_rows_of_any_length() -> None:
    """Tensors without data stand for those of a GPU, which this test does not need."""
    compiled, graphs = whole_graphs(attend_segments)
    with FakeTensorMode():
        for length, longest in ((64, 40), (80, 50), (96, 33)):
            query, key, value = (torch.empty(1, heads, length, 16, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
            offsets = torch.empty(4, device="cuda", dtype=torch.int32)
            assert compiled(query, key, value, offsets, longest, Asked(scale=0.25)).shape == query.shape
    assert len(graphs) == 1
    assert any("varlen_attn" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("error")
def test_whole_padded_rows_are_one_graph_for_any_length() -> None:
    """A causal row without a mask: whether it is one token decides before the kernel is asked."""
    compiled, graphs = whole_graphs(attend_rows)
    for length in (7, 12, 9):
        query, key, value = (torch.randn(2, heads, length, 16) for heads in (4, 2, 2))
        found = compiled(query, key, value, None, Asked(scale=0.25), causal=True)
        assert torch.allclose(found, attend_rows(query, key, value, None, Asked(scale=0.25), causal=True), atol=1e-6)
    assert len(graphs) == 1
