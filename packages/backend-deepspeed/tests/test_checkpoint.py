"""A resumed run is the same run at every ZeRO stage; a checkpoint that does not fit is refused on all ranks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_optimizer_state

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError, PeerError
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft_deepspeed.fragments import held_once

Tensors = dict[str, torch.Tensor]

STAGES = (0, 1, 2, 3)
FROZEN = "model.layers.0.mlp.up_proj.weight"


class Run:
    """A model (tied weights, one parameter frozen, a buffer that is saved), its optimizer and a schedule."""

    def __init__(self, stage: int, *, seed: int = 0, offload: bool = False, layers: int = 2) -> None:
        self.strategy = get_strategy(make_config({"zero_stage": stage, "adam_offload": offload}))
        self.stage = stage
        model = tiny_causal_lm(seed=seed, tie=True, layers=layers)
        model.get_parameter(FROZEN).requires_grad_(False)
        model.register_buffer("noise", torch.full((3,), float(seed)))
        self.model, self.optimizer = self.strategy.prepare_trainable(model, optimizer=SETTINGS)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def train(self, first: int, last: int) -> None:
        train(self.strategy, self.model, self.optimizer, first=first, last=last, scheduler=self.scheduler, max_norm=1.0)

    def save(self, folder: Path, step: int) -> None:
        state = {"step": step, "path": [1, {"a": "b"}]}
        self.strategy.save_ckpt(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, client_state=state)

    def load(self, folder: Path) -> dict[str, Any]:
        return self.strategy.load_ckpt(folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)

    def everything(self) -> Tensors:
        """Parameters, the buffer and the learning rate."""
        found = full_parameters(self.strategy, self.model)
        return found | {"noise": self.strategy.unwrap(self.model).noise.clone(), "rate": torch.tensor(self.scheduler.get_last_lr()[0])}

    def moments(self) -> Tensors:
        """Full, where DeepSpeed can say so: after a step, at stages 1 to 3."""
        named = self.strategy.unwrap(self.model).named_parameters()
        trained = {name: p for name, p in named if p.requires_grad}
        return {
            f"{key} of {n}": safe_get_full_optimizer_state(p, key).clone() for n, p in trained.items() for key in ("exp_avg", "exp_avg_sq")
        }


def straight(folder: Path, stage: int, offload: bool) -> dict[str, Any]:
    """Saves at steps 0 and 3, goes on to 5."""
    run = Run(stage, offload=offload)
    run.save(folder / "start", 0)
    run.train(0, 3)
    run.save(folder / "three", 3)
    at_three, parameters = run.everything(), full_parameters(run.strategy, run.model)
    run.train(3, 5)
    return {"parameters": parameters, "at three": at_three, "at five": run.everything(), "moments": run.moments() if stage else {}}


def resumed(folder: Path, stage: int, offload: bool) -> dict[str, Any]:
    run = Run(stage, seed=7, offload=offload)
    run.train(8, 9)  # what is loaded replaces everything
    client_state = run.load(folder / "three")
    at_three = run.everything()
    run.train(3, 5)
    out = {"at three": at_three, "at five": run.everything(), "moments": run.moments() if stage else {}, "client_state": client_state}
    fresh = Run(stage, seed=8, offload=offload)  # no step before: its optimizer has no state yet
    fresh.load(folder / "three")
    fresh.train(3, 5)
    start = Run(stage, seed=9, offload=offload)
    start.train(8, 9)
    start.load(folder / "start")
    start.train(0, 5)
    return out | {"into a fresh one": fresh.everything(), "from the start": start.everything()}


CASES = [(stage, False) for stage in STAGES] + [(2, True), (3, True)]


def both(folder: str) -> dict[tuple[int, bool], tuple[dict[str, Any], dict[str, Any]]]:
    out = {}
    for stage, offload in CASES:
        place = Path(folder) / f"{stage}-{offload}"
        out[stage, offload] = straight(place, stage, offload), resumed(place, stage, offload)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[int, bool], tuple[dict[str, Any], dict[str, Any]]]]:
    return run_spmd(both, 2, str(folder), timeout_s=400)


@pytest.mark.parametrize(("stage", "offload"), CASES)
def test_resumed_is_bitwise_the_same_run(ranks: Any, stage: int, offload: bool) -> None:
    for rank in ranks:
        run, again = rank[stage, offload]
        for when in ("at three", "at five"):
            assert len(run[when]) > 20
            assert largest_difference(again[when], run[when]) == 0
        assert largest_difference(run["at five"], run["at three"]) > 1e-4
        assert largest_difference(again["into a fresh one"], run["at five"]) == 0
        assert largest_difference(again["from the start"], run["at five"]) == 0
        assert again["client_state"] == {"step": 3, "path": [1, {"a": "b"}]}
        assert run["at five"]["noise"].tolist() == again["at five"]["noise"].tolist() == [0.0, 0.0, 0.0]
        if stage:
            assert largest_difference(again["moments"], run["moments"]) == 0


@pytest.mark.parametrize("stage", [2, 3])
def test_adam_in_host_memory_gives_the_same_parameters(ranks: Any, stage: int) -> None:
    for rank in ranks:  # the norm to clip by is summed in another order
        assert largest_difference(rank[stage, True][0]["at five"], rank[stage, False][0]["at five"]) < 1e-6


def refused(what: Callable[[], object]) -> str:
    with pytest.raises((CheckpointError, PeerError)) as caught:  # PeerError where only another rank saw it
        what()
    return str(caught.value)


def everywhere(folder: str, targets: list[tuple[int, bool]]) -> dict[tuple[Any, Any], tuple[Tensors, Tensors]]:
    """What two ranks saved, at each stage: read back at each of `targets`, and trained on."""
    out = {}
    for source in CASES:
        for stage, offload in targets:
            run = Run(stage, seed=4, offload=offload)
            run.load(Path(folder) / f"{source[0]}-{source[1]}" / "three")
            state = saved_values(run)
            run.train(3, 5)
            out[source, (stage, offload)] = state, run.everything()
    return out


def saved_values(run: Run) -> Tensors:
    """Full parameters and moments, put together from this rank's fragments and those of the others."""
    shapes = run.strategy._shapes(run.model)
    found = full_parameters(run.strategy, run.model)
    moments = {f"{key} of {name}": torch.zeros(math.prod(shape)) for name, shape in shapes.items() for key in ("exp_avg", "exp_avg_sq")}
    for f in held_once(run.model)[0]:
        for key in ("exp_avg", "exp_avg_sq"):
            moments[f"{key} of {f.name}"][f.first : f.first + f.length] = f.of(run.optimizer.state[f.master][key])
    return found | run.strategy.all_reduce(moments, "sum")


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_at_any_stage_goes_on_from_a_checkpoint(ranks: Any, folder: Path, world_size: int) -> None:
    targets = CASES if world_size == 1 else [(1, False), (2, True), (3, False)]
    for found in run_spmd(everywhere, world_size, str(folder), targets, timeout_s=600):
        for (source, target), (state, at_five) in found.items():
            run, _ = ranks[0][source]
            assert largest_difference({name: state[name] for name in run["parameters"]}, run["parameters"]) == 0, (source, target)
            assert sum(float(tensor.abs().max()) > 0 for name, tensor in state.items() if " of " in name) > 40
            first, _ = found[source, targets[0]]
            assert largest_difference(state, first) == 0, (source, target)  # the moments, too, whatever the stage
            assert largest_difference(at_five, run["at five"]) < 1e-6, (source, target)


