"""Episodes: tokens in, tokens out; masks with holes; failures that are an episode's own; one turn is bitwise a run without any."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.errors import EpisodeError
from lightrft.experience.environments import load_environment
from lightrft.experience.episodes import Episodes
from lightrft.experience.gap import differences
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.plugins import Registry
from lightrft.rewards.environment import environment_reward
from lightrft.rewards.load import NamedReward
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import Sample

closed: list[str] = []
LIMIT_S = 1.5


class Counting(Environment):
    """Says the turn's number, in turns of different lengths, for as many turns as the row says."""

    def start(self, row: Mapping[str, Any]) -> None:
        self.row = row

    def step(self, turn: Turn) -> Step:
        if turn.number + 1 == self.row["turns"]:
            return End(reward={"done": 1.0, "turns": 0.5 * turn.number}, info={"said": turn.text})
        return Continue(text=str(turn.number) * (turn.number + 1))

    def close(self) -> None:
        closed.append(str(self.row["turns"]))
        if self.row.get("fails") == "close":
            raise OSError("still open")


class Failing(Counting):
    """Fails in the way that the row says."""

    def start(self, row: Mapping[str, Any]) -> Any:
        super().start(row)
        if row["fails"] == "start":
            raise KeyError("nothing here")
        return {"tokens": [5, 900], "negative": [5, -1]}.get(row["fails"])

    def step(self, turn: Turn) -> Any:
        match self.row["fails"]:
            case "raise":
                raise ZeroDivisionError("by zero")
            case "exit":
                raise SystemExit(2)
            case "interrupt":
                raise KeyboardInterrupt
            case "cancelled":
                raise asyncio.CancelledError("elsewhere")
            case "surrogate":
                return Continue(text="a\ud800")
            case "garbage":
                return "not a step"
            case "shape":
                return Continue(text=b"bytes")  # type: ignore[arg-type]
            case "messages":
                return Continue(messages=[{"role": "user", "content": "x"}])
            case "hang":
                return asyncio.sleep(30)
            case "slow":
                time.sleep(2 * LIMIT_S)
        return super().step(turn)


class Needing(Counting):
    """Cannot be made without an argument."""

    def __init__(self, url: str, *, retries: int = 2) -> None:
        self.url = url


class Otherwise(Environment):
    """Begins with a prompt of its own, another one for each row or for each episode."""

    count = 0

    def start(self, row: Mapping[str, Any]) -> list[int]:
        type(self).count += 1
        return [7, 8, 9] if row["same"] else [7, 10 + self.count]

    def step(self, turn: Turn) -> Step:
        return End()


def maker(folder: Path, environment: str, **settings: Any) -> ExperienceMaker:
    closed.clear()
    place = f"{__name__}:{environment}" if environment and environment != "single_turn" else environment
    config = make_config(
        dict(
            strategy="single", engine_type="hf", generate_max_len=30, prompt_max_len=16, n_samples_per_prompt=2, environment=place,
            micro_rollout_batch_size=4, logprob_gap_prompts=8, environment_timeout_s=LIMIT_S, reward=["environment"],
        )
        | settings
    )  # fmt: skip
    strategy = get_strategy(config, registry=fake_registry())
    strategy.setup_inference_engine(config, model_path=str(tiny_model_folder(folder, seed=2)))
    actor, _ = strategy.prepare_trainable(tiny_causal_lm(seed=2), optimizer=AdamWSettings(learning_rate=1e-2))
    return ExperienceMaker(
        strategy=strategy, config=config, tokenizer=tiny_tokenizer(), actor=actor, initial_model=None,
        rewards=[NamedReward(name="environment", function=environment_reward, weight=1.0)],
        advantage_estimator=strategy.registry.load("advantage", "grpo"),
        episodes=Episodes(strategy=strategy, config=config, tokenizer=tiny_tokenizer()) if environment else None,
    )  # fmt: skip


def rows(*values: dict[str, Any]) -> list[Prompt]:
    return [Prompt(index=i, text="x" * i, token_ids=(5, 6 + i), answer=None, row=row) for i, row in enumerate(values)]


