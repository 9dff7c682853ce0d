"""Episodes that are left unfinished and go on: the tokens of whole ones, a version for each, environments that are played again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.data.prompts import Prompt
from lightrft.experience.episodes import Episodes
from lightrft.experience.partial_episodes import PartialEpisodes
from lightrft.experience.sampling import greedy_params
from lightrft.observe.metrics import StepMetrics
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import ALPHABET, config_of, prompts
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer

TURNS = (1, 3, 2, 4, 1, 2)
TURN = 4
closed: Counter[int] = Counter()


class Counting(Environment):
    """Says the number of the turn so many times; the row says for how many turns, and what goes wrong."""

    plays = 0

    def start(self, row: Mapping[str, Any]) -> None:
        type(self).plays += 1
        self.row, self.play = row, self.plays
        if row.get("fails") == "start":
            raise KeyError("nothing here")

    def step(self, turn: Turn) -> Step:
        if turn.number + 1 == self.row["turns"]:
            return End(reward={"done": 1.0}, info={"said": turn.text})
        said = str(self.play % 10) if self.row.get("fails") == "differs" else str(turn.number)
        info = {"path": Path("here")} if self.row.get("fails") == "info" else {"at": turn.number}
        return Continue(text=said * (turn.number + 1), reward=0.5, info=info)

    def close(self) -> None:
        closed[self.play] += 1


def rows(**more: Any) -> list[Prompt]:
    return [replace(prompt, row={"turns": turns} | more) for prompt, turns in zip(prompts(), TURNS, strict=True)]


def unit_of(folder: Path, some: list[Prompt], **changes: Any) -> PartialEpisodes:
    """Greedy, with slices of 3 tokens of turns of 4."""
    closed.clear()
    config = config_of(
        folder, engine_type="hf", top_k=1, n_samples_per_prompt=2, oversample=1.5, max_version_lag=8, slice_max_len=3, max_turns=5,
        generate_max_len=60, turn_max_len=TURN, ignore_eos=True, environment=f"{__name__}:Counting", rollout_batch_size=4, **changes,
    )  # fmt: skip
    strategy = get_strategy(config, registry=fake_registry())
    strategy.setup_inference_engine(
        config, model_path=str(tiny_model_folder(folder / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2))
    )
    tokenizer = tiny_tokenizer(ALPHABET)
    episodes = Episodes(strategy=strategy, config=config, tokenizer=tokenizer)
    return PartialEpisodes(episodes, strategy=strategy, config=config, tokenizer=tokenizer, prompts=some)


def test_episodes_that_go_on_are_those_that_are_played_whole(tmp_path: Path) -> None:
    """Greedily, under weights that are sent again unchanged after each slice."""
    some = rows()
    unit = unit_of(tmp_path, some)
    whole = unit._episodes.play(some, replace(greedy_params(unit.config), n=2), logprobs=6, sleep_engine=False)
    closed.clear()
    actor, groups, slices = tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE), [], 0
    unit._begin(some)
    while not all(group.complete for group in unit._groups):
        unit._grow()
        unit.strategy.update_engine_weights(actor)
        slices += 1
    assert slices == 2 * max(TURNS) and sorted(closed.values()) == [1] * 12
    groups = unit._groups
    batch, expected = unit._columns(groups), unit._episodes.columns(whole)
    for name in ("offsets", "token_ids", "loss_mask", "begins", "finish_reasons"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    torch.testing.assert_close(batch.engine_logprobs, expected.engine_logprobs, rtol=0, atol=1e-5)
    assert [sample.episode for sample in batch.samples] == [sample.episode for sample in expected.samples]
    assert batch.group_ids.tolist() == [serial for serial in range(6) for _ in range(2)]
    for turns, versions in zip([t for t in TURNS for _ in range(2)], batch.by_sequence(batch.versions), strict=True):
        assert versions.tolist() == [version for turn in range(turns) for version in [2 * turn] * 3 + [2 * turn + 1]]


def test_a_step_trains_what_has_ended_and_the_rest_goes_on(tmp_path: Path) -> None:
    some = rows()
    unit = unit_of(tmp_path, some)
    metrics = StepMetrics()
    batch = unit.sampled(some, metrics=metrics)
    assert batch.group_ids.tolist()[::2] == [0, 2, 4, 5], "those of one and two turns"
    found = metrics.reduce(None)
    assert (found["partial/slices"], found["partial/in_flight"], found["episode/turns"]) == (4, 2, 1.5)
    assert sum(closed.values()) == 8
    unit.close()
    unit.close()
    assert sum(closed.values()) == 12 and set(closed.values()) == {1}


def test_a_resumed_step_goes_on_with_environments_that_are_played_again(tmp_path: Path) -> None:
    some = rows()
    first, second = unit_of(tmp_path / "a", some), unit_of(tmp_path / "b", some)
    first.sampled(some, metrics=StepMetrics())
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() and second.wanted() == first.wanted() == [4]
    mine, other = (unit.sampled(some[:4], metrics=StepMetrics()) for unit in (first, second))
    for name in ("token_ids", "loss_mask", "versions", "engine_logprobs", "group_ids"):
        assert torch.equal(getattr(mine, name), getattr(other, name)), name
    assert mine.samples == other.samples and not other.env_failed.any()


def test_an_environment_that_does_otherwise_after_a_resume_ends_its_episode(tmp_path: Path) -> None:
    some = rows()
    some[3] = replace(some[3], row=some[3].row | {"fails": "differs"})
    first, second = unit_of(tmp_path / "a", some), unit_of(tmp_path / "b", some)
    Counting.plays = 0
    first.sampled(some, metrics=StepMetrics())
    second.load_state_dict(first.state_dict())
    batch = second.sampled(some[:4], metrics=StepMetrics())
    failed = {sample.row["turns"]: sample.episode.error for sample in batch.samples if sample.episode is not None and sample.episode.error}
    [error] = failed.values()
    assert list(failed) == [4] and error.startswith("resume: ValueError: played again after a resume it did otherwise than before; what")


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        ("info", "step: ValueError: it gave a PosixPath, which a checkpoint does not keep; give str, numbers, bool, None, and lists"),
        ("start", "start: KeyError: 'nothing here'"),
    ],
)
def test_a_failure_is_its_own_episodes(tmp_path: Path, fails: str, error: str) -> None:
    some = rows()
    some[2] = replace(some[2], row=some[2].row | {"fails": fails})
    unit, metrics = unit_of(tmp_path, some), StepMetrics()
    batch = unit.sampled(some, metrics=metrics)
    assert [index // 2 for index in batch.env_failed.nonzero().flatten().tolist()] == [1, 1]
    assert all(sample.episode.error.startswith(error) for sample in batch.samples[2:4] if sample.episode is not None)
    assert metrics.reduce(None)["episode/env_error"] == 0.25 and batch.num_sampled.tolist()[2:4] == [TURN] * 2
