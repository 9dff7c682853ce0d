"""The exact-match and format rewards judge the completion alone, and exactly as they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightrft.rewards.exact_match import exact_match
from lightrft.rewards.format import format_reward
from lightrft.types import Sample

GSM8K = Path(__file__).parents[4] / "examples" / "data" / "gsm8k"


def test_exact_match() -> None:
    pairs = [("12", "12"), (" 12\n", "12"), ("12", " 12 "), ("13", "12"), ("012", "12"), ("1 2", "12"), ("", "12"), ("A", "a"), ("", "")]
    samples = [Sample(prompt="12", completion=completion, answer=answer) for completion, answer in pairs]
    assert exact_match(samples) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_any_of_several_accepted_answers_is_right() -> None:
    samples = [Sample(prompt="p", completion=c, answer="12", answers=("12", "twelve ")) for c in ("12", " twelve", "12 twelve", "")]
    assert exact_match(samples) == [1.0, 1.0, 0.0, 0.0]


def test_exact_match_needs_an_answer() -> None:
    with pytest.raises(ValueError, match=r"sample 1 has no reference answer .*'what'.*set label_key"):
        exact_match([Sample(prompt="p", completion="1", answer="1"), Sample(prompt="what", completion="1")])


@pytest.mark.parametrize(
    "completion",
    [
        "2+2=4\n#### 4",
        "so #### 4",
        "x\n#### -12",
        "x\n#### 1,234",
        "x\n#### 12,345,678.90",
        "x\n#### 1234567",
        "x\n#### 0.5",
        "a # b ### c\n#### 7",
    ],
)
def test_the_form(completion: str) -> None:
    assert format_reward([Sample(prompt="p", completion=completion)]) == [1.0]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "4",
        "#### 4",  # no body
        " \n#### 4",
        "x\n####",
        "x\n#### ",
        "x\n####4",
        "x\n####  4",
        "x\n#### four",
        "x\n#### $4",
        "x\n#### 4.",
        "x\n#### 4 eggs",
        "x\n#### 4\n",  # not the very end
        "x\n#### 4\ny",
        "x\n#### 1,23",
        "x\n#### 1,2345",
        "x\n#### --4",
        "x\n#### 4\n#### 4",  # twice
        "#### 3 x\n#### 4",
        "x\n##### 4",
        "x\n### 4",
        "x\n#### \u0664",  # a digit, but not ours
    ],
)
def test_not_the_form(completion: str) -> None:
    assert format_reward([Sample(prompt="p", completion=completion)]) == [0.0]


def test_the_prompt_counts_for_nothing() -> None:
    assert format_reward([Sample(prompt="x\n", completion="#### 4"), Sample(prompt="x #### 4", completion="")]) == [0.0, 0.0]


def test_every_gsm8k_solution_has_the_form() -> None:
    texts = [json.loads(line)["answer"] for name in ("test", "train") for line in (GSM8K / f"{name}.jsonl").read_text().splitlines()]
    samples = [Sample(prompt="", completion=re.sub(r"<<.*?>>", "", text)) for text in texts]
    assert sum(format_reward(samples)) == len(samples) == 1319 + 7473
    assert sum(format_reward([Sample(prompt="", completion=s.completion.replace("####", "=")) for s in samples])) == 0
