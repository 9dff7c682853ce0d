"""Is every difference between the actor's weights and the engine's model told before anything is sent?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from lightrft.distributed.buckets import Weight, tied_names
from lightrft.engine.file_names import FileNames
from lightrft.engine.manifest import expected_shapes
from lightrft.engine.sync_check import check_fit
from lightrft.errors import WeightSyncError
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder


def sent_by(model: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    names = tied_names(model)
    return {names[name]: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("tie", [False, True])
def test_the_model_of_the_folder_fits(tmp_path: Path, tie: bool) -> None:
    expected = expected_shapes(str(tiny_model_folder(tmp_path, tie=tie)))
    assert ("lm_head.weight" in expected) is not tie
    check_fit(sent_by(tiny_causal_lm(tie=tie)), expected)


def test_what_is_missing_unknown_or_misshapen_is_named(tmp_path: Path) -> None:
    expected = expected_shapes(str(tiny_model_folder(tmp_path)))
    sent = sent_by(tiny_causal_lm())
    del sent[("model.norm.weight",)]
    sent[("extra.weight",)] = (3,)
    sent[("lm_head.weight",)] = (65, 64)
    with pytest.raises(WeightSyncError) as caught:
        check_fit(sent, expected)
    assert str(caught.value) == (
        "the actor's weights do not fit the engine's model, nothing was sent: missing in the actor: model.norm.weight (1 in all); "
        "unknown to the engine: extra.weight (1 in all); of another shape: lm_head.weight (actor (65, 64), engine (64, 64)) (1 in all)"
    )


def test_a_folder_without_safetensors_says_nothing(tmp_path: Path) -> None:
    assert expected_shapes(str(tmp_path)) == {}
    check_fit({("anything",): (1,)}, {})


def test_stacked_experts_leave_under_the_names_of_the_files(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path)
    expected = expected_shapes(str(tmp_path))
    names = FileNames(str(tmp_path), expected)
    check_fit(names.convert_shapes(sent_by(model)), expected)
    stacked = model.model.layers[0].mlp.experts.gate_up_proj.detach()
    converted = {w.names[0]: w.tensor for w in names.convert([Weight(("model.layers.0.mlp.experts.gate_up_proj",), stacked)])}
    torch.testing.assert_close(converted["model.layers.0.mlp.experts.2.gate_proj.weight"], stacked[2, :32])
    torch.testing.assert_close(converted["model.layers.0.mlp.experts.3.up_proj.weight"], stacked[3, 32:])
