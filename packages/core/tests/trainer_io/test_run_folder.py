"""When a folder may be used for a run, what is written into it, and what an overwriting run removes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lightrft.config import make_config, read_recipe
from lightrft.config.schema import Config
from lightrft.errors import RunFolderError
from lightrft.run.run_folder import log_folder, open_run_folder, write_summary

BACKEND = {"strategy": "fake", "world_size": 1}


def config_for(folder: Path, *, settings: dict[str, Any] | None = None) -> Config:
    return make_config({"output_dir": str(folder), **(settings or {})})


def test_it_holds_the_resolved_configuration_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = config_for(tmp_path / "a" / "b", settings={"seed": 7, "reward": ["math", "format"], "kl_coef": 1e-3})
    folder = open_run_folder(config, backend=BACKEND)
    assert make_config(read_recipe(folder / "config.yaml")) == config
    assert json.loads((folder / "backend.json").read_text()) == BACKEND
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["plugins"]["engine:hf"].startswith("lightrft ")
    assert {"python", "torch", "transformers"} <= set(environment)
    assert not list(folder.glob(".*"))


def test_data_that_lie_there_before_are_no_other_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert open_run_folder(config_for(tmp_path), backend=BACKEND) == tmp_path


def test_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(RunFolderError, match="holds another run.*--overwrite_output_dir"):
        open_run_folder(config_for(tmp_path), backend=BACKEND)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_overwriting_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    config = config_for(tmp_path, settings={"overwrite_output_dir": True})
    for name in ("metrics.jsonl", "summary.json", "config.yaml", "notes.txt", "model/w", "plots/p.png", "base/w", "data/train.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    open_run_folder(config, backend=BACKEND)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and p.read_text() == "old"}
    assert left == {"notes.txt", "data/train.jsonl"}
    assert not (tmp_path / "model").exists()


def test_metrics_in_a_separate_log_folder_are_removed_too(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run", settings={"overwrite_output_dir": True, "log_dir": str(tmp_path / "logs")})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "model").mkdir()
    for path in (tmp_path / "run" / "config.yaml", tmp_path / "logs" / "metrics.jsonl"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    open_run_folder(config, backend=BACKEND)
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["model"]


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written: (Not a directory|File exists)"):
        open_run_folder(config_for(tmp_path / "file"), backend=BACKEND)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="Permission denied"):
        open_run_folder(config_for(tmp_path / "run"), backend=BACKEND)


def test_log_folder_and_summary(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    assert log_folder(config) == tmp_path
    assert log_folder(config_for(tmp_path, settings={"log_dir": str(tmp_path / "logs")})) == tmp_path / "logs"
    assert json.loads(write_summary(config, {"steps": 3}).read_text()) == {"steps": 3}


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("metrics.jsonl", Path.mkdir, "is a folder, and the run writes a file there"),
        ("samples.jsonl", os.mkfifo, "is a pipe or a device, and the run writes a file there"),
        ("eval_samples-3.jsonl", Path.mkdir, "is a folder, and the run writes a file there"),
        ("checkpoints", Path.touch, "is a file, and the run writes a folder there"),
        ("plots", Path.touch, "is a file, and the run writes a folder there"),
    ],
)
def test_a_name_of_the_runs_that_is_another_kind_of_thing_is_told_at_start(name: str, make: Any, words: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(RunFolderError, match=words):
        open_run_folder(config_for(tmp_path), backend=BACKEND)
