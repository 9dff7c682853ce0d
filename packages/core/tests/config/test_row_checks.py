"""What the model and the ranks cannot do with packed and shared rows, said at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.config.row_checks import packing_problem, row_fit

QWEN = {"model_type": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096}


def problems(folder: Path, values: dict[str, Any], *, world_size: int = 1, **settings: Any) -> list[str]:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return list(row_fit(make_config({"model_name_or_path": str(folder), **settings}), world_size=world_size))


def test_what_fits_is_not_mentioned(tmp_path: Path) -> None:
    assert problems(tmp_path, QWEN, world_size=4, sp_size=2, packing_samples=True) == []
    assert problems(tmp_path, QWEN | {"layer_types": ["full_attention", "sliding_attention"]}, packing_samples=True) == []


def test_ranks_that_a_sequence_cannot_have(tmp_path: Path) -> None:
    assert problems(tmp_path, QWEN, world_size=6, sp_size=4) == ["sp_size=4 does not divide the world size 6; possible: 1, 2, 3, 6"]


def test_heads_that_a_sequences_ranks_do_not_divide(tmp_path: Path) -> None:
    found = problems(tmp_path, QWEN, world_size=8, sp_size=4)
    assert found == ["sp_size=4 does not divide the model's 6 attention heads; possible: 1, 2"]


def test_the_scratch_model_has_heads_too() -> None:
    config = make_config({"scratch_tokenizer": "char", "scratch_heads": 3, "sp_size": 2})
    assert list(row_fit(config, world_size=2)) == ["sp_size=2 does not divide the model's 3 attention heads; possible: 1"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "mamba", "state_size": 16}, "a state-space model"),
        ({"model_type": "qwen3_next", "linear_conv_kernel_dim": 4}, "a model with linear attention"),
        ({"model_type": "lfm2", "conv_L_cache": 3, "layer_types": ["conv", "full_attention"]}, "one with layers of the kind conv"),
        ({"model_type": "llama4_text", "layer_types": ["chunked_attention"]}, "one with layers of the kind chunked_attention"),
        ({"model_type": "falcon", "alibi": True}, "a model with ALiBi"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"),
    ],
)
def test_models_that_cannot_be_packed_are_refused_by_what_they_are(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    asked = problems(tmp_path, values, packing_samples=True)
    assert asked == [f"packing_samples=True: the model is {words}, whose sequences cannot stand in one row; leave packing_samples out"]
    assert problems(tmp_path, values, world_size=2, sp_size=2)[0].endswith("leave sp_size out")
    assert problems(tmp_path, values) == []


def test_a_hybrid_whose_layers_are_all_attention_can_be_packed() -> None:
    """Granite 4 has such: the keys of its state-space layers are there, the layers are not."""
    assert packing_problem({"model_type": "granitemoehybrid", "mamba_d_state": 128, "layer_types": ["attention", "attention"]}) == ""


@pytest.mark.parametrize(
    ("rope", "original"),
    [
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}, "original_max_position_embeddings": 512}, 512),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 512}}, 512),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}, "max_position_embeddings": 600}, 600),
    ],
)
def test_rotary_scaling_that_follows_the_longest_of_a_batch(tmp_path: Path, rope: dict[str, Any], original: int) -> None:
    """Within the original context every sequence has the same frequencies, whatever stands beside it."""
    values = {"model_type": "phi3", "max_position_embeddings": 131072, "num_attention_heads": 8} | rope
    found = problems(tmp_path, values, prompt_max_len=original - 100, generate_max_len=101)
    assert len(found) == 1 and f"beyond {original}, the model's rotary scaling" in found[0]
    assert found[0].endswith(f"lower them to {original} together")
    assert problems(tmp_path, values, prompt_max_len=original - 100, generate_max_len=100) == []


@pytest.mark.parametrize("kind", ["yarn", "linear", "llama3", "default"])
def test_other_rotary_scaling_gives_each_sequence_its_own(tmp_path: Path, kind: str) -> None:
    values = {"model_type": "llama", "rope_scaling": {"rope_type": kind, "original_max_position_embeddings": 512}}
    assert problems(tmp_path, values, prompt_max_len=4000, generate_max_len=4000) == []
