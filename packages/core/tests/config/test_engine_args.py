"""`engine_args`: from recipe and flags, against what the engine's plugin lists, and as far as the engine and its run folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.cli.flags import parse
from lightrft.config.engine_args import folded, option_problems, options_of, taken
from lightrft.config.load import make_config
from lightrft.distributed.world import World
from lightrft.errors import ConfigError, PluginBrokenError
from lightrft.plugins.engine_options import EngineOptions, fields_of, fits
from lightrft.plugins.specs import EngineSpec
from lightrft.rollout.setup import make_controller
from lightrft.run.run_folder import write_engine
from lightrft.testing.fake_strategy import FAKE_ENGINE, fake_registry

OPTIONS = EngineOptions(
    types={"enforce_eager": "bool", "max_num_seqs": "int | None", "kv_cache_dtype": "CacheDType", "seed": "int", "executor": "str"},
    ours={"seed": "seed", "executor": ""},
)


def listed() -> EngineOptions:
    return OPTIONS


def wrong() -> Any:
    return {"enforce_eager": "bool"}


def raising() -> Any:
    raise OSError("no such library")


def spec_of(name: str, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    monkeypatch.setitem(sys.modules, "options_of_this_test", sys.modules[__name__])
    return replace(FAKE_ENGINE, name="acme", options=f"options_of_this_test:{name}")


@pytest.mark.parametrize(
    ("value", "annotation", "right"),
    [
        (True, "bool", True), (1, "bool", False), ("true", "bool", False),
        (1, "int", True), (True, "int", False), (1.0, "int", False),
        (1, "float", True), (0.5, "float", True), (True, "float", False),
        (None, "int | None", True), (None, "int", False), (None, "Optional[int]", True), ("x", "Optional[int]", False),
        ("x", "Union[int, str]", True), (["x"], "list[str] | None", True), ("x", "list[str]", False), ({"a": 1}, "dict[str, Any]", True),
        ("fp8", "Literal['auto', 'fp8']", True), ("fp16", "Literal['auto', 'fp8']", False),
        ("anything", "CacheDType", True), (3, "CacheDType | None", True),
    ],
)  # fmt: skip
def test_values_against_annotations(value: object, annotation: str, right: bool) -> None:
    assert fits(value, annotation) is right


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"enforce_eagr": True}, ["engine_args.enforce_eagr: engine 'acme' has no such option; did you mean 'enforce_eager'?"]),
        ({"enforce_eager": 1}, ["engine_args.enforce_eager=1: engine 'acme' takes bool"]),
        ({"max_num_seqs": "4"}, ["engine_args.max_num_seqs='4': engine 'acme' takes int | None"]),
        ({"seed": 3}, ["engine_args.seed=3: LightRFT sets this option of engine 'acme'; use seed"]),
        ({"executor": "mp"}, ["engine_args.executor='mp': LightRFT sets this option of engine 'acme'; leave it out"]),
        ({"enforce_eager": True, "max_num_seqs": None, "kv_cache_dtype": "fp8"}, []),
    ],
)
def test_each_wrong_option_is_a_line(given: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(option_problems(make_config({"engine_args": given}), spec_of("listed", monkeypatch))) == words


def test_an_engine_without_options_takes_none() -> None:
    assert list(option_problems(make_config({"engine_args": {"a": 1}}), FAKE_ENGINE)) == [
        "engine_args={'a': 1} has no effect: engine 'fake' has no library with options; leave engine_args out"
    ]
    assert list(option_problems(make_config({}), FAKE_ENGINE)) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raising", "cannot be listed: OSError: no such library"),
        ("missing", "cannot be listed: AttributeError"),
        ("wrong", "not EngineOptions"),
    ],
)
def test_a_plugin_that_cannot_list_its_options_is_named(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(name, monkeypatch)
    with pytest.raises(PluginBrokenError, match=f"engine 'acme': its options 'options_of_this_test:{name}' .*{words}"):
        options_of(spec)
    assert [words in line for line in option_problems(make_config({"engine_args": {"a": 1}}), spec)] == [True]


@pytest.mark.parametrize("text", ["no colon", "a:b:c", ":b"])
def test_a_spec_says_where_its_options_are(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form 'package.module:function'"):
        replace(FAKE_ENGINE, options=text)


def test_flags_win_by_name_over_the_recipe() -> None:
    flags = parse(
        ["--engine_args.enforce_eager", "true", "--engine-args.max_num_seqs=4", "--seed", "3", "--engine_args.note=a: b"],
        command="train", description="", nproc_help="",
    )  # fmt: skip
    assert flags.problems == []
    config = make_config({"engine_args": {"max_num_seqs": 9, "swap": 1}} | flags.settings)
    assert config.engine_args == {"max_num_seqs": 4, "swap": 1, "enforce_eager": True, "note": {"a": "b"}} and config.seed == 3


def test_forms_of_the_setting() -> None:
    assert make_config({"engine_args": '{"a": null, "b": [1]}'}).engine_args == {"a": None, "b": [1]}
    assert make_config({"engine_args": '{"a": 1}', "engine_args.a": "x"}).engine_args == {"a": "x"}
    assert folded({"engine_args.a": "[1, 2]", "engine_args.b": "{"}) == {"engine_args": {"a": [1, 2], "b": "{"}}
    assert taken(["--engine_args.a"]) == (["--engine_args.a"], {})
    with pytest.raises(ConfigError, match="engine_args='{a': input is no JSON object"):
        make_config({"engine_args": "{a", "engine_args.b": "1"})
    with pytest.raises(ConfigError, match="unknown flag '--engine_args.a'"):
        raise ConfigError(parse(["--engine_args.a"], command="train", description="", nproc_help="").problems)


def test_fields_are_read_off_source(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import nothing.of.it\nclass A:\n    x: int = 1\n    y: 'str'\n    z = 3\nclass B:\n    w: A | None = None\n"
    )
    assert fields_of(tmp_path / "a.py", name="A") == {"x": "int", "y": "'str'"}
    assert set(fields_of(tmp_path / "a.py")) == {"x", "y", "w"}


def test_the_engine_gets_them_and_the_run_folder_says_what_it_was_built_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    config = make_config({"strategy": "fake", "engine_type": "acme", "engine_args": {"max_num_seqs": 3}, "output_dir": str(tmp_path)})
    registry = fake_registry(spec_of("listed", monkeypatch))
    controller = make_controller(config, registry=registry, world=world, model_path="m")
    assert controller.engine is not None and controller.engine.setup.options == {"max_num_seqs": 3}
    write_engine(config, controller.engine.arguments)
    assert list(tmp_path.iterdir()) == [], "an engine that says nothing"
    controller.shutdown()
    write_engine(config, {"max_num_seqs": 3, "dtype": torch.float32})
    assert json.loads((tmp_path / "engine.json").read_text()) == {"max_num_seqs": 3, "dtype": "torch.float32"}
    with pytest.raises(ConfigError, match=r"engine_args.max_num_seq: engine 'acme' has no such option"):
        make_controller(config.model_copy(update={"engine_args": {"max_num_seq": 3}}), registry=registry, world=world, model_path="m")
