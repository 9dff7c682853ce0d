"""Blocks of Python on the pages run and do what the page says. Other tests run *Get started*, the strategy guide, the README."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lightrft
from lightrft.plugins.specs import RewardSpec, StrategySpec

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = {
    "how-to/environments.md": 5, "how-to/evaluation.md": 1, "how-to/rewards.md": 1, "concepts/iteration.md": 1, "plugin-author.md": 3,
}  # fmt: skip
"""The pages of this test, and how many blocks they have."""
ELSEWHERE = {"get-started.md", "get-started.zh.md", "strategies.md", "strategies.zh.md"}


def blocks(page: str) -> list[str]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def run(page: str, number: int, **known: Any) -> dict[str, Any]:
    """The names that a block defines."""
    found: dict[str, Any] = dict(known)
    exec(compile(blocks(page)[number], page, "exec"), found)
    return found


def turn(text: str, **fields: Any) -> lightrft.Turn:
    return lightrft.Turn(
        **{"number": 0, "token_ids": (3,), "text": text, "raw_text": text, "finish_reason": "stop", "is_last": False} | fields
    )


def test_no_page_has_a_block_that_no_test_runs() -> None:
    found = {str(page.relative_to(DOCS)): len(BLOCK.findall(page.read_text(encoding="utf-8"))) for page in DOCS.glob("**/*.md")}
    assert {page: number for page, number in found.items() if number and page not in ELSEWHERE} == RUN


def test_the_environment_that_has_a_number_guessed() -> None:
    one = run("how-to/environments.md", 0)["Guess"]()
    one.start({"answer": "7"})
    answers = [one.step(turn(text)) for text in ("3", "9", "7", "seven")]
    assert [answers[0].text, answers[1].text] == ["+", "-"]
    assert answers[2].reward == {"solved": 1.0} and answers[3].reward == 0.0


def test_the_tool_that_multiplies() -> None:
    found = run("how-to/environments.md", 1)
    [schema] = found["Calculator"].tools()
    assert schema["function"]["name"] == "multiply" and schema["function"]["parameters"]["required"] == ["a", "b"]
    call = lightrft.ToolCall(name="multiply", arguments={"a": 6, "b": 7})
    one = found["Calculator"]()
    one.start({"answer": "42"})
    assert "42" in str(one.step(turn("", calls=(call,))))


def test_the_tool_that_runs_programs_has_the_pages_limits() -> None:
    one = run("how-to/environments.md", 2)["Calculator"]
    assert issubclass(one, lightrft.PythonTool) and (one.time_limit_s, one.max_result_chars) == (3.0, 1000)


@pytest.mark.skipif(find_spec("gymnasium") is None, reason="needs gymnasium, an extra")
def test_the_lake_of_gymnasium() -> None:
    one = run("how-to/environments.md", 3)["Lake"]()
    assert "field 0" in str(one.start({"env": "FrozenLake-v1", "seed": 0}))
    assert "field 1" in str(one.step(turn("right")))
    one.close()


def test_the_environment_of_openenv() -> None:
    one = run("how-to/environments.md", 4)["Coding"]
    assert issubclass(one, lightrft.OpenEnvTexts) and one.action_key == "code"


def test_the_callback_that_stops() -> None:
    enough = run("how-to/evaluation.md", 0)["enough"]
    assert [enough(SimpleNamespace(metrics=found)) for found in ({}, {"eval/reward": 0.96})] == [None, "good enough"]


def test_the_reward_for_short_answers() -> None:
    short = run("how-to/rewards.md", 0)["short"]
    assert short([lightrft.Sample(prompt="", completion="", num_tokens=number) for number in (49, 50)]) == [1.0, 0.0]


def test_the_phase_of_ones_own() -> None:
    @dataclass(frozen=True)
    class Experience:
        advantages: torch.Tensor

    class Trainer:
        def __init__(self, *_: Any, phases: dict[str, Any]) -> None:
            self.metrics: dict[str, float] = {}
            Trainer.given = phases  # type: ignore[attr-defined]

        def advantage(self, experience: Experience) -> Experience:
            return experience

    phase = run("concepts/iteration.md", 0, SPMDPPOTrainer=Trainer)["advantage"]
    assert Trainer.given == {"advantage": phase}  # type: ignore[attr-defined]
    trainer = Trainer(phases={})
    assert phase(trainer, Experience(torch.tensor([-3.0, 1.0, 5.0]))).advantages.tolist() == [-2.0, 1.0, 2.0]
    assert trainer.metrics == {"mine/largest": 5.0}


def test_the_specs_of_a_plugin() -> None:
    strategy, reward = run("plugin-author.md", 0)["lightrft_plugins"]()
    assert isinstance(strategy, StrategySpec) and isinstance(reward, RewardSpec) and strategy.name == reward.name == "rocket"


def test_the_test_file_of_a_plugin_names_its_plugins() -> None:
    found = run("plugin-author.md", 1, __name__="page")  # the third block is run by test_plugin_docs.py
    assert (found["TestStrategy"].strategy_name, found["TestEngine"].engine_name) == ("rocket", "rocket")
