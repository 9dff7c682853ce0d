"""An evaluation over two ranks counts each prompt once and finds what one process finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import write_recipe

from lightrft.config.load import make_config, read_recipe
from lightrft.testing.spmd import run_spmd
from lightrft.trainer.run import evaluate


def on_ranks(recipe: str, changes: dict[str, Any]) -> dict[str, Any]:
    return evaluate(make_config(read_recipe(recipe) | changes))


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} - {i} =", "answer": "0"} for i in range(5)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(
        tmp_path,
        eval_data=[str(tmp_path / "rows.jsonl"), f"minus={tmp_path / 'other.jsonl'}"],
        eval_n=4,
        eval_right_at=2.0,
        prompt_max_len=64,
    )
    one = on_ranks(str(recipe), {"strategy": "single", "eval_out": str(tmp_path / "one.jsonl")})
    two = run_spmd(on_ranks, 2, str(recipe), {"eval_out": str(tmp_path / "two.jsonl")}, timeout_s=180)
    numbers = [{name: value for name, value in found.items() if name != "samples"} for found in (one, *two)]
    assert numbers[0]["num_prompts"] == 13 and {"minus/pass@4", "rows/maj@1", "avg@4", "reward"} <= numbers[0].keys()
    greedy = [{n: v for n, v in found.items() if "@" not in n} for found in numbers]
    assert greedy[1] == pytest.approx(greedy[0]) and numbers[1] == numbers[2]
    written = {
        name: {(row["dataset"], row["index"], row["completion"]) for row in map(json.loads, (tmp_path / name).read_text().splitlines())
               if row["kind"] == "greedy"}
        for name in ("one.jsonl", "two.jsonl")
    }  # fmt: skip
    assert written["one.jsonl"] == written["two.jsonl"] and len(written["one.jsonl"]) == 13
    assert len((tmp_path / "two.jsonl").read_text().splitlines()) == 13 * 5


TALK = """
from lightrft.rollout.environment import Continue, End, Environment

class Talk(Environment):
    def start(self, row):
        self.turns = int(row["answer"])

    def step(self, turn):
        return End(reward=turn.number + 1.0) if turn.number + 1 == self.turns else Continue(text=" 1")
"""


@pytest.mark.slow
def test_ranks_whose_episodes_have_other_numbers_of_turns_find_what_one_rank_finds(tmp_path: Path) -> None:
    """Of the first rank every episode has one turn, of the other one four; and there is a prompt more on the first."""
    (tmp_path / "talk.py").write_text(TALK)
    rows = [{"prompt": f"{i} + 1 =", "answer": "4" if i % 2 else "1"} for i in range(5)]
    recipe = write_recipe(tmp_path, prompt_max_len=64, generate_max_len=32, turn_max_len=4, max_turns=6, sft_steps=0)
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "eval_data": str(tmp_path / "talks.jsonl"), "environment": f"{tmp_path / 'talk.py'}:Talk", "reward": ["environment"],
        "label_key": "answer",
    }  # fmt: skip
    one = on_ranks(str(recipe), changes | {"strategy": "single", "eval_out": str(tmp_path / "one.jsonl")})
    two = run_spmd(on_ranks, 2, str(recipe), changes | {"eval_out": str(tmp_path / "two.jsonl")}, timeout_s=180)
    assert one["reward"] == two[0]["reward"] == two[1]["reward"] == pytest.approx((3 * 1 + 2 * 4) / 5)
    found = [
        {(row["index"], row["completion"], row["num_tokens"]) for row in map(json.loads, (tmp_path / name).read_text().splitlines())}
        for name in ("one.jsonl", "two.jsonl")
    ]
    assert found[0] == found[1] and len(found[0]) == 5
