"""A resumed run is the same run, also on another number of ranks; a bad checkpoint raises the same on all ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError, PeerError
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm, tiny_tokenizer
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

Optimizer = torch.optim.Optimizer
Tensors = dict[str, torch.Tensor]


class Run:
    """A model (tied weights, sizes that no world divides), its optimizer and a schedule."""

    def __init__(self, *, seed: int = 0, offload: bool = False, layers: int = 2) -> None:
        self.strategy = get_strategy(make_config({"fsdp": True, "fsdp_cpu_offload": offload}))
        model = tiny_causal_lm(seed=seed, tie=True, vocab_size=64, layers=layers)
        self.model, self.optimizer = self.strategy.prepare_trainable(model, optimizer=SETTINGS)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def train(self, first: int, last: int) -> None:
        self.strategy.maybe_load_optimizer(self.optimizer)
        train(self.strategy, self.model, self.optimizer, first=first, last=last, scheduler=self.scheduler, max_norm=1.0)
        self.strategy.maybe_offload_optimizer(self.optimizer)

    def save(self, folder: Path, step: int) -> None:
        state = {"step": step, "noise": torch.arange(3), "path": [1, {"a": "b"}]}
        self.strategy.save_ckpt(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, client_state=state)

    def load(self, folder: Path) -> dict[str, Any]:
        return self.strategy.load_ckpt(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)

    def everything(self) -> Tensors:
        """Parameters, moments and step counts, full, and the learning rate."""
        self.strategy.maybe_load_optimizer(self.optimizer)
        found = full_parameters(self.strategy, self.model)
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key} of {name}"] = (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        return found | {"rate": torch.tensor(self.scheduler.get_last_lr()[0])}


def straight(folder: str) -> dict[str, Any]:
    """Saves at steps 0 and 3, goes on to 5; another run without saves must be the same."""
    run = Run()
    run.save(Path(folder) / "start", 0)
    run.train(0, 3)
    run.save(Path(folder) / "three", 3)
    at_three = run.everything()
    run.train(3, 5)
    undisturbed = Run()
    undisturbed.train(0, 5)
    return {"at three": at_three, "at five": run.everything(), "undisturbed": undisturbed.everything()}


def resumed(folder: str, offload: bool) -> dict[str, Any]:
    run = Run(seed=7, offload=offload)
    run.train(8, 9)  # what is loaded replaces everything
    client_state = run.load(Path(folder) / "three")
    at_three = run.everything()
    if offload:
        run.strategy.maybe_offload_optimizer(run.optimizer)
        run.save(Path(folder) / "while offloaded", 3)
        assert not any(isinstance(v, DTensor) for state in run.optimizer.state.values() for v in state.values())
        again = Run(seed=8)
        again.load(Path(folder) / "while offloaded")
        assert largest_difference(again.everything(), at_three) == 0
    run.train(3, 5)
    start = Run(seed=9)
    start.train(8, 9)
    start.load(Path(folder) / "start")
    num_state = len(start.optimizer.state)
    start.train(0, 5)
    return {
        "at three": at_three,
        "at five": run.everything(),
        "from the start": start.everything(),
        "num_state": num_state,
        "client_state": client_state,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Any]:
    return run_spmd(straight, 2, str(folder))[0]


def test_saving_changes_nothing_in_the_run(saved: dict[str, Any]) -> None:
    assert largest_difference(saved["at five"], saved["undisturbed"]) == 0
    assert largest_difference(saved["at five"], saved["at three"]) > 1e-4


@pytest.mark.parametrize("offload", [False, True])
def test_resumed_on_as_many_ranks_is_bitwise_the_same_run(saved: dict[str, Any], folder: Path, offload: bool) -> None:
    for rank in run_spmd(resumed, 2, str(folder), offload):
        for when in ("at three", "at five"):
            assert len(rank[when]) > 60
            assert largest_difference(rank[when], saved[when]) == 0
        assert rank["num_state"] == 0
        assert largest_difference(rank["from the start"], saved["at five"]) == 0
        state = rank["client_state"]
        assert (state["step"], state["noise"].tolist(), state["path"]) == (3, [0, 1, 2], [1, {"a": "b"}])


@pytest.mark.parametrize("world_size", [1, 4])
def test_resumed_on_other_ranks_starts_bitwise_and_stays_close(saved: dict[str, Any], folder: Path, world_size: int) -> None:
    for rank in run_spmd(resumed, world_size, str(folder), False):
        assert largest_difference(rank["at three"], saved["at three"]) == 0
        assert 0 < largest_difference(rank["at five"], saved["at five"]) < 3e-5


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def refused(what: Callable[[], object]) -> str:
    with pytest.raises((CheckpointError, PeerError)) as caught:  # PeerError where only another rank saw it
        what()
    return str(caught.value)


def bad_checkpoints(folder: str) -> dict[str, str]:
    run, good = Run(), Path(folder) / "good"
    run.save(good, 0)
    messages = {"missing": refused(lambda: run.load(Path(folder) / "nowhere"))}
    messages["other model"] = refused(lambda: Run(layers=3).load(good))
    if run.strategy.is_rank_0:
        for name in ("flipped", "gone", "manifest", "foreign"):
            shutil.copytree(good, Path(folder) / name)
        flip(Path(folder) / "flipped" / "__1_0.distcp")
        (Path(folder) / "gone" / "extra.pt").unlink()
        (Path(folder) / "manifest" / "manifest.json").write_text("{")
        manifest = json.loads((good / "manifest.json").read_text()) | {"strategy": "single"}
        (Path(folder) / "foreign" / "manifest.json").write_text(json.dumps(manifest))
    run.strategy.all_reduce(0)
    for name in ("flipped", "gone", "manifest", "foreign"):
        messages[name] = refused(lambda name=name: run.load(Path(folder) / name))  # type: ignore[misc]  # mypy cannot infer the default
    run.load(good)
    return messages


def test_a_bad_checkpoint_is_refused_on_all_ranks_in_one_line(tmp_path: Path) -> None:
    for messages in run_spmd(bad_checkpoints, 2, str(tmp_path)):
        assert "nowhere' is not a checkpoint: it has no manifest.json" in messages["missing"]
        assert "of another model: 11 parameters differ, first: model.layers.2.input_layernorm.weight (saved None" in messages["other model"]
        assert "flipped' is damaged: __1_0.distcp is not what was saved" in messages["flipped"]
        assert "gone' is damaged: extra.pt is missing" in messages["gone"]
        assert "manifest' is damaged: manifest.json cannot be read" in messages["manifest"]
        assert "was saved by strategy 'single', this is 'fsdp'" in messages["foreign"]
        assert not any("\n" in message for message in messages.values())


def failing_saves(folder: str) -> dict[str, Any]:
    run, target = Run(), Path(folder) / "kept"
    run.save(target, 1)
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    run.train(0, 1)
    hook = run.strategy._save_state

    def full_disk(at: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
        hook(at, model, optimizer)
        if run.strategy.world.rank == 1:
            raise OSError(28, "No space left on device")

    with mock.patch.object(run.strategy, "_save_state", full_disk):
        late = refused(lambda: run.save(target, 2))
    blocked = Path(folder) / "file"
    blocked.write_text("not a folder")
    with mock.patch("torch.distributed.checkpoint.FileSystemWriter.write_data", side_effect=OSError(28, "No space left on device")):
        inside = refused(lambda: run.save(target, 2))
    return {
        "late": late,
        "inside": inside,
        "blocked": refused(lambda: run.save(blocked / "ckpt", 2)),
        "kept": {p.name: p.read_bytes() for p in target.iterdir()} == before,
        "loads": run.load(target)["step"],
    }


def test_a_save_that_fails_anywhere_fails_on_all_ranks_and_keeps_the_old_one(tmp_path: Path) -> None:
    for rank in run_spmd(failing_saves, 2, str(tmp_path)):
        assert "No space left on device" in rank["late"]
        assert "No space left on device" in rank["inside"]
        assert "Not a directory" in rank["blocked"]
        assert rank["kept"] and rank["loads"] == 1


def saved_models(folder: str) -> dict[str, Tensors]:
    strategy: StrategyBase = get_strategy(make_config({"fsdp": True}))
    out = {}
    for tie in (False, True):
        model, optimizer = strategy.prepare_trainable(tiny_causal_lm(tie=tie), optimizer=SETTINGS)
        train(strategy, model, optimizer, last=1)
        strategy.save_model(model, Path(folder) / str(tie), tokenizer=tiny_tokenizer())
        out[str(tie)] = full_parameters(strategy, model)
    return out


def test_the_model_folder_loads_in_transformers_and_is_equal(tmp_path: Path) -> None:
    ranks = run_spmd(saved_models, 2, str(tmp_path))
    for tie in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(tie))
        assert type(model).__name__ == "Qwen3ForCausalLM"
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
        expected = ranks[0][str(tie)]
        assert largest_difference(dict(model.named_parameters()), expected) == 0
        assert json.loads((tmp_path / str(tie) / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
        assert AutoTokenizer.from_pretrained(tmp_path / str(tie)).decode([13, 14]) == tiny_tokenizer().decode([13, 14])
