"""One rule for end-of-sequence tokens: the union of what tokenizer, generation_config.json and config.json name, told with its sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.engine.model_facts import model_facts
from lightrft.engine.stop_tokens import StopTokens, folder_stop_tokens, stop_tokens, unused_generation
from lightrft.errors import EngineError, ModelError
from lightrft.rollout.ends import end_problem
from lightrft.testing.tiny import tiny_model_folder
from lightrft.types import Completion, Request, SamplingParams

ABSENT = object()


def folder(path: Path, *, generation: Any = ABSENT, config: Any = ABSENT, text_config: Any = ABSENT, tokenizer: str | None = None) -> Path:
    """A tiny Llama (tokenizer: pad 0, `<eos>` 1) whose files name these end-of-sequence tokens; ABSENT takes the entry out."""
    tiny_model_folder(path, alphabet="0123456789 ", vocab_size=14, family="llama")
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        file = path / name
        found = json.loads(file.read_text())
        found.pop("eos_token_id", None)
        if value is not ABSENT:
            found["eos_token_id"] = value
        if name == "config.json" and text_config is not ABSENT:
            found["text_config"] = {"eos_token_id": text_config}
        file.write_text(json.dumps(found))
    if tokenizer is not None:
        file = path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": tokenizer}))
    return path


@pytest.mark.parametrize(
    ("named", "ids", "tells"),
    [
        ({}, (1,), False),  # the files say nothing, and Llama's class default of 2 is no source
        ({"generation": 1, "config": 1}, (1,), False),
        ({"generation": [1, 5], "config": 1}, (1, 5), False),  # Qwen, Gemma: a list that holds the tokenizer's
        ({"generation": [5, 6, 1], "config": [5, 6, 1]}, (1, 5, 6), False),  # Llama 3
        ({"generation": 5, "config": 5}, (1, 5), True),  # a chat tokenizer over a base model's files
        ({"generation": None, "config": 5}, (1, 5), True),
        ({"generation": [1], "config": 5}, (1, 5), True),  # of which a library may take either
        ({"generation": 1, "config": 1, "text_config": [7]}, (1, 7), False),
        ({"generation": [1, 99], "config": -1}, (1,), True),  # rows that the model does not have
    ],
)
def test_the_union_of_all_sources(tmp_path: Path, named: dict[str, Any], ids: tuple[int, ...], tells: bool) -> None:
    path = folder(tmp_path / "m", **named)
    stops = folder_stop_tokens(path)
    assert stops.ids == ids
    if "text_config" not in named:  # Llama has none
        assert model_facts(str(path), trust_remote_code=False).eos_token_ids == ids
    assert (stops.conflict() is not None) is tells


def test_each_token_is_told_with_its_text_and_sources(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", generation=[1, 5], config=5)
    stops = folder_stop_tokens(path, also=[4]).with_setting([4], ignore_eos=False)
    assert (
        stops.described()
        == "1 '<eos>' (tokenizer, generation_config.json); 4 '1' (stop_token_ids); 5 '2' (generation_config.json, config.json)"
    )
    assert stops.with_setting([], ignore_eos=True).described() == "none: every completion runs to its limit"
    differing = folder_stop_tokens(folder(tmp_path / "n", generation=5)).conflict()
    assert differing == (
        "the sources of end-of-sequence tokens differ: the tokenizer ends with 1 '<eos>', generation_config.json with 5 '2'; "
        "completions end at either of them"
    )


@pytest.mark.parametrize("value", ["2", [1, "2"], True, {"id": 2}, 1.0])
def test_what_is_no_token_id_names_the_file(tmp_path: Path, value: Any) -> None:
    path = folder(tmp_path / "m", generation=value)
    with pytest.raises(ModelError, match=r"generation_config.json: eos_token_id=.* is no token id and no list of them"):
        stop_tokens(path)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    (path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config.json cannot be read as JSON"):
        stop_tokens(path)
    (path / "generation_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds a list, expected a JSON object"):
        stop_tokens(path)


def test_a_folder_without_tokenizer_has_the_other_sources(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", generation=[3, 5], config=1)
    for file in path.glob("tokenizer*"):
        file.unlink()
    assert stop_tokens(path).sources == {"generation_config.json": (3, 5), "config.json": (1,)}


def test_what_generation_config_says_of_sampling_is_named_and_not_used(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", generation=1)
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.3}))
    assert unused_generation(path) == {"temperature": 0.6, "repetition_penalty": 1.3}
    one, other = (generate(path, SamplingParams(n=64, max_new_tokens=6)) for _ in range(2))
    file.unlink()
    assert one == other == generate(path, SamplingParams(n=64, max_new_tokens=6))


def generate(path: Path, sampling: SamplingParams) -> list[tuple[tuple[int, ...], str]]:
    setup = EngineSetup(
        model_path=str(path), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=32, max_batch_size=4, mem_util=0.5,
        trust_remote_code=False, rank=0, group_size=1, group=None,
    )  # fmt: skip
    [output] = HFEngine(setup).generate([Request(id=0, prompt_token_ids=[3, 4], seed=7)], sampling)
    return [(tuple(c.token_ids), c.finish_reason) for c in output.completions]


@pytest.mark.parametrize("named", [{}, {"generation": [1, 5]}, {"config": 6}])
def test_the_reference_engine_ends_at_every_one_of_them_and_at_no_other(tmp_path: Path, named: dict[str, Any]) -> None:
    path = folder(tmp_path / "m", **named)
    stops = set(folder_stop_tokens(path).ids)
    seen = set()
    for ids, reason in generate(path, SamplingParams(n=128, max_new_tokens=8)):
        assert stops.isdisjoint(ids[:-1])
        assert (reason == "stop") is (ids[-1] in stops)
        seen |= {ids[-1]} if reason == "stop" else set()
    assert seen == stops


def ends(ids: list[int], reason: Any, **sampling: Any) -> str | None:
    completion = Completion(token_ids=ids, finish_reason=reason, weight_version=0)
    decode = lambda tokens, skip: "".join(chr(96 + t) for t in tokens)  # noqa: E731
    return end_problem(completion, SamplingParams(**sampling), eos_token_ids=(1, 2), decode=decode)


def test_an_end_that_is_none_is_told() -> None:
    assert ends([5, 2], "stop") is None and ends([5, 6], "length") is None and ends([5], "abort") is None
    assert ends([5, 7], "stop", stop_token_ids=(7,)) is None and ends([5, 7], "stop", stop=("g",)) is None
    assert ends([1, 5], "length", ignore_eos=True) is None
    assert ends([5, 6], "stop") == "says 'stop' and ends in token 6, which is none of the stop tokens [1, 2]"
    assert ends([], "stop") == "says 'stop' and ends in no token, which is none of the stop tokens [1, 2]"
    assert "its text holds none of ('z',)" in (ends([5, 6], "stop", stop=("z",)) or "")
    assert ends([5, 1, 6, 6], "length") == "goes on for 2 tokens after the stop token 1"
    assert ends([5, 1], "length") == "ends in the stop token 1 and says 'length'"
    assert ends([5, 1], "stop", ignore_eos=True, stop_token_ids=(7,)) is not None


def test_an_engine_with_a_rule_of_its_own_is_an_error_at_its_first_rollout() -> None:
    from lightrft.distributed.mesh import Axis
    from lightrft.distributed.world import World
    from lightrft.plugins.specs import EngineSpec
    from lightrft.rollout.controller import RolloutController
    from lightrft.testing.fake_engine import FakeEngine

    setup = EngineSetup(
        model_path="", dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=64, max_batch_size=4, mem_util=0.5,
        trust_remote_code=False, rank=0, group_size=1, group=None,
    )  # fmt: skip

    def unit(*ids: int) -> RolloutController:
        return RolloutController(
            lambda: FakeEngine(setup),
            spec=EngineSpec(name="fake", target="lightrft.testing.fake_engine:FakeEngine"),
            world=World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None),
            group=Axis(ranks=(0,), rank=0, group=None),
            dtype=torch.float32,
            sleep_level=None,
            seed=3,
            tokenize=lambda text: [3],
            stop_tokens=StopTokens(sources={"tokenizer": ids}),
            decode=lambda ids, skip: "",
        )

    asked: dict[str, Any] = dict(
        prompt_token_ids=[[3], [4, 5]], prompts=None, images=None, images_num=None, sleep_engine=False, logprobs=False
    )
    sampling = SamplingParams(n=16, max_new_tokens=24)
    unit(1).gather_and_generate(sampling, **asked)  # token 1 is where the fake stops
    with pytest.raises(EngineError, match="its rule for stop tokens is another one"):
        unit(1, 5).gather_and_generate(sampling, **asked)
    with pytest.raises(EngineError, match="says 'stop' and ends in token 1"):
        unit(77).gather_and_generate(sampling, **asked)