def test_one_turn_is_bitwise_what_a_run_without_an_environment_samples(tmp_path: Path) -> None:
    prompts = rows({}, {}, {})
    plain = maker(tmp_path, "").generate(prompts)
    played = maker(tmp_path, "single_turn", max_turns=1).generate(prompts)
    for field in fields(Sampled):
        mine, other = getattr(plain, field.name), getattr(played, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype and torch.equal(mine, other), field.name
    names = [field.name for field in fields(Sample) if field.name != "episode"]
    for mine, other in zip(plain.samples, played.samples, strict=True):
        assert [getattr(mine, name) for name in names] == [getattr(other, name) for name in names]


def test_what_is_trained_is_what_was_sampled_with_holes_where_the_environment_spoke(tmp_path: Path) -> None:
    made = maker(tmp_path, "Counting", ignore_eos=True, turn_max_len=4, max_turns=5, generate_max_len=60)
    tokenizer = tiny_tokenizer()
    batch = made.generate(rows({"turns": 1}, {"turns": 5}, {"turns": 3}))
    for index, turns in enumerate([1, 1, 5, 5, 3, 3]):
        tokens = batch.token_ids[batch.offsets[index] : batch.offsets[index + 1]].tolist()
        mask = batch.loss_mask[batch.offsets[index] : batch.offsets[index + 1]].tolist()
        between = [tokenizer(str(n) * (n + 1))["input_ids"] for n in range(turns - 1)]
        assert mask == [False] * 2 + [one for ids in between for one in [True] * 4 + [False] * len(ids)] + [True] * 4
        assert [t for t, m in zip(tokens[2:], mask[2:], strict=True) if not m] == [t for ids in between for t in ids]
        sample = batch.samples[index]
        assert list(sample.token_ids) == [t for t, m in zip(tokens, mask, strict=True) if m]
        assert sample.episode is not None
        assert [who for who, _ in sample.episode.turns] == (["policy", "environment"] * turns)[:-1]
        assert sample.episode.rewards == {"done": 1.0, "turns": 0.5 * (turns - 1)}
        assert sample.episode.earned == (*((4 * n, 0.0) for n in range(1, turns)), (4 * turns, 1.0 + 0.5 * (turns - 1)))
        assert sample.episode.info["said"] == sample.completion
    assert batch.num_sampled.tolist() == [4, 4, 20, 20, 12, 12]
    assert not batch.truncated.any(), "the environment ended them"
    assert sorted(closed) == ["1", "1", "3", "3", "5", "5"]
    found = made.metrics.reduce(None)
    assert found["episode/turns"] == 3.0 and found["episode/env_error"] == 0.0
    assert found["episode/env_tokens"] == pytest.approx(26 / (72 + 26))


@pytest.mark.parametrize("family", [{}, {"temperature": 0.7}])
def test_engine_and_trainer_agree_over_all_turns(tmp_path: Path, family: dict[str, Any]) -> None:
    made = maker(tmp_path, "Counting", ignore_eos=True, turn_max_len=4, max_turns=5, generate_max_len=60, **family)
    batch = made.generate(rows({"turns": 5}, {"turns": 4}, {"turns": 2}))
    scored = made.score(made.reward(batch), seed=0)
    gaps = torch.cat(differences(batch, made.scorer.run(made.reward(batch), seed=0).untempered))
    assert len(gaps) == 2 * 4 * (5 + 4 + 2)
    assert float(gaps.abs().max()) < 1e-5
    trainable = made.advantages(scored)
    assert not trainable.advantages[~batch.loss_mask].any()
    assert made.metrics.reduce(None)["rollout/logprob_gap_max"] < 1e-5


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        ("start", "start: KeyError: 'nothing here'"),
        ("raise", "step: ZeroDivisionError: by zero, at .*test_episodes.py"),
        ("exit", r"step: it called sys.exit\(2\)"),
        ("interrupt", "step: KeyboardInterrupt"),
        ("cancelled", "step: CancelledError: elsewhere"),
        ("surrogate", r"step: ValueError: Continue: text has '\\ud800', half of a surrogate pair"),
        ("tokens", "start: ValueError: its prompt has the token 900, and the tokenizer has 49, from 0"),
        ("negative", "start: ValueError: its prompt has the token -1, and the tokenizer has 49, from 0"),
        ("garbage", r"step: ValueError: it returned 'not a step'; give Continue\(...\) or End\(...\)"),
        ("shape", "step: ValueError: Continue: text is b'bytes', a bytes, not a str"),
        ("messages", "step: DataError: the environment gave chat messages, which need a chat template"),
        ("hang", r"step: TimeoutError: did not return within 1.5 s \(environment_timeout_s\)"),
        ("slow", r"step: TimeoutError: did not return within 1.5 s \(environment_timeout_s\)"),
    ],
)
def test_an_environment_that_fails_ends_its_own_episode(tmp_path: Path, fails: str, error: str) -> None:
    made = maker(tmp_path, "Failing", max_turns=4)
    rewarded = made.reward(made.generate(rows({"turns": 2, "fails": ""}, {"turns": 2, "fails": fails})))
    assert rewarded.env_failed.tolist() == [False, False, True, True]
    assert rewarded.trains.tolist() == [True, True, False, False]
    assert rewarded.rewards.tolist() == [1.5, 1.5, 0.0, 0.0]
    episode = rewarded.samples[2].episode
    assert episode is not None and rewarded.samples[2].finish_reason == "env_error"
    assert made.episodes is not None and made.episodes.first_error == episode.error
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(episode.error)
    assert len(closed) == 4
    metrics = made.metrics.reduce(None)
    assert metrics["episode/env_error"] == 0.5
    made.conclude(metrics)
    assert next(row.text for row in made.warnings.rows if row.name == "env_error").startswith("the environment failed in 50%")


