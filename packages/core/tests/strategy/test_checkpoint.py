"""Nothing saved is ever lost. Every moment at which a save can be cut off, and what is found afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightrft.config.load import make_config
from lightrft.distributed import atomic_folder
from lightrft.errors import CheckpointError
from lightrft.strategy import get_strategy, hf_export
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_tokenizer
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference


class Killed(BaseException):
    """Stands for `kill -9`: nothing of ours may catch it."""


@pytest.fixture
def strategy(monkeypatch: pytest.MonkeyPatch) -> StrategyBase:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # numbers by hand are the CPU's
    return get_strategy(make_config({"strategy": "single"}), registry=fake_registry())


@pytest.fixture
def trained(strategy: StrategyBase) -> dict[str, Any]:
    model, optimizer = strategy.prepare_trainable(torch.nn.Linear(2, 2), optimizer=SETTINGS)
    return {"model": model, "optimizer": optimizer}


def step_of(strategy: StrategyBase, folder: Path, trained: dict[str, Any]) -> int:
    return int(strategy.load_ckpt(folder, **trained)["step"])


@pytest.mark.parametrize(
    "words",
    [
        "PytorchStreamWriter failed writing file data/3: file write failed",
        "[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 22",
        "basic_ios::clear: iostream error",
    ],
)
def test_a_full_device_is_one_line_whichever_byte_did_not_fit(
    strategy: StrategyBase, trained: dict[str, Any], tmp_path: Path, words: str
) -> None:
    with mock.patch("torch.save", side_effect=RuntimeError(words)), pytest.raises(CheckpointError) as caught:
        strategy.save_ckpt(tmp_path / "ckpt", **trained)
    assert str(caught.value).endswith(f"a file cannot be written: {words}; what was there before is unchanged")
    assert not list(tmp_path.iterdir())


CALLS = ["pathlib.Path.mkdir", "torch.save", "pathlib.Path.write_text", "os.fsync", "pathlib.Path.rename", "shutil.rmtree"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_moment_leaves_the_last_finished_save_or_the_new_one(
    strategy: StrategyBase, trained: dict[str, Any], tmp_path: Path, call: str, after: bool
) -> None:
    folder = tmp_path / "ckpt"
    module, name = call.rsplit(".", 1)
    target = {"pathlib.Path": Path, "torch": torch, "os": atomic_folder.os, "shutil": shutil}[module]
    real = getattr(target, name)
    cut_offs = 0
    for moment in range(12):
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        strategy.save_ckpt(folder, client_state={"step": 1}, **trained)
        calls = iter(range(100))

        def cut(*args: Any, moment: int = moment, calls: Any = calls, **kwargs: Any) -> Any:
            now = next(calls) == moment
            if now and not after:
                raise Killed
            result = real(*args, **kwargs)
            if now:
                raise Killed
            return result

        finished = True
        with mock.patch.object(target, name, cut):
            try:
                strategy.save_ckpt(folder, client_state={"step": 2}, **trained)
            except Killed:
                finished, cut_offs = False, cut_offs + 1
        assert step_of(strategy, folder, trained) in ({2} if finished else {1, 2})
        strategy.save_ckpt(folder, client_state={"step": 3}, **trained)
        assert step_of(strategy, folder, trained) == 3
        assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
    assert cut_offs > 0


def test_the_copy_between_two_renames_survives_a_second_kill(strategy: StrategyBase, trained: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    strategy.save_ckpt(folder, client_state={"step": 1}, **trained)
    folder.rename(tmp_path / ".ckpt.old")  # the first kill
    with mock.patch("pathlib.Path.rename", side_effect=Killed), pytest.raises(Killed):
        strategy.save_ckpt(folder, client_state={"step": 2}, **trained)
    assert step_of(strategy, folder, trained) == 1
    assert atomic_folder.find(folder) == tmp_path / ".ckpt.old"
    strategy.save_ckpt(folder, client_state={"step": 3}, **trained)
    assert atomic_folder.find(folder) == folder
    assert step_of(strategy, folder, trained) == 3


def test_bad_checkpoints_are_named(strategy: StrategyBase, trained: dict[str, Any], tmp_path: Path) -> None:
    good = tmp_path / "good"
    strategy.save_ckpt(good, **trained)
    manifest = json.loads((good / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["extra.pt", "state.pt"]
    state = bytearray((good / "state.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (good / "state.pt").write_bytes(bytes(state))
    with pytest.raises(CheckpointError, match=r"good' is damaged: state\.pt is not what was saved"):
        strategy.load_ckpt(good, **trained)
    other, optimizer = strategy.prepare_trainable(torch.nn.Linear(3, 2), optimizer=SETTINGS)
    with pytest.raises(CheckpointError, match=r"of another model: 1 parameters differ, first: weight \(saved \[2, 2\], here \[2, 3\]\)"):
        strategy.load_ckpt(good, model=other, optimizer=optimizer)
    with pytest.raises(CheckpointError, match=r"nowhere' is not a checkpoint: it has no manifest\.json"):
        strategy.load_ckpt(tmp_path / "nowhere", **trained)


def test_loading_never_unpickles_code(strategy: StrategyBase, trained: dict[str, Any], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    with mock.patch.object(strategy, "_save_state", lambda folder, model, optimizer: torch.save(Evil(), folder / "state.pt")):
        strategy.save_ckpt(tmp_path / "evil", **trained)
    with pytest.raises(Exception, match="[Ww]eights"):
        strategy.load_ckpt(tmp_path / "evil", **trained)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("shard_bytes", [hf_export.SHARD_BYTES, 50_000])
def test_the_model_folder_equals_the_model(
    strategy: StrategyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tie: bool, shard_bytes: int
) -> None:
    monkeypatch.setattr(hf_export, "SHARD_BYTES", shard_bytes)
    model, _ = strategy.prepare_trainable(tiny_causal_lm(tie=tie), optimizer=SETTINGS)
    strategy.save_model(model, tmp_path / "m", tokenizer=tiny_tokenizer())
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (shard_bytes > 50_000)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert largest_difference(dict(loaded.named_parameters()), full_parameters(strategy, model)) == 0
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie
    assert loaded.generation_config.eos_token_id == 1


def test_the_model_folder_says_class_and_dtype_and_the_model_keeps_its_configuration(strategy: StrategyBase, tmp_path: Path) -> None:
    model = tiny_causal_lm()
    model.config.architectures = None
    model.config.dtype = torch.bfloat16
    strategy.save_model(model, tmp_path / "m")
    saved = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (saved["architectures"], saved["dtype"]) == (["Qwen3ForCausalLM"], "float32")
    assert (model.config.architectures, model.config.dtype) == (None, torch.bfloat16)
