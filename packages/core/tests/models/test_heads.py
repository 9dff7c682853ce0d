"""The output layer that gives log-probs: the same numbers as from logits for every family, and the model otherwise as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from lightrft.errors import ModelError
from lightrft.models.heads import LabelRequest, score_labels
from lightrft.models.lora import add_lora
from lightrft.strategy.recompute import recompute_activations
from lightrft.testing.architectures import SMALL, make_model

tf: Any = transformers
WITHOUT_HEAD_DIM = {key: value for key, value in SMALL.items() if key != "head_dim"}
MADE_HERE = {
    "gemma2 capped": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**SMALL, final_logit_softcapping=0.3)),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**WITHOUT_HEAD_DIM, logit_scale=0.1875)),
    "hyperclovax": lambda: tf.HyperCLOVAXForCausalLM(tf.HyperCLOVAXConfig(**SMALL, logits_scaling=0.6)),
    "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**SMALL, logits_scaling=6.0)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**WITHOUT_HEAD_DIM)),
}
"""Soft cap and tied head; logits times a scale, once tied; logits over a scale; a bias."""

KINDS = ("qwen3", "llama", "llama tied", "gpt2", "qwen3-moe", "qwen2.5-vl", *MADE_HERE)
BOTH = pytest.mark.parametrize("chunk_size", [None, 3], ids=["plain", "fused"])
IDS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([0, 3, 4, 9, 11, 20, 26])
LABELS = torch.tensor([5, 63, 0, 17, 33, 5, 5])
REQUEST = LabelRequest(rows=ROWS, labels=LABELS, temperatures=(0.7, 1.0), entropy=True)


def model_of(kind: str) -> Any:
    if kind not in MADE_HERE:
        return make_model(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MADE_HERE[kind]().eval()
        if (bias := model.get_output_embeddings().bias) is not None:
            torch.nn.init.normal_(bias)
        return model


def from_logits(model: Any) -> list[torch.Tensor]:
    logits = model(input_ids=IDS, use_cache=False).logits.flatten(0, 1)[ROWS].float()
    normalized = [(logits / temperature).log_softmax(-1) for temperature in REQUEST.temperatures]
    return [*(n.gather(1, LABELS[:, None])[:, 0] for n in normalized), -(normalized[0].exp() * normalized[0]).sum(-1)]


def from_head(model: Any, request: LabelRequest = REQUEST) -> list[torch.Tensor]:
    return list(score_labels(model, request, input_ids=IDS).all())


def gradients(model: Any, columns: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum((column * (index + 1)).sum() for index, column in enumerate(columns)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_numbers(model: Any, chunk_size: int | None) -> None:
    expected = from_logits(model)
    expected_gradients = gradients(model, expected)
    found = from_head(model, replace(REQUEST, chunk_size=chunk_size))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=2e-6)
    found_gradients = gradients(model, found)
    assert found_gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).abs().max() <= 1e-6 * largest, name


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_gradients_are_those_of_logits(kind, chunk_size):
    model = model_of(kind)
    names, parameters = list(model.state_dict()), list(model.parameters())
    logits = model(input_ids=IDS, use_cache=False).logits
    config = model.config.to_dict()
    assert_same_numbers(model, chunk_size)
    assert list(model.state_dict()) == names and all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.config.to_dict() == config
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, logits)


@BOTH
def test_an_adapter_on_the_head(chunk_size):
    model = add_lora(make_model("llama"), rank=4, alpha=8.0, target_modules=["lm_head", "q_proj"], seed=1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    names = list(model.state_dict())
    assert_same_numbers(model, chunk_size)
    assert list(model.state_dict()) == names
    with torch.no_grad():
        adapted = from_head(model)
        with model.disable_adapter():
            torch.testing.assert_close(from_head(model), from_logits(model), rtol=1e-6, atol=2e-6)
            assert not torch.allclose(from_head(model)[0], adapted[0], atol=1e-3)


@BOTH
def test_recomputed_activations(chunk_size):
    model = make_model("qwen3")
    recompute_activations(model)
    assert_same_numbers(model, chunk_size)


def test_a_copy_of_the_model_has_a_head_of_its_own():
    model = make_model("llama")
    from_head(model)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.lm_head.weight)
    assert from_head(other)[0].tolist() == pytest.approx([-torch.log(torch.tensor(64.0)).item()] * len(ROWS))
    assert from_head(model)[0][0].item() != pytest.approx(from_head(other)[0][0].item())


@BOTH
def test_no_labels_give_gradients_of_zero(chunk_size):
    """A rank without work takes part in the backward pass of every parameter."""
    model = make_model("llama tied")
    none = torch.zeros(0, dtype=torch.long)
    columns = from_head(model, LabelRequest(rows=none, labels=none, entropy=True, chunk_size=chunk_size))
    assert [column.shape for column in columns] == [(0,), (0,)]
    found = gradients(model, columns)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.eq(0).all() for gradient in found.values())


def test_only_labelled_positions_reach_the_vocabulary():
    model = make_model("llama")
    from_head(model)
    with _Products() as products:
        from_head(model)
    assert [shape for shape in products.shapes if shape[-1] == 64] == [(len(ROWS), 64)]


def test_no_gradients_without_grad():
    model = make_model("qwen3")
    with torch.no_grad():
        assert not any(column.requires_grad for column in from_head(model))


def test_the_head_is_a_linear_layer_again_after_an_error():
    model = make_model("llama")
    with pytest.raises(IndexError):
        from_head(model, LabelRequest(rows=torch.tensor([10**6]), labels=torch.tensor([0])))
    assert model(input_ids=IDS).logits.shape == (3, 9, 64)


def test_a_model_that_does_something_else_to_its_logits_is_refused():
    class Sigmoid(type(make_model("llama"))):
        def forward(self, **inputs: Any) -> Any:
            outputs = super().forward(**inputs)
            outputs.logits = outputs.logits.sigmoid()
            return outputs

    model = make_model("llama")
    model.__class__ = Sigmoid
    with pytest.raises(ModelError, match=r"Sigmoid turns the results .* into logits \[0.7310.* scale 1.0 and soft cap None"):
        from_head(model)


def test_a_model_that_changes_the_type_of_its_logits_is_refused():
    class Half(type(make_model("llama"))):
        def forward(self, **inputs: Any) -> Any:
            outputs = super().forward(**inputs)
            outputs.logits = outputs.logits.bfloat16()
            return outputs

    model = make_model("llama")
    model.__class__ = Half
    with pytest.raises(ModelError, match=r"into logits .* of torch.bfloat16"):
        from_head(model)


def test_what_has_no_head_is_refused():
    with pytest.raises(ModelError, match="has no output layer; log-probs need"):
        from_head(make_model("classifier"))


class _Products(TorchDispatchMode):
    """The shapes of all products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.shapes.append(tuple(found.shape))
        return found
