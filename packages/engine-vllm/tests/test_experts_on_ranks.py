"""Experts that a strategy has sharded over two ranks arrive in vLLM, each verified: in an engine of both ranks, and in one of each."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from families import engine_gap, make_family

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow
CLOSE = 1e-5


def on_ranks(family: str, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    given = {"engine_type": "vllm", "model_name_or_path": folder, "prompt_max_len": 32, "generate_max_len": 16}
    config = make_config(given | settings)
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    gaps, unverified, differing = [engine_gap(strategy, make_family(family, seed=1))], list[str](), list[str]()
    try:
        for seed in (0, 2):
            actor, _ = strategy.prepare_trainable(make_family(family, seed=seed), optimizer=AdamWSettings(learning_rate=1e-3))
            strategy.update_engine_weights(actor)
            unverified += strategy.unverified_weights
            differing += strategy.differing_engine_weights(actor) or []
            gaps.append(engine_gap(strategy, make_family(family, seed=seed)))
    finally:
        strategy.shutdown()
    return {"gap": max(gaps), "unverified": unverified, "differing": differing}


@pytest.mark.parametrize(
    ("family", "settings"),
    [("qwen3-moe", {"strategy": "fsdp", "engine_tp_size": 2}), ("qwen2-moe", {"strategy": "deepspeed", "zero_stage": 3})],
)
def test_every_expert_of_sharded_ones_is_verified(tmp_path: pathlib.Path, family: str, settings: dict[str, Any]) -> None:
    make_family(family, seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for row in run_spmd(on_ranks, 2, family, str(tmp_path), settings, timeout_s=240):
        assert row["gap"] <= CLOSE and row["differing"] == []
        kept = [name for name in row["unverified"] if ".self_attn." not in name]  # of one key-value head both ranks have a copy
        assert kept == []
