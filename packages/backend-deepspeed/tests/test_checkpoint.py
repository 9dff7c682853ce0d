"""Is a resumed run the same run at every ZeRO stage, and is a checkpoint that does not fit refused on all ranks?"""

from __future__ import annotations

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
    at_three = run.everything()
    run.train(3, 5)
    return {"at three": at_three, "at five": run.everything(), "moments": run.moments() if stage else {}}


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


def elsewhere(folder: str) -> dict[str, Any]:
    """On one rank: what two ranks saved."""
    place = Path(folder)
    messages: dict[str, Any] = {
        str(stage): refused(lambda stage=stage: Run(stage).load(place / f"{stage}-False" / "three")) for stage in (1, 2, 3)
    }
    messages["other stage"] = refused(lambda: Run(1).load(place / "2-False" / "three"))
    run = Run(0, seed=4)
    run.load(place / "0-False" / "three")
    messages["stage 0"] = run.everything()
    return messages


def test_another_number_of_ranks_or_another_stage_is_refused(ranks: Any, folder: Path) -> None:
    (found,) = run_spmd(elsewhere, 1, str(folder), timeout_s=200)
    for stage in (1, 2, 3):
        assert f"was saved on 2 ranks with zero_stage={stage}, this run has 1; start as many" in found[str(stage)]
    assert "was saved with zero_stage=2, this run has zero_stage=1; use that one" in found["other stage"]
    assert largest_difference(found["stage 0"], ranks[0][0, False][0]["at three"]) == 0


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
