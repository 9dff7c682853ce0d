"""Faults planted in how episodes are played, each named by an account that trusts neither: what environments saw, what the engine drew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lightrft.batch.collect import Conversation
from lightrft.batch.stages import Sampled
from lightrft.experience.episodes import Episodes
from lightrft.experience.live_episode import LiveEpisode, Words
from lightrft.experience.talking_episodes import TalkingEpisodes
from lightrft.rollout.conversations import Ask
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.testing.small_trainer import ALPHABET, make_trainer, prompts
from lightrft.testing.tiny import tiny_tokenizer

TURNS = (1, 3, 2, 4)
VERSION = 0
diaries: list[Diary] = []


@dataclass
class Diary:
    """What one environment went through: the numbers of its turns, all tokens after the prompt and whose they are, how often it closed."""

    turns: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    ended: bool = False
    after_its_end: int = 0
    closed: int = 0

    def add(self, token_ids: Sequence[int], *, sampled: bool) -> None:
        self.token_ids += token_ids
        self.sampled += [sampled] * len(token_ids)


class Diarist(Environment):
    """Counts aloud for as many turns as its place among the prompts says."""

    def __init__(self) -> None:
        self.diary = Diary()
        diaries.append(self.diary)

    def start(self, row: Mapping[str, Any]) -> None:
        self.last = row["turns"] - 1

    def step(self, turn: Turn) -> Step:
        self.diary.after_its_end += self.diary.ended
        self.diary.turns.append(turn.number)
        self.diary.add(turn.token_ids, sampled=True)
        if turn.number >= self.last:
            self.diary.ended = True
            return End(reward=1.0)
        said = str(turn.number) * (turn.number + 1)
        self.diary.add(tiny_tokenizer(ALPHABET)(said)["input_ids"], sampled=False)
        return Continue(text=said)

    def close(self) -> None:
        self.diary.closed += 1


def problems(batch: Sampled, drawn: Mapping[tuple[int, ...], Sequence[tuple[int, ...]]]) -> list[str]:
    """What of a rollout is not as environments and engine tell it; `drawn` has, for each prompt that the engine was given, its answers."""
    found = [f"an episode has the turns {one.turns}" for one in diaries if one.turns != list(range(len(one.turns)))]
    found += [f"an environment was closed {one.closed} times" for one in diaries if one.closed != 1]
    found += ["an episode went on after its end" for one in diaries if one.after_its_end]
    rows = [_row(batch, index) for index in range(len(batch))]
    told, kept = Counter(tuple(one.token_ids) for one in diaries), Counter(tuple(tokens) for _, tokens, _ in rows)
    found += [f"{number} more episodes of some tokens than were played" for number in (kept - told).values()]
    found += [f"{number} episodes were played and are not there as they were" for number in (told - kept).values()]
    masks = {(tuple(one.token_ids), tuple(one.sampled)) for one in diaries}
    found += ["a mask is not that of what was sampled" for _, tokens, mask in rows if (tuple(tokens), tuple(mask)) not in masks]
    found += ["a turn was not drawn after the tokens before it" for row in rows if not _was_drawn(*row, drawn=drawn)]
    versions = set(batch.versions[batch.loss_mask].tolist())
    return found + [f"sampled tokens are of the weights {sorted(versions)}"] * (versions != {VERSION})


def _row(batch: Sampled, index: int) -> tuple[list[int], list[int], list[bool]]:
    begin, end = batch.offsets[index : index + 2].tolist()
    prompt = prompts(len(TURNS))[index // 2].token_ids
    ids, mask = batch.token_ids[begin:end].tolist(), batch.loss_mask[begin:end].tolist()
    return ids[: len(prompt)], ids[len(prompt) :], mask[len(prompt) :]


def _was_drawn(prompt: list[int], tokens: list[int], mask: list[bool], *, drawn: Mapping[tuple[int, ...], Any]) -> bool:
    """Whether every turn is what the engine answered to all tokens before it."""
    at = 0
    while at < len(tokens):
        end = next((place for place in range(at, len(tokens)) if mask[place] != mask[at]), len(tokens))
        if mask[at] and tuple(tokens[at:end]) not in drawn.get((*prompt, *tokens[:at]), ()):
            return False
        at = end
    return True


def played(folder: Path) -> list[str]:
    """The problems of a rollout of two episodes of each prompt."""
    diaries.clear()
    trainer = make_trainer(
        folder, environment=f"{__name__}:Diarist", max_turns=5, turn_max_len=3, generate_max_len=60, n_samples_per_prompt=2, ignore_eos=True
    )  # fmt: skip
    drawn: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    engine: Any = trainer.strategy.inference_engine
    generate = engine.generate

    def recorded(*asked: Any) -> Any:
        outputs = generate(*asked)
        for output in outputs:
            drawn.setdefault(tuple(output.prompt_token_ids), []).extend(tuple(c.token_ids) for c in output.completions)
        return outputs

    engine.generate = recorded
    rows = [replace(prompt, row={"turns": turns}) for prompt, turns in zip(prompts(len(TURNS)), TURNS, strict=True)]
    return problems(trainer.experience_maker.generate(rows), drawn)


def test_a_rollout_without_a_fault_has_no_problem(tmp_path: Path) -> None:
    assert played(tmp_path) == []
    assert sorted(len(one.turns) for one in diaries) == [1, 1, 2, 2, 3, 3, 4, 4]


def mask_shifted(patch: pytest.MonkeyPatch) -> None:
    plain: Callable[[LiveEpisode], Conversation] = LiveEpisode.conversation
    patch.setattr(LiveEpisode, "conversation", lambda one: replace(c := plain(one), sampled=[c.sampled[-1], *c.sampled[:-1]]))


def tokens_lost(patch: pytest.MonkeyPatch) -> None:
    plain = LiveEpisode.go_on
    patch.setattr(
        LiveEpisode, "go_on", lambda one, step, words, **more: plain(one, step, replace(words, token_ids=words.token_ids[1:]), **more)
    )


def turns_exchanged(patch: pytest.MonkeyPatch) -> None:
    plain = TalkingEpisodes.turns

    def turns(self: TalkingEpisodes, **how: Any) -> list[Ask]:
        asked = plain(self, **how)
        return [replace(one, token_ids=other.token_ids) for one, other in zip(asked, asked[::-1], strict=True)]

    patch.setattr(TalkingEpisodes, "turns", turns)


def episode_duplicated(patch: pytest.MonkeyPatch) -> None:
    plain = Episodes.play

    def play(self: Episodes, *args: Any, **more: Any) -> list[LiveEpisode]:
        found = plain(self, *args, **more)
        return [found[0], found[0], *found[2:]]

    patch.setattr(Episodes, "play", play)


def version_before(patch: pytest.MonkeyPatch) -> None:
    plain: Callable[[LiveEpisode], Conversation] = LiveEpisode.conversation
    patch.setattr(LiveEpisode, "conversation", lambda one: replace(plain(one), versions=[v - (one.num_turns > 1) for v in one.versions]))


def closed_twice(patch: pytest.MonkeyPatch) -> None:
    plain = Episodes.close_all
    patch.setattr(Episodes, "close_all", lambda self, found: (plain(self, found), plain(self, found[:1])))


def ended_twice(patch: pytest.MonkeyPatch) -> None:
    plain = LiveEpisode.go_on

    def go_on(one: LiveEpisode, step: Step, words: Words, **more: Any) -> None:
        plain(one, step, words, **more)
        one.ended = one.ended and one.num_turns != 2

    patch.setattr(LiveEpisode, "go_on", go_on)


FAULTS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    mask_shifted: "a mask is not that of what was sampled",
    tokens_lost: "episodes were played and are not there as they were",
    turns_exchanged: "a turn was not drawn after the tokens before it",
    episode_duplicated: "1 more episodes of some tokens than were played",
    version_before: "sampled tokens are of the weights [-1, 0]",
    closed_twice: "an environment was closed 2 times",
    ended_twice: "an episode went on after its end",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    fault(monkeypatch)
    found = played(tmp_path)
    assert any(FAULTS[fault] in problem for problem in found), found
