"""Weights that the engine gives no checksum for are told once, and stand in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from lightrft.engine.hf import HFEngine
from lightrft.testing.small_trainer import make_trainer
from lightrft.weights.checksum import WeightChecksum

HIDDEN = [f"model.layers.{layer}.{name}" for layer in range(2) for name in ("mlp.down_proj.weight", "input_layernorm.weight")]
SETTINGS = {"engine_type": "hf", "verify_sync_every": 1, "logprob_gap_prompts": 0}


def test_they_are_told_once_and_named_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = HFEngine.weight_checksums

    def some(engine: HFEngine) -> Mapping[tuple[str, ...], WeightChecksum]:
        return {names: value for names, value in whole(engine).items() if names[0] not in HIDDEN}

    monkeypatch.setattr(HFEngine, "weight_checksums", some)
    trainer = make_trainer(tmp_path, **SETTINGS)
    trainer.fit()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "no checksum" in line]
    assert f"engine 'hf' gives no checksum of 4 weights ({', '.join(HIDDEN[:3])}, ...); " in line
    assert line.endswith("all names: unverified_weights.json of the run folder")
    assert json.loads((tmp_path / "run" / "unverified_weights.json").read_text()) == HIDDEN
    assert trainer.strategy.sent_fingerprint is not None, "the others are proved"


def test_where_all_are_verified_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, max_steps=1, **SETTINGS).fit()
    assert "no checksum" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "unverified_weights.json").exists()
