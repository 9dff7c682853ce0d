"""pass@k, maj@k and avg@k are what their definitions say; each prompt of each set is counted once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.checks import check_eval
from lightrft.config.eval_files import eval_files
from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.run.evaluate_samples import best_worst_median
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import make_trainer, prompts
from lightrft.trainer.eval_metrics import majority_at_k, pass_at_k, vote_of
from lightrft.trainer.evaluate import eval_ks
from lightrft.types import Sample


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in (1, 4, 6) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_fraction_of_subsets_with_a_right_sample(n: int, c: int, k: int) -> None:
    right = [index < c for index in range(n)]
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(num_samples=n, num_right=c, k=k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_by_hand_and_for_large_numbers() -> None:
    assert pass_at_k(num_samples=4, num_right=1, k=2) == pytest.approx(0.5)  # 3 of 6 pairs hold the right one
    assert pass_at_k(num_samples=200, num_right=3, k=100) == pytest.approx(1 - (100 * 99 * 98) / (200 * 199 * 198))
    for arguments in ({"num_samples": 4, "num_right": 1, "k": 5}, {"num_samples": 4, "num_right": 1, "k": 0}):
        with pytest.raises(ValueError, match="is not between 1 and the number of samples, 4"):
            pass_at_k(**arguments)
    with pytest.raises(ValueError, match="num_right=5"):
        pass_at_k(num_samples=4, num_right=5, k=1)


@pytest.mark.parametrize(
    ("votes", "right", "k", "expected"),
    [
        ("aab", [1, 1, 0], 3, 1.0),
        ("abb", [1, 0, 0], 3, 0.0),
        ("ab", [1, 0], 2, 0.5),  # a tie: either, with the same chance
        ("aabb", [1, 1, 0, 0], 2, 0.5),  # two blocks: aa is right, bb is not
        ("abbb", [1, 0, 0, 0], 1, 0.25),  # maj@1 is the mean
        ("aabbb", [1, 1, 0, 0, 0], 2, 0.5),  # likewise: what does not fill a block is left out
    ],
)
def test_majority_by_hand(votes: str, right: list[int], k: int, expected: float) -> None:
    assert majority_at_k(list(votes), [bool(r) for r in right], k=k) == pytest.approx(expected)


def test_no_vote_does_not_count_and_nobody_s_vote_is_wrong() -> None:
    assert majority_at_k([None, None, "a"], [False, False, True], k=3) == 1.0
    assert majority_at_k([None, None], [True, True], k=2) == 0.0
    with pytest.raises(ValueError, match="k=3 is not between 1"):
        majority_at_k(["a"], [True], k=3)
    with pytest.raises(ValueError, match="1 votes but 2 judgements"):
        majority_at_k(["a"], [True, False], k=1)


def test_equal_answers_are_one_vote() -> None:
    same = [r"so it is \boxed{1,000}", "#### 1000", "The answer is 1000.0.", "1000"]
    assert {vote_of(text) for text in same} == {"1000"}
    assert vote_of("1 1 3 4 5 9") == "1 1 3 4 5 9" != vote_of("1 1 3 4 9 5")
    assert vote_of("  Hello   World ") == "hello world"
    assert vote_of("") is None and vote_of("word " * 100) is None


def index_of(samples: Sequence[Sample]) -> list[float]:
    return [float(s.answer or "nan") for s in samples]


def test_several_sets_are_means_of_their_own_and_of_all_prompts(tmp_path: Path) -> None:
    sets = {"low": prompts(6)[:4], "high": prompts(6)[4:]}
    trainer = make_trainer(tmp_path, reward=index_of, eval_prompts=sets, eval_n=3, eval_right_at=4.0)
    trainer.strategy.update_engine_weights(trainer.actor)
    got = trainer.evaluate()
    answers = [0, 2, 4, 6, 8, 10]
    assert got["eval/reward"] == pytest.approx(sum(answers) / 6)
    assert got["eval/low/reward"] == got["eval/low/index_of"] == pytest.approx(3.0) and got["eval/high/reward"] == pytest.approx(9.0)
    assert got["eval/pass@1"] == got["eval/pass@3"] == pytest.approx(4 / 6) and got["eval/high/pass@3"] == 1.0
    assert got["eval/avg@3"] == pytest.approx(sum(answers) / 6) and got["eval/low/avg@1"] == pytest.approx(3.0)
    assert 0 < got["eval/maj@1"] <= 4 / 6, "an empty completion is no vote"
    rows = [json.loads(line) for line in (tmp_path / "run" / "eval_samples-0.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * (1 + 3) and sum(row["kind"] == "greedy" for row in rows) == 6
    assert {(row["dataset"], row["index"]) for row in rows} == {("low", i) for i in range(4)} | {("high", i) for i in (4, 5)}
    assert rows[0] | {"completion": "", "num_tokens": 0, "finish_reason": ""} == {
        "step": 0, "dataset": "low", "index": 0, "kind": "greedy", "prompt": "0 + 0 =", "completion": "", "answer": "0", "reward": 0.0,
        "rewards": {"index_of": 0.0}, "num_tokens": 0, "finish_reason": "",
    }  # fmt: skip


def test_samples_are_drawn_as_a_rollout_is_and_alike_in_every_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, engine_type="hf", eval_n=2, temperature=1.5)
    trainer.strategy.update_engine_weights(trainer.actor)
    completions = []
    for _ in range(2):
        trainer.evaluate()
        rows = [json.loads(line) for line in (tmp_path / "run" / "eval_samples-0.jsonl").read_text().splitlines()]
        completions.append([row["completion"] for row in rows])
    assert completions[0] == completions[1], "an evaluation does not depend on how many came before"
    assert len(set(completions[0])) > 3, "samples differ from the greedy completion and from each other"


def test_a_few_of_best_median_and_worst() -> None:
    rows: list[dict[str, Any]] = [{"reward": value} for value in (0.1, 0.9, 0.5, 0.3, 0.7, 0.0, 1.0)]
    found = best_worst_median(rows)
    assert [[row["reward"] for row in found[kind]] for kind in ("best", "median", "worst")] == [[1.0, 0.9], [0.7, 0.5], [0.1, 0.0]]
    few = best_worst_median(rows[:3])
    assert sorted(row["reward"] for kind in few.values() for row in kind) == [0.1, 0.5, 0.9], "none comes twice"
    assert best_worst_median([]) == {"best": [], "median": [], "worst": []}


def test_ks_and_file_names() -> None:
    assert eval_ks(make_config({"eval_n": 8})) == [1, 8] and eval_ks(make_config({"eval_n": 8, "eval_k": [4, 2]})) == [2, 4]
    assert make_config({"eval_data": "a/b.jsonl"}).eval_data == ["a/b.jsonl"] and make_config({"eval_data": ""}).eval_data == []
    assert eval_files(["a/b.jsonl", "hard=c/d.parquet"]) == {"b": "a/b.jsonl", "hard": "c/d.parquet"}
    with pytest.raises(ConfigError, match=r"names 'b' twice \('a/b.jsonl', 'c/b.jsonl'\); give one of them as NAME=PATH"):
        eval_files(["a/b.jsonl", "c/b.jsonl"])


def test_k_beyond_n_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "e.jsonl"
    data.write_text('{"prompt": "1", "answer": "1"}\n')
    config = make_config({"strategy": "fake", "engine_type": "fake", "model_name_or_path": "a/b", "eval_data": str(data), "eval_k": [1, 8]})
    with pytest.raises(ConfigError) as caught:
        check_eval(config, registry=fake_registry(), world_size=1)
    assert "eval_k=8 is larger than eval_n=0: pass@8 needs 8 samples of each prompt; set eval_n to 8 or more" in caught.value.problems
