"""Files that a run reads and that are not its own, changed before it is resumed: noticed, each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightrft.config.schema import Config
from lightrft.errors import CheckpointError
from lightrft.trainer.resume import FilesDigest, user_files, weight_files


def test_another_reference_model_is_refused_and_an_edited_reward_file_is_told(tmp_path: Path) -> None:
    model, reward = tmp_path / "model.safetensors", tmp_path / "mine.py"
    model.write_bytes(bytes(3 << 20))
    reward.write_text("def f(samples): return [1.0]")
    reference = FilesDigest("the initial model", weight_files(tmp_path), refuses=True)
    rewards = FilesDigest("reward file", user_files(Config(reward=[f"{reward}:f", "exact_match", "module:f"])), refuses=False)
    saved = reference.state_dict(), rewards.state_dict()
    assert reference.load_state_dict(saved[0]) == rewards.load_state_dict(saved[1]) == []
    model.write_bytes(b"\1" + bytes((3 << 20) - 1))
    reward.write_text("def f(samples): return [2.0]")
    with pytest.raises(CheckpointError, match=r"the initial model is not the one that the run began with \(model.safetensors differ\)"):
        FilesDigest("the initial model", weight_files(tmp_path), refuses=True).load_state_dict(saved[0])
    told = FilesDigest("reward file", [reward], refuses=False).load_state_dict(saved[1])
    assert told == ["changed since the checkpoint: reward file mine.py"]


def test_files_of_one_name_an_environment_and_a_reward_model_that_were_edited_are_told(tmp_path: Path) -> None:
    for folder in ("a", "b", "judge"):
        (tmp_path / folder).mkdir()
    names = ("a/mine.py", "b/mine.py", "maze.py", "judge/model.safetensors")
    rewards = [f"one={tmp_path}/a/mine.py:f", f"two={tmp_path}/b/mine.py:f", f"model:{tmp_path}/judge"]
    config = Config(reward=rewards, environment=f"{tmp_path}/maze.py:Maze")
    for name in names:
        (tmp_path / name).write_text("then")
    saved = FilesDigest("file", user_files(config), refuses=False).state_dict()
    for name in names:
        (tmp_path / name).write_text("now")
        told = FilesDigest("file", user_files(config), refuses=False).load_state_dict(saved)
        short = name if "mine" in name else Path(name).name
        assert told == [f"changed since the checkpoint: file {short}"]
        (tmp_path / name).write_text("then")


def test_a_module_that_is_a_reward_and_what_a_reward_imports_from_beside_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("import json\nimport scores\ndef f(samples): return scores.of(samples)")
    (tmp_path / "scores.py").write_text("def of(samples):\n    from tables.small import ROWS\n    return ROWS")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/__init__.py").write_text("ROWS = []")
    (tmp_path / "installed_reward.py").write_text("def f(samples): return [1.0]")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Config(reward=[f"{tmp_path}/mine.py:f", "installed_reward:f", "no_such_module:f", "no_such.module:f", "sys:f"])
    names = ("mine.py", "scores.py", "tables/__init__.py", "installed_reward.py")
    assert sorted(user_files(config)) == sorted(tmp_path / name for name in names)
    saved = FilesDigest("code", user_files(config), refuses=False).state_dict()
    for name in names:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "  # changed")
        told = FilesDigest("code", user_files(config), refuses=False).load_state_dict(saved)
        assert told == [f"changed since the checkpoint: code {Path(name).name}"]
        (tmp_path / name).write_text(text)
