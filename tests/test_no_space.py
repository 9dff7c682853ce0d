"""A full device: one clear line on every rank, and what was saved before stays whole."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError, PeerError
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

BACKENDS: dict[str, dict[str, Any]] = {"fsdp": {"fsdp": True}, "zero 0": {"zero_stage": 0}, "zero 2": {}, "zero 3": {"zero_stage": 3}}


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A device with room for one checkpoint of the tiny model (some 1.0 MB), and not for two."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small device needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def refused(save: Any) -> str:
    try:
        save()
    except (CheckpointError, PeerError) as error:
        return str(error)
    return ""


def fill_up(settings: dict[str, Any], device: str) -> dict[str, Any]:
    strategy = get_strategy(make_config(settings))
    folder = Path(device) / "ckpt"
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    strategy.save_ckpt(folder, model=model, optimizer=optimizer, client_state={"step": 1})
    saved = full_parameters(strategy, model)
    train(strategy, model, optimizer, first=1, last=2)
    again = refused(lambda: strategy.save_ckpt(folder, model=model, optimizer=optimizer, client_state={"step": 2}))
    gc.collect()  # a handle that lives in the error's traceback would keep the space of a file that is gone
    strategy.all_reduce(0)
    left = sorted(path.name for path in Path(device).iterdir())
    strategy.all_reduce(0)
    if strategy.is_rank_0:
        (Path(device) / "filler").write_bytes(bytes(max(0, shutil.disk_usage(device).free - 100_000)))
    strategy.all_reduce(0)
    model_folder = refused(lambda: strategy.save_model(model, Path(device) / "model"))
    state = strategy.load_ckpt(folder, model=model, optimizer=optimizer)
    return {
        "again": again,
        "model": model_folder,
        "left": left,
        "state": state,
        "far": largest_difference(full_parameters(strategy, model), saved),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_old_checkpoint_stays_whole(small_device: Path, backend: str) -> None:
    ranks = run_spmd(fill_up, 2, BACKENDS[backend], str(small_device))
    for rank in ranks:
        assert rank["again"].count("ckpt") and "\n" not in rank["again"]
        assert rank["left"] == ["ckpt"]  # and nothing half-written takes up the space
        assert rank["state"] == {"step": 1} and rank["far"] == 0.0
    assert any("unchanged" in rank["again"] for rank in ranks)
    assert any("unchanged" in rank["model"] for rank in ranks)
