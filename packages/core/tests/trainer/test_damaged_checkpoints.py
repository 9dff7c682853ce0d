"""Checkpoints whose files are not what they say, checksums or none: one line, with the folder; nothing is waited for or read for ever."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightrft.errors import CheckpointError
from lightrft.run.checkpoint_folder import damage, folder_of, seal
from lightrft.testing.small_trainer import make_trainer

SAME: dict[str, Any] = dict(max_steps=2, save_every=1, keep_checkpoints=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, **SAME).fit()
    return folder / "run"


def fits(folder: Path, name: str, data: bytes) -> None:
    """A file of the actor's, with checksums that fit: what stands in it is another thing."""
    (folder / "actor" / name).write_bytes(data)
    manifest = json.loads((folder / "actor" / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "actor" / "manifest.json").write_text(json.dumps(manifest))
    seal(folder, {key: value for key, value in read_unchecked(folder).items() if key not in ("checksum", "manifests")})


def read_unchecked(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "trainer.json").read_text()))


@pytest.mark.parametrize("name", ["extra.pt", "state.pt"])
@pytest.mark.parametrize("data", [b"", b"\x80\x04garbage", b"PK\x03\x04" + bytes(100), pickle.dumps({"a": 1}), "half", "other"])
def test_files_whose_checksums_fit_and_whose_content_does_not_are_one_line(
    tmp_path: Path, whole: Path, name: str, data: bytes | str
) -> None:
    copy = folder_of(tmp_path / "copy", 1)
    shutil.copytree(folder_of(whole, 1), copy)
    if isinstance(data, str):
        other = "state.pt" if name == "extra.pt" else "extra.pt"
        data = (copy / "actor" / name).read_bytes()[:-7] if data == "half" else (copy / "actor" / other).read_bytes()
    fits(copy, name, data)
    with pytest.raises(CheckpointError, match=r"step-1/actor' cannot be read \(.*\); take another checkpoint") as caught:
        make_trainer(tmp_path, **SAME | {"resume_from": str(copy)}).fit()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("manifest", ["[1]", '{"files": ["a"]}', '{"files": null}', "[" * 100_000, '{"files": {"x": 7}}', "\xff"])
def test_manifests_of_another_form_are_told_with_their_folder(tmp_path: Path, manifest: str) -> None:
    folder = folder_of(tmp_path, 3)
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "manifest.json").write_text(manifest, encoding="latin-1")
    seal(folder, {"step": 3, "config": {}})
    assert damage(folder).startswith(f"{str(folder)!r} is damaged: ") and "\n" not in damage(folder)


@pytest.mark.parametrize("change", ["pipe", "device", "loop", "folder", "deep", "utf-16", "number"])
def test_a_trainer_json_of_another_kind_is_one_line(tmp_path: Path, whole: Path, change: str) -> None:
    copy = folder_of(tmp_path / "run", 1)
    shutil.copytree(folder_of(whole, 1), copy)
    path = copy / "trainer.json"
    text = path.read_text()
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "loop": lambda: path.symlink_to(path.name),
        "folder": path.mkdir, "deep": lambda: path.write_text("[" * 100_000), "utf-16": lambda: path.write_text(text, "utf-16"),
        "number": lambda: path.write_text('{"step": ' + "9" * 5000 + "}"),
    }[change]()  # fmt: skip
    for source in ("latest", str(copy)):
        with pytest.raises(CheckpointError, match="no checkpoint|trainer.json cannot be read") as caught:
            make_trainer(tmp_path, **SAME | {"resume_from": source}).fit()
        assert "\n" not in str(caught.value)
