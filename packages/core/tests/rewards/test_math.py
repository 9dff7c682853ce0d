"""A right result is right however it is written, a wrong one wrong; no completion can hang or break the reward."""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from lightrft.errors import RewardError
from lightrft.rewards import equality
from lightrft.rewards.equality import equal_expressions
from lightrft.rewards.math import final_answer, math_reward
from lightrft.types import Sample

pytest.importorskip("math_verify", reason="the extra lightrft[math] is not installed")

CASES_FILES = [Path(__file__).with_name(name) for name in ("math_cases.py", "math_cases_found.py")]
GSM8K = Path(__file__).parents[4] / "examples" / "data" / "gsm8k"


def judge(*pairs: tuple[str, str]) -> list[float]:
    return math_reward([Sample(prompt="#### 1", completion=completion, answer=answer) for completion, answer in pairs])


def cases(file: Path) -> Any:
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [cases(file) for file in CASES_FILES]


@pytest.mark.parametrize(("completion", "answer"), [row for part in CASES for row in part.RIGHT])
def test_a_right_solution_in_any_style(completion: str, answer: str) -> None:
    assert judge((completion, answer)) == [1.0]


@pytest.mark.parametrize(("completion", "answer"), [row for part in CASES for row in part.WRONG])
def test_what_is_not_the_one_right_answer(completion: str, answer: str) -> None:
    assert judge((completion, answer)) == [0.0]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a process was started for {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+1=2\n#### 2", "2"),
        ("#### 1\nno:\n####  $1,234.\nQuestion: 9", "1,234"),
        (r"#### 5 and \boxed{6}", "6"),
        ("#### ", None),
        (r"so \boxed{\frac{1}{2}} is it, 7", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{ 2 }", "1, 2"),
        (r"\boxed{1}, that is twice, \boxed{ 2 }", "2"),
        (r"\boxed{3} cut \boxed{4", "3"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("sin(2x)", "sin(2x)"),
        ("x = 5", "x = 5"),
        ("The answer is 1,234.", "1,234"),
        ("It falls to -5 degrees", "-5"),
        ("It is 8-5 there", None),
        ("It is 1/2 of it", "1/2"),
        ("no idea", None),
        ("", None),
    ],
)
def test_where_the_final_answer_stands(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.usefixtures("no_child")
def test_numbers_are_compared_exactly_and_need_no_process() -> None:
    same = ("1234", "1,234"), ("1,234.0", "1234"), ("-0.50", "-.5"), ("-$5", "-5"), ("18 dollars", "18"), ("2/4", "0.5"), ("1/3", "2/6")
    assert judge(*((f"x\n#### {found}", reference) for found, reference in same)) == [1.0] * len(same)
    other = (
        ("1234", "1235"),
        ("-5", "5"),
        ("0.3333333", "1/3"),
        ("12,34", "1234"),
        ("1234567890123456789", "1234567890123456788"),
    )
    assert judge(*((f"x\n#### {found}", reference) for found, reference in other)) == [0.0] * len(other)
    assert judge(("#### 5 5", "55"), ("#### five", "5"), ("#### ?", "5"), ("####", "5"), ("", "5"), ("#### 5 x", "5")) == [0.0] * 6


@pytest.mark.usefixtures("no_child")
def test_what_stands_after_the_mark_counts_and_nothing_else() -> None:
    assert judge(("#### 7", "so 3+4\n#### 7"), ("7\n#### 8", "9\n#### 7"), ("#### 8\n#### 7", "7"), ("9\n#### 7\n8", "7")) == [
        1.0,
        0.0,
        1.0,
        1.0,
    ]
    assert judge(("it is 7", "#### 7"), (r"\boxed{7} not 8", "7"), ("7", "7"), ("17", "7"), ("", "1")) == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.usefixtures("no_child")
def test_names_are_compared_as_text() -> None:
    # To a parser both are products of letters, and equal.
    pairs = [
        (r"\boxed{\text{Evelyn}}", "Evelyn"),
        (r"\boxed{evelyn}", r"\text{Evelyn}"),
        (r"\boxed{Evelny}", "Evelyn"),
        (r"\boxed{5}", "Evelyn"),
    ]
    assert judge(*pairs) == [1.0, 1.0, 0.0, 0.0]


def test_expressions() -> None:
    same = [
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\frac12}", r"$\frac{2}{4}$"),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{x=5}", "5"),
        (r"\boxed{1,234}", r"\boxed{1234}"),
        ("#### 10*2", "20"),
    ]
    other = [
        (r"\boxed{\frac{1}{3}}", "0.5"),
        (r"\boxed{(2,1)}", "(1,2)"),
        (r"\boxed{x^2+1}", "x^2+2"),
        (r"\boxed{)(}", "x"),
        (r"\boxed{x^{}", "5"),
    ]
    assert judge(*same, *other) == [1.0] * len(same) + [0.0] * len(other)


def test_every_gsm8k_solution_is_right_and_a_changed_one_wrong(no_child: None) -> None:
    texts = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").read_text().splitlines()]
    bare = [text.rpartition("#### ")[2] for text in texts]
    assert judge(*((text, text) for text in texts)) == [1.0] * 1319
    assert judge(*((text, number) for text, number in zip(texts, bare, strict=True))) == [1.0] * 1319
    wrong = [f"{text.rpartition('#### ')[0]}#### {int(number.replace(',', '')) + 1}" for text, number in zip(texts, bare, strict=True)]
    assert judge(*zip(wrong, texts, strict=True)) == [0.0] * 1319


