"""`lightrft.generate`: what the model itself would say, in the order of the prompts, read by the settings of a run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightrft
from lightrft.errors import ConfigError, DataError
from lightrft.testing import run_spmd
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_model_folder

PROMPTS = ["1 + 1 =", "2 =", "33 + 4 =", "5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model_folder(tmp_path_factory.mktemp("model"), alphabet="0123456789 =+", vocab_size=16, seed=2))


def settings(model: str, **more: Any) -> dict[str, Any]:
    return {"model_name_or_path": model, "strategy": "single", "engine_type": "hf", "generate_max_len": 6, "prompt_max_len": 16, **more}


def test_greedy_is_what_transformers_says(model: str) -> None:
    found = lightrft.generate(settings(model), PROMPTS, greedy=True)
    reference, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for prompt, [sample] in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        expected = reference.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        assert list(sample.token_ids) == expected
        assert sample.prompt == prompt and sample.completion == tokenizer.decode(expected, skip_special_tokens=True)


def test_as_many_samples_as_are_asked_for_and_the_same_for_a_seed(model: str) -> None:
    rows = [{"prompt": prompt, "answer": str(at)} for at, prompt in enumerate(PROMPTS)]
    found, again, other = (lightrft.generate(settings(model, n_samples_per_prompt=3, seed=seed), rows) for seed in (1, 1, 2))
    assert [[sample.answer for sample in group] for group in found] == [[str(at)] * 3 for at in range(4)]
    assert found == again != other


@pytest.mark.parametrize(
    ("prompts", "more", "error", "words"),
    [
        (["1" * 20], {}, DataError, "^prompts: all 1 prompts are longer than prompt_max_len=16; the shortest has 20 tokens"),
        (["1", "1" * 20], {}, DataError, r"prompts\[1\] has more than prompt_max_len=16 tokens \(1 of 2 have\); shorten it, or raise"),
        ([3], {}, ConfigError, r"prompts\[0\]=3 is a int; expected a text, or a mapping of columns"),
        ([{"text": "1"}], {}, DataError, "no column 'prompt'"),
        (["1"], {"model_name_or_path": "/no/such/folder"}, ConfigError, "/no/such/folder"),
        (["1"], {"engine_type": "vlm"}, Exception, "vlm"),
    ],
)
def test_what_is_wrong_is_told(model: str, prompts: list[Any], more: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        lightrft.generate(settings(model, **more), prompts)
    assert re.search(words, "\n".join([str(caught.value), *getattr(caught.value, "problems", [])]))


def on_ranks(model: str, count: int) -> list[list[tuple[int, ...]]]:
    found = lightrft.generate(settings(model, strategy="sharded"), PROMPTS[:count], greedy=True, registry=fake_registry())
    return [[tuple(sample.token_ids) for sample in group] for group in found]


@pytest.mark.parametrize("count", [3, 1])
def test_two_ranks_share_the_prompts_and_both_get_all(model: str, count: int) -> None:
    alone = lightrft.generate(settings(model), PROMPTS[:count], greedy=True)
    expected = [[tuple(sample.token_ids) for sample in group] for group in alone]
    assert len(expected) == count and run_spmd(on_ranks, 2, model, count) == [expected, expected]
