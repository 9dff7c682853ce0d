"""A model that an engine cannot do is refused by what its config.json says, before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightrft.config import Config
from lightrft.config.checks import check_engine
from lightrft.errors import ConfigError
from lightrft.plugins import Capability, EngineSpec, PluginEntry, Registry
from lightrft.plugins.registry import Provider

LLAMA = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96, "max_position_embeddings": 64}


def problems(folder: Path, model: dict[str, Any] | None, *, world: int = 1, device: str = "cpu", **settings: Any) -> list[str]:
    cutting = EngineSpec(
        name="cutting",
        target="a:b",
        capabilities=frozenset(Capability),
        cuts_heads=True,
        cpu_head_sizes=frozenset({16, 32}),
        cpu_latent_sizes=frozenset({576}),
    )
    plain = EngineSpec(name="plain", target="a:b", capabilities=frozenset(Capability))
    provider = Provider(distribution="x", version="1", entry_point="x")
    if model is not None:
        (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    config = Config(
        **{"engine_type": "cutting", "model_name_or_path": str(folder), "prompt_max_len": 32, "generate_max_len": 32} | settings
    )
    try:
        registry = Registry([PluginEntry(provider=provider, spec=spec) for spec in (cutting, plain)])
        check_engine(config, registry=registry, world_size=world, device_type=device)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("tp", [1, 3, 6])
def test_a_model_that_fits_is_let_in(tmp_path: Path, tp: int) -> None:
    assert problems(tmp_path, LLAMA, world=6, engine_tp_size=tp) == []


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (LLAMA, {"engine_tp_size": 4, "world": 4}, "engine_tp_size=4 does not divide the model's 6 attention heads, .* possible: 1, 3, 6"),
        (LLAMA, {"engine_tp_size": 2, "world": 4}, "engine_tp_size=2 and the model's 3 key-value heads do not divide one another"),
        (LLAMA, {"engine_tp_size": 4, "world": 2}, "engine_tp_size=4 does not divide the world size 2; possible: 1, 2"),
        (
            LLAMA | {"head_dim": 24},
            {},
            "'cutting' on the CPU cannot do .* size 24; possible: 16, 32; use another model, or --engine_type hf",
        ),
        (
            LLAMA | {"vocab_size": 64},
            {"stop_token_ids": [2, 64, 151643]},
            r"^stop_token_ids=\[2, 64, 151643\]: 64, 151643 is beyond .* vocabulary of 64 tokens .*, possible: 0 to 63; .* leave it out$",
        ),
        (LLAMA, {"generate_max_len": 40}, r"32 \+ 40 = 72 tokens is more than the model's context of 64 .*; lower one of them"),
        ({"n_head": 6, "n_embd": 60, "n_positions": 64}, {"engine_tp_size": 4, "world": 4}, "6 attention heads.*\n.*of size 10"),
        ({"text_config": LLAMA | {"head_dim": 8}, "vision_config": {}}, {}, "of size 8"),
        (LLAMA | {"head_dim": 64, "kv_lora_rank": 512, "qk_rope_head_dim": 32}, {}, "latent attention .* of size 544; possible: 576"),
    ],
)
def test_what_it_cannot_do_is_one_line(tmp_path: Path, model: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    assert re.search(said, "\n".join(problems(tmp_path, model, **settings)))


def test_what_does_not_hold_is_not_said(tmp_path: Path) -> None:
    odd = LLAMA | {"head_dim": 24}
    assert problems(tmp_path, odd, device="cuda") == [], "on CUDA it can"
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert problems(tmp_path, LLAMA | {"head_dim": 64} | latent) == [], "DeepSeek-V3's head_dim is not its attention's"
    assert problems(tmp_path, odd, world=4, engine_tp_size=4, engine_type="plain") == [], "it cuts nothing"
    assert problems(tmp_path, LLAMA | {"rope_scaling": {"rope_type": "yarn"}}, generate_max_len=400) == [], "stretched positions"
    assert problems(tmp_path, LLAMA | {"vocab_size": 64}, stop_token_ids=[0, 63]) == [], "the first and the last token"
    assert problems(tmp_path, LLAMA, stop_token_ids=[64]) == [], "a vocabulary that config.json does not tell"
    assert problems(tmp_path, None) == problems(tmp_path, {}) == [], "a hub name, a configuration that says nothing"


def test_a_scratch_model_is_judged_by_its_settings(tmp_path: Path) -> None:
    scratch = {"scratch_tokenizer": "char", "model_name_or_path": "", "scratch_hidden": 96, "scratch_heads": 12}
    assert "of size 8" in problems(tmp_path, None, **scratch)[0]
