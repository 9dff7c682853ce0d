"""Files and folders that are not there, or cannot be used, are told at start."""

from __future__ import annotations

import os

import pytest

from lightrft.config.checks import check
from lightrft.config.data_sources import POSSIBLE


@pytest.mark.parametrize("name", ["prompt_data", "eval_data"])
def test_missing_data(make, name, problems):
    assert problems(make(**{name: "none.jsonl"})) == [f"{name}='none.jsonl': no such file or folder"]


def test_no_data(make, problems):
    assert problems(make(prompt_data="")) == [f"prompt_data is not set; {POSSIBLE}"]


def test_models(make, tmp_path, bare, problems, registry):
    empty = tmp_path / "empty"
    empty.mkdir()
    for value, message in {
        "": "model_name_or_path is not set; give a HF model folder or a hub name",
        "./none": "model_name_or_path='./none': no such folder, and not a hub name of the form owner/name",
        "none": "model_name_or_path='none': no such folder, and not a hub name of the form owner/name",
        str(empty): f"model_name_or_path={str(empty)!r}: the folder has no config.json; give a folder written by save_pretrained",
        str(bare): f"model_name_or_path={str(bare)!r}: the folder has no tokenizer; save one there with tokenizer.save_pretrained",
    }.items():
        assert problems(make(model_name_or_path=value)) == [message]
    check(make(model_name_or_path="owner/name"), registry=registry(), world_size=2)


def test_a_model_and_a_scratch_model(make, problems):
    config = make(scratch_tokenizer="char")
    expected = f"model_name_or_path={config.model_name_or_path!r} and scratch_tokenizer='char' exclude each other; leave one out"
    assert problems(config) == [expected]


def test_output_folder_that_holds_another_run(make, tmp_path, problems, registry):
    folder = tmp_path / "run"
    folder.mkdir()
    check(make(), registry=registry(), world_size=2)
    (folder / "config.yaml").write_text("", encoding="utf-8")
    remedies = "choose another folder, set --overwrite_output_dir, or --resume_from latest"
    assert problems(make()) == [f"output_dir={str(folder)!r} holds another run; {remedies}"]
    check(make(resume_from="latest"), registry=registry(), world_size=2)
    check(make(resume_from=str(folder / "checkpoints" / "step-2")), registry=registry(), world_size=2)
    assert problems(make(resume_from=str(tmp_path / "other" / "checkpoints" / "step-2"))) != []
    check(make(overwrite_output_dir=True), registry=registry(), world_size=2)


@pytest.mark.parametrize("name", ["output_dir", "log_dir"])
def test_folder_below_a_file(make, tmp_path, name, problems):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for value in (str(file), str(file / "below" / "it")):
        assert problems(make(**{name: value})) == [f"{name}={value!r}: {str(file)!r} is a file; give a folder"]


@pytest.mark.parametrize("name", ["output_dir", "log_dir"])
def test_folder_without_permission(make, tmp_path, name, monkeypatch, problems):
    # the superuser may write anywhere, so the answer of the system is replaced
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    value = str(tmp_path / "no" / "run")
    changes = {name: value} if name == "output_dir" else {name: value, "output_dir": str(tmp_path / "run")}
    assert f"{name}={value!r} cannot be written: no permission on {str(tmp_path)!r}" in problems(make(**changes))


def test_reward_files(make, tmp_path, problems, registry):
    file = tmp_path / "mine.py"
    file.write_text("", encoding="utf-8")
    check(make(reward=[f"{file}:f", "other=package.module:f"]), registry=registry(), world_size=2)
    assert problems(make(reward=["none.py:f"])) == ["reward='none.py:f': no such file 'none.py'; the form is path/to/file.py:function"]
    for bad in (":f", "module:"):
        assert problems(make(reward=[bad])) == [f"reward={bad!r} is not of the form module:function or path/to/file.py:function"]