def test_an_environment_that_fails_to_close_is_told_and_its_episode_counts(tmp_path: Path) -> None:
    made = maker(tmp_path, "Failing", max_turns=4)
    rewarded = made.reward(made.generate(rows({"turns": 2, "fails": ""}, {"turns": 2, "fails": "close"})))
    assert rewarded.trains.tolist() == [True] * 4 and rewarded.rewards.tolist() == [1.5] * 4
    metrics = made.metrics.reduce(None)
    assert metrics["episode/close_error"] == 0.5 and metrics["episode/env_error"] == 0.0
    made.conclude(metrics)
    [text] = [row.text for row in made.warnings.rows if row.name == "env_close_error"]
    assert text.startswith("close() of the environment failed in 50%") and "the first: close: OSError: still open" in text


def test_an_environment_that_always_fails_is_an_error_of_the_run(tmp_path: Path) -> None:
    made = maker(tmp_path, "Failing", max_turns=4)
    with pytest.raises(EpisodeError, match="failed in all 4 episodes; the first: step: ZeroDivisionError"):
        made.generate(rows({"turns": 2, "fails": "raise"}, {"turns": 1, "fails": "raise"}))
    assert len(closed) == 4


@pytest.mark.parametrize(("settings", "turns"), [({"max_turns": 2, "turn_max_len": 4}, 2), ({"max_turns": 9, "turn_max_len": 12}, 2)])
def test_a_limit_ends_an_episode_after_a_whole_turn(tmp_path: Path, settings: dict[str, Any], turns: int) -> None:
    made = maker(tmp_path, "Counting", ignore_eos=True, **settings)
    batch = made.generate(rows({"turns": 20}))
    assert batch.truncated.all()
    assert batch.num_sampled.tolist() == [turns * settings["turn_max_len"]] * 2
    assert (batch.lengths - 2).max() <= 30
    assert batch.loss_mask[batch.offsets[1:] - 1].all(), "nothing of the environment follows the last turn"
    metrics = made.metrics.reduce(None)
    made.conclude(metrics)
    told = [row.text for row in made.warnings.rows if row.name == "env_no_room"]
    assert metrics["episode/no_room"] == len(told) == (settings["max_turns"] == 9)
    assert not told or told[0].startswith("100% of this rollout's episodes were cut off, since no whole turn fits into generate_max_len=30")


def test_an_environment_begins_with_a_prompt_of_its_own_the_same_for_a_row(tmp_path: Path) -> None:
    Otherwise.count = 0
    batch = maker(tmp_path, "Otherwise", environment_concurrency=1).generate(rows({"same": True}, {"same": False}))
    assert batch.token_ids[batch.offsets[0] :][:3].tolist() == [7, 8, 9]
    assert batch.env_failed.tolist() == [False, False, False, True]
    assert batch.samples[3].episode is not None and "the row's other episodes" in batch.samples[3].episode.error
    assert batch.samples[0].prompt == tiny_tokenizer().decode([7, 8, 9])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module_here:X", "no module 'no_such_module_here' on the import path"),
        (f"{__name__}:Countin", "has no 'Countin'.*Counting"),
        (f"{__name__}:maker", "no subclass of lightrft.rollout.environment.Environment"),
        (f"{__name__}:Needing", "is made with url; each episode makes one without arguments"),
        ("lightrft.rollout.environment:Environment", "no subclass of lightrft.rollout.environment.Environment"),
    ],
)
def test_an_environment_that_is_not_there_is_named(name: str, problem: str) -> None:
    with pytest.raises(EpisodeError, match=problem):
        load_environment(name, registry=Registry.discover())


def test_an_environment_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from lightrft.rollout.environment import SingleTurn\nclass Mine(SingleTurn):\n    pass\n")
    assert load_environment(f"{file}:Mine", registry=Registry.discover()).__name__ == "Mine"  # type: ignore[attr-defined]
    file.write_text("1 / 0\n")
    with pytest.raises(EpisodeError, match=r"environment '.*mine.py:Mine' cannot be imported: ZeroDivisionError.*mine.py:1"):
        load_environment(f"{file}:Mine", registry=Registry.discover())