def other_parameters_frozen(folder: str) -> str:
    strategy = get_strategy(make_config({"zero_stage": 2}))
    model = tiny_causal_lm(tie=True)
    model.register_buffer("noise", torch.zeros(3))
    engine, optimizer = strategy.prepare_trainable(model, optimizer=SETTINGS)
    return refused(lambda: strategy.load_ckpt(Path(folder) / "2-False" / "three", model=engine, optimizer=optimizer))


def test_other_trained_parameters_are_refused(ranks: Any, folder: Path) -> None:
    (message,) = run_spmd(other_parameters_frozen, 1, str(folder))
    assert f"was saved with {FROZEN} frozen, here it is trained (1 parameters differ); train the same parameters" in message


def bad_checkpoints(folder: str) -> dict[str, str]:
    run, good = Run(3), Path(folder) / "good"
    run.save(good, 0)
    messages = {"other model": refused(lambda: Run(3, layers=3).load(good))}
    if run.strategy.is_rank_0:
        for name in ("flipped", "gone"):
            shutil.copytree(good, Path(folder) / name)
        content = bytearray((Path(folder) / "flipped" / "rank-00001.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (Path(folder) / "flipped" / "rank-00001.pt").write_bytes(bytes(content))
        (Path(folder) / "gone" / "rank-00001.pt").unlink()
    run.strategy.all_reduce(0)
    for name in ("flipped", "gone"):
        messages[name] = refused(lambda name=name: run.load(Path(folder) / name))
    run.load(good)
    return messages


def test_a_bad_checkpoint_is_refused_on_all_ranks_in_one_line(tmp_path: Path) -> None:
    for messages in run_spmd(bad_checkpoints, 2, str(tmp_path), timeout_s=200):
        assert (
            "of another model: 11 parameters differ, first: model.layers.2.input_layernorm.weight (saved None, here [64])"
            in messages["other model"]
        )
        assert "flipped' is damaged: rank-00001.pt is not what was saved" in messages["flipped"]
        assert "gone' is damaged: rank-00001.pt is missing" in messages["gone"]
        assert not any("\n" in message for message in messages.values())