def test_math_verify_itself_agrees_with_our_numbers_on_gsm8k() -> None:
    texts = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").read_text().splitlines()]
    bare = list(dict.fromkeys(text.rpartition("#### ")[2] for text in texts))[:60]
    found = equal_expressions([(b, b.replace(",", "")) for b in bare] + [(b, f"{b.replace(',', '')}1") for b in bare])
    assert list(found.values()) == [True] * len(bare) + [False] * len(bare)


def test_an_expression_that_never_ends_is_unequal_reported_and_delays_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    bomb = r"9^{9^{9^9}}"
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        found = equal_expressions([("2", "1+1"), ("5", bomb), ("5", bomb), ("6", "2*3")], cpu_limit_s=1.0)
    assert list(found.values()) == [True, False, True] and time.monotonic() - began < 60
    assert [record.getMessage() for record in caplog.records] == [
        f"math reward: comparing {bomb!r} with '5' took more than 1 s; it counts as unequal"
    ]


@pytest.mark.usefixtures("no_child")
def test_very_long_input_costs_nothing() -> None:
    began = time.monotonic()
    assert judge(("(" * 1_000_000 + "\n#### 5", "5"), ("9" * 1_000_000, "5"), (r"\boxed{" * 200_000, "5"), ("1 " * 500_000, "1")) == [
        1.0,
        0.0,
        0.0,
        0.0,
    ]
    assert judge(("#### " + "(" * 900 + "5" + ")" * 900, "5")) == [0.0]
    assert time.monotonic() - began < 10


def test_works_in_any_thread() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda n: judge((rf"\boxed{{{n}^2}}", f"{n * n}"), (r"\boxed{\sqrt{2}}", "2")), (3, 5)))
    assert found == [[1.0, 0.0], [1.0, 0.0]]


def test_works_in_another_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(math_reward, ([Sample(prompt="", completion=r"\boxed{\frac{6}{4}}", answer="1.5")],)) == [1.0]


def test_a_user_module_named_like_ours_does_not_get_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert judge((r"\boxed{\frac{6}{4}}", "1.5")) == [1.0]


def test_without_a_usable_reference() -> None:
    with pytest.raises(ValueError, match="sample 0 has no reference answer"):
        math_reward([Sample(prompt="p", completion="1")])
    for answer in ("", "####", "so\n#### "):
        with pytest.raises(ValueError, match=r"sample 0: the reference '.*' holds no answer; set label_key"):
            judge(("1", answer))


def test_without_math_verify_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"math-verify, which is not installed: pip install 'lightrft\[math\]'"):
        judge(("1", "1"))


def test_a_broken_math_verify_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise RuntimeError('antlr is too old')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(equality, "_CHILDREN", equality._Children())
    with pytest.raises(
        RewardError, match=f"does not start in {sys.executable}: RuntimeError: antlr is too old; repair it with pip install"
    ):
        equal_expressions([("1", "x")])


@pytest.mark.usefixtures("no_child")
def test_nothing_to_compare_starts_nothing() -> None:
    assert equal_expressions([]) == {} and math_reward([]) == []


def test_one_process_serves_all_calls_and_all_threads() -> None:
    judge((r"\boxed{\sqrt{16}}", "4"))
    child = equality._CHILDREN.child
    assert child is not None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: judge((rf"\boxed{{\sqrt{{{n * n}}}}}", str(n))), range(2, 12)))
    assert equality._CHILDREN.child is child


def test_a_child_that_died_is_replaced() -> None:
    judge((r"\boxed{\sqrt{16}}", "4"))
    child = equality._CHILDREN.child
    assert child is not None
    child.process.kill()
    child.process.wait()
    assert judge((r"\boxed{\sqrt{25}}", "5")) == [1.0]


def test_a_call_full_of_endless_expressions_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, str]] = []

    def late(pair: tuple[str, str], limit: float) -> tuple[None, str]:
        asked.append(pair)
        return None, "took more than 2 s"

    monkeypatch.setattr(equality._CHILDREN, "ask", late)
    with caplog.at_level(logging.WARNING):
        found = equal_expressions([("1", str(n)) for n in range(1000)])
    assert set(found.values()) == {False} and len(found) == 1000 and len(asked) == equality.MAX_FAILURES
    assert caplog.records[-1].getMessage() == "math reward: 10 comparisons gave no verdict; the others of this call count as unequal"


def test_thousands_of_solutions_take_seconds() -> None:
    body = "She sells 9 eggs for $2 each, so she makes 9 * 2 = $18 every day. " * 20
    began = time.monotonic()
    assert judge(*[(f"{body}\n#### 18", "18"), (body, "18"), (body + r"\boxed{18}", "18")] * 700) == [1.0] * 2100
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "piece", ["a", "1 ", "1+", "#### ", "\\boxed", "\\boxed{", "{", "<answer>", "the answer is ", "$", "-", ",", "9", "( "]
)
def test_a_million_characters_cost_what_their_end_does(piece: str, no_child: None) -> None:
    began = time.monotonic()
    assert judge((piece * (1_000_000 // len(piece)), "18"), ("#### " + piece * 200_000, "18")) == [0.0, 0.0]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("char", "0123456789(){}\\$#*-+=.,!?'\" \n^_/:<>~`|%aex½é\x00")
def test_garbage_is_wrong_and_no_error(char: str) -> None:
    texts = (char * 5000, "#### " + char * 195, "answer is " + char * 195)
    assert judge(*[(text, answer) for text in texts for answer in ("18", "x^2")]) == [0.0] * 6
