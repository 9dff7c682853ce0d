"""Datasets of the hub: which words name one, what is read, from where, and what is said where it cannot be had."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from lightrft.config.data_sources import HubName, hub_name, prompt_sources
from lightrft.data import hub
from lightrft.data.rows import load_rows, load_table
from lightrft.errors import ConfigError, DataError

TRAIN = [{"question": "6 x 7 =", "answer": "42"}, {"question": "40 + 2 =", "answer": "42"}]
TEST = [{"question": "1 + 1 =", "answer": "2"}]


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    hub._splits.cache_clear()
    hub._unreachable.cache_clear()
    yield
    hub._splits.cache_clear()
    hub._unreachable.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub with one dataset of two subsets; what it was asked for."""
    found: list[tuple[str, str | None]] = []

    def load_dataset(repo: str, subset: str | None = None) -> Any:
        found.append((repo, subset))
        if repo != "openai/gsm8k":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{repo}' doesn't exist on the Hub or cannot be accessed.")
        if subset not in ("main", "socratic"):
            raise ValueError(f"BuilderConfig {subset!r} not found.")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(TRAIN), "test": datasets.Dataset.from_list(TEST)})

    def names(repo: str) -> list[str]:
        if repo != "openai/gsm8k":
            raise datasets.exceptions.DatasetNotFoundError("none")
        return ["main", "socratic"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", names)
    monkeypatch.setattr(hub, "_unreachable", lambda: "")
    monkeypatch.setattr(hub._unreachable, "cache_clear", lambda: None, raising=False)
    return found


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of `datasets` as it is once openai/gsm8k:main was loaded."""
    cache = tmp_path / "cache"
    for name, rows in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    datasets.load_dataset("json", data_files=files, cache_dir=str(cache))
    [made] = [path for path in (cache / "json").glob("default-*/*/*") if path.is_dir()]
    there = cache / "openai___gsm8k" / "main" / made.parent.name / made.name
    there.parent.mkdir(parents=True)
    made.rename(there)
    info = json.loads((there / "dataset_info.json").read_text())
    (there / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "gsm8k", "config_name": "main"}))
    for file in there.glob("json-*.arrow"):
        file.rename(there / file.name.replace("json-", "gsm8k-", 1))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    return cache


def refused(path: str) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(path, required=["question"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("openai/gsm8k", HubName("openai/gsm8k")),
        ("openai/gsm8k:main", HubName("openai/gsm8k", "main")),
        ("openai/gsm8k:main:test", HubName("openai/gsm8k", "main", "test")),
        ("openai/gsm8k::test", HubName("openai/gsm8k", "", "test")),
        ("gsm8k", None),
        ("data/train.jsonl", None),
        ("a/b/c", None),
        ("./a/b", None),
        ("/a/b", None),
        ("../b", None),
        ("openai/gsm8k:", HubName("openai/gsm8k")),
        ("openai/gsm8k:main:", None),
    ],
)
def test_which_words_name_a_dataset_of_the_hub(word: str, expected: HubName | None) -> None:
    assert hub_name(word) == expected


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    datasets.Dataset.from_list(TEST).save_to_disk(str(tmp_path / "openai" / "gsm8k"))
    monkeypatch.chdir(tmp_path)
    assert hub_name("openai/gsm8k") is None and load_rows("openai/gsm8k", required=["question"]) == TEST and asked == []


def test_sources_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prompt_sources("") == {}
    assert prompt_sources("a/b.jsonl, h=c.parquet,openai/gsm8k:main") == {"b": "a/b.jsonl", "h": "c.parquet", "gsm8k": "openai/gsm8k:main"}
    (tmp_path / "a,b.jsonl").touch()
    assert prompt_sources("a,b.jsonl") == {"a,b": "a,b.jsonl"}
    with pytest.raises(ConfigError, match="nothing between two commas"):
        prompt_sources("a,,b")
    with pytest.raises(ConfigError, match=r"prompt_data names 'b' twice \('a/b.jsonl', 'c/b.jsonl'\); give one of them as NAME=PATH"):
        prompt_sources("a/b.jsonl,c/b.jsonl")


def test_rows_of_a_split(asked: list[Any]) -> None:
    assert load_rows("openai/gsm8k:main", required=["question", "answer"]) == TRAIN
    table = load_table("openai/gsm8k:main:test", required=["question"])
    assert table.rows == TEST and table.where(0) == "openai/gsm8k:main:test, row 0"
    assert asked == [("openai/gsm8k", "main")], "once in a process"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "openai/gsm8k:main:dev",
            "openai/gsm8k: there is no split 'dev'; possible: train, test; write it out, as openai/gsm8k:main:train",
        ),
        (
            "openai/gsm8k:mian",
            "openai/gsm8k: there is no subset 'mian'; possible: main, socratic; write it as openai/gsm8k:main, or with a split "
            "openai/gsm8k:main:SPLIT",
        ),
        (
            "openai/gsm8k",
            "openai/gsm8k: it has several subsets, and none is named; possible: main, socratic; write it as openai/gsm8k:main, or with a "
            "split openai/gsm8k:main:SPLIT",
        ),
        (
            "data/prompts",
            "data/prompts: no such file or folder here, and the hub does not give it: DatasetNotFoundError: Dataset 'data/prompts' doesn't "
            "exist on the Hub or cannot be accessed.",
        ),
    ],
)
def test_what_the_hub_does_not_have(asked: list[Any], word: str, expected: str) -> None:
    assert refused(word) == expected


def test_without_a_network_the_cache_is_read(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert load_rows("openai/gsm8k:main:test", required=["question"]) == TEST
    assert load_rows("openai/gsm8k", required=["question"]) == TRAIN, "the only subset that is there"
    assert "there is no split 'dev'; possible: train, test" in refused("openai/gsm8k:main:dev")
    line = refused("openai/gsm8k:socratic")
    assert (
        "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, and it is not in the cache" in line
        and "Available configs in the cache: ['main']" in line
    )


def test_other_ranks_read_the_cache_and_ask_nobody(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert load_rows("openai/gsm8k:main", required=["question"]) == TRAIN
    assert hub._unreachable.cache_info().misses == 0 and not datasets.config.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_told_in_time(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        monkeypatch.setattr(hub, "REACH_S", 0.5)
        start = time.monotonic()
        line = refused("nobody/nothing")
        assert refused("nobody/nothing-else") and time.monotonic() - start < 5.0
    assert line.startswith(
        f"nobody/nothing: no such file or folder here, and as a dataset of the hub it cannot be had: {endpoint} cannot be reached ("
    )
    assert f"it is not in the cache {str(cached)!r}" in line and line.endswith("connect, or give the data as a file")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert refused("openai/gsm8k") == (
        "openai/gsm8k is a dataset of the hub, and reading one needs the `datasets` package: pip install 'lightrft[datasets]'"
    )
