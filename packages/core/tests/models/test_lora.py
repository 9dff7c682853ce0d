"""Adapters start as they should, and are merged into what they are worth."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM

from lightrft.config.load import make_config
from lightrft.errors import ModelError
from lightrft.models.load import parameters_on_meta
from lightrft.models.lora import add_lora
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.image_text import tiny_image_model
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora
from lightrft.weights.buckets import Weight
from lightrft.weights.lora_merge import Adapter, is_adapter, merged, plain_name

pytest.importorskip("peft", reason="the extra `lora` is not installed")

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def lora(model, **changes):
    return add_lora(model, **({"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"], "seed": 1} | changes))


def test_it_starts_as_the_model_without_and_trains_adapters_alone():
    model = tiny_causal_lm().eval()
    expected = model(IDS).logits
    adapted = lora(model)
    assert torch.equal(adapted(IDS).logits, expected)
    assert {is_adapter(name) for name, p in adapted.named_parameters() if p.requires_grad} == {True}
    assert not any("lm_head" in name or "embed" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_start_values_come_from_the_seed_alone():
    first, again, other = (dict(lora(tiny_causal_lm(), seed=seed).named_parameters()) for seed in (1, 1, 2))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert 0 < float(first[name].detach().abs().max()) <= 64**-0.5  # Kaiming with a = sqrt(5): uniform up to 1 / sqrt(inputs)
    with parameters_on_meta():
        model = tiny_causal_lm()
    empty = dict(lora(model, seed=1).named_parameters())
    assert torch.equal(empty[name], first[name])
    assert empty[name.replace("lora_A.default", "base_layer")].is_meta


def test_layers_that_there_are_not_are_named_beside_those_that_there_are():
    with pytest.raises(ModelError, match=r"has no linear layer called c_attn; it has q_proj, k_proj,.*all-linear"):
        lora(tiny_causal_lm(), target_modules=["q_proj", "c_attn"])


def test_of_modules_of_one_name_the_linear_ones_get_adapters():
    """The `proj` of Qwen-VL's patches is a convolution, whose adapter cannot be merged."""
    model = tiny_image_model()
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith(".proj")}
    assert kinds == {"Conv3d", "Linear"}
    adapted = add_lora(model, rank=2, alpha=4.0, target_modules=["proj"], seed=0)
    found = {name.split(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(found) == 2 and all(name.endswith(".attn.proj") for name in found), found


def test_a_tied_layer_is_refused():
    with pytest.raises(ModelError, match="lm_head shares its weight with another layer of Qwen3ForCausalLM"):
        lora(tiny_causal_lm(tie=True), target_modules=["q_proj", "lm_head"])
    assert lora(tiny_causal_lm(tie=False), target_modules=["lm_head"])


def test_some_layers_alone():
    names = [name for name, p in lora(tiny_causal_lm(), target_modules=["q_proj"]).named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 and all(".q_proj." in name for name in names)


def test_names_are_those_of_the_model_without():
    plain = {name for name, _ in tiny_causal_lm().named_parameters()}
    assert {plain_name(name) for name, _ in lora(tiny_causal_lm()).named_parameters() if not is_adapter(name)} == plain
    assert plain_name("base_model.model.a.q.lora_A.default.weight") == "base_model.model.a.q.lora_A.weight"
    assert plain_name("a.q.base_layer.bias") == "a.q.bias"


def test_merged_by_hand_cast_and_cut_again():
    """W = [[1, 2]], A = [[1, 1]], B = [[3]], scale 0.5: W + 0.5 * 3 * [1, 1]."""
    weights = [
        Weight(("x.norm.weight",), torch.tensor([7.0])),
        Weight(("x.q.base_layer.weight",), torch.tensor([[1.0, 2.0]])),
        Weight(("x.q.lora_A.default.weight",), torch.tensor([[1.0, 1.0]])),
        Weight(("x.q.lora_B.default.weight",), torch.tensor([[3.0]])),
        Weight(("x.t.base_layer.weight",), torch.tensor([[1.0], [2.0]])),
        Weight(("x.t.lora_A.default.weight",), torch.tensor([[1.0, 2.0]])),
        Weight(("x.t.lora_B.default.weight",), torch.tensor([[1.0]])),
    ]
    adapters = {"x.q.weight": Adapter(0.5, transposed=False), "x.t.weight": Adapter(1.0, transposed=True)}
    buckets = list(merged([weights[:2], weights[2:]], adapters, dtype=torch.bfloat16, max_bytes=6))
    assert [[w.names for w in bucket] for bucket in buckets] == [[("x.norm.weight",), ("x.q.weight",)], [("x.t.weight",)]]
    found = {w.names[0]: w.tensor for bucket in buckets for w in bucket}
    assert found["x.q.weight"].tolist() == [[2.5, 3.5]] and found["x.t.weight"].tolist() == [[2.0], [4.0]]
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert weights[1].tensor.tolist() == [[1.0, 2.0]]  # the model's own stays


def test_values_that_count():
    adapted = tiny_lora(tiny_causal_lm().eval())
    assert not torch.allclose(adapted(IDS).logits, tiny_causal_lm().eval()(IDS).logits)


def test_layers_beside_stacked_experts_get_adapters_and_experts_none(tmp_path):
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    names = set(model.state_dict())
    strategy = get_strategy(make_config({"strategy": "single"}))
    actor, optimizer = strategy.prepare_trainable(lora(model), optimizer=AdamWSettings(learning_rate=1e-2))
    assert not any("experts" in name for name, p in actor.named_parameters() if p.requires_grad)
    strategy.backward(actor(IDS).logits.logsumexp(-1).mean(), actor, optimizer)
    strategy.optimizer_step(optimizer, actor, None)
    weights = {name: w.tensor for bucket in strategy.export_weights(actor) for w in bucket for name in w.names}
    assert weights.keys() == names
    twin = MixtralForCausalLM(config).eval()
    twin.load_state_dict(weights)
    torch.testing.assert_close(twin(IDS).logits, actor(IDS).logits, rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match=r"experts, w1 would reach the experts of MixtralForCausalLM.*possible: q_proj, k_proj"):
        lora(MixtralForCausalLM(config), target_modules=["experts", "w1", "q_proj"])
    strategy.shutdown()


def test_what_peft_refuses_is_told_with_the_layers_that_there_are():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=8))
    with pytest.raises(ModelError, match=r"peft refuses a layer of MambaForCausalLM.*out_proj.*Linear layers are in_proj"):
        lora(model)
