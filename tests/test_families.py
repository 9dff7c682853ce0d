"""The table of model families: each is right from its folder through engine, sync and update to the folder that is saved.

On the reference engine here; `packages/engine-vllm/tests/test_family_table.py` and SGLang's ask the same of what these can load.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, family_row, make_family
from transformers import AutoConfig

from lightrft.config.load import make_config
from lightrft.models.folder_check import folder_problem
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.weights.model_class import language_model_class

SAMPLE = ("llama", "gemma3", "mixtral", "gpt-neox", "lfm2", "mistral3-vl")
"""Of every kind one: plain, other norms and windows, stacked experts, other names, a state that is no cache, an image-text model."""

CLOSE = 1e-5
"""Nats, in float32; sizes of logits are about 1."""

IDS = torch.arange(3, 30)[None]


@pytest.mark.parametrize("family", [f if f in SAMPLE else pytest.param(f, marks=pytest.mark.long) for f in FAMILIES])
def test_a_family_is_right_from_folder_to_folder(tmp_path: Path, family: str) -> None:
    make_family(family, seed=1).save_pretrained(tmp_path / "base")
    assert folder_problem("m", str(tmp_path / "base")) == ""
    row = family_row(family, tmp_path / "base", engine="hf")
    assert row["before"] <= CLOSE and row["after"] <= CLOSE and row["greedy"] == []
    assert row["differing"] == [] and row["unverified"] == []
    trained_and_saved(family, tmp_path)


def trained_and_saved(family: str, path: Path) -> None:
    """A step moves the model, and the saved folder holds what it moved to."""
    strategy = get_strategy(make_config({"strategy": "single"}))
    actor, optimizer = strategy.prepare_trainable(make_family(family), optimizer=AdamWSettings(learning_rate=1e-3))
    before = actor(input_ids=IDS).logits.detach()
    strategy.accumulate([IDS], lambda ids: actor(input_ids=ids).logits.float().logsumexp(-1).mean(), actor, optimizer)
    assert not strategy.optimizer_step(optimizer, actor, None).skipped
    strategy.save_model(actor, path / "saved")
    config = AutoConfig.from_pretrained(path / "saved")
    again, info = language_model_class(config).from_pretrained(path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        after = actor(input_ids=IDS).logits
        assert float((again.eval()(input_ids=IDS).logits - after).abs().max()) <= CLOSE
        assert float((before - after).abs().max()) > 200 * CLOSE or family.startswith("cohere")  # whose logits are scaled down
    assert folder_problem("m", str(path / "saved")) == ""
    strategy.shutdown()


@pytest.mark.parametrize("family", ["glm4-moe", "mixtral", "lfm2", "gemma4"])
def test_level_2_of_sleep_brings_all_back(tmp_path: Path, family: str) -> None:
    make_family(family, seed=1).save_pretrained(tmp_path)
    row = family_row(family, tmp_path, engine="hf", engine_sleep_level=2)
    assert row["after"] <= CLOSE and row["greedy"] == [] and row["differing"] == []


def test_the_table_has_its_size() -> None:
    assert len(FAMILIES) >= 40
