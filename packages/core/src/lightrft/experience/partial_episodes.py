"""Episodes that do not wait for the longest one: turn by turn, a slice at a time, and what is unfinished goes on in the next step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightrft.batch.stages import Sampled
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.experience.episodes import Episodes, agree_on_prompts, new_episode
from lightrft.experience.live_episode import LiveEpisode
from lightrft.experience.partial import PartialAnswers, PartialRollouts
from lightrft.experience.unfinished import Group
from lightrft.observe.metrics import StepMetrics
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Completion


class PartialEpisodes(PartialRollouts[LiveEpisode]):
    """Of episodes, `n_samples_per_prompt` of each data row. A turn takes as many slices as it needs; where one is whole, its environment
    answers before the next slice.

    Environments of unfinished episodes live on between steps. A checkpoint holds what was said, not the environments: a resumed run plays
    them again with the turns that were drawn. One that answers otherwise then ends its episode (`env_error`).
    """

    def __init__(self, episodes: Episodes, *, strategy: StrategyBase, config: Config, tokenizer: Any, prompts: Sequence[Prompt]) -> None:
        super().__init__(strategy=strategy, config=config, tokenizer=tokenizer, prompts=prompts)
        self._episodes = episodes
        self._limit = config.generate_max_len
        self._turn = episodes.turn_limit(self._limit)
        self._slice = replace(self._slice, max_new_tokens=min(self._slice.max_new_tokens, self._turn))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, with environments that are played again."""
        self.close()
        super().load_state_dict(state)
        self._play_again([one for group in self._groups for one in group.answers if not one.ended])

    def close(self) -> None:
        """Closes the environments of unfinished episodes."""
        unfinished = [one for group in self._groups for one in group.answers if not one.done]
        self._episodes.close_all(unfinished)
        for one in unfinished:
            one.environment = None

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _new(self, prompts: Sequence[Prompt]) -> list[list[LiveEpisode]]:
        number = self.config.n_samples_per_prompt
        begun = [new_episode(prompt, asks_logprobs=True) for prompt in prompts for _ in range(number)]
        self._episodes.start(begun)
        agree_on_prompts(begun, number=number)
        _fail_what_cannot_be_kept(begun, "start")
        return [begun[at : at + number] for at in range(0, len(begun), number)]

    def _context(self, prompt: Prompt, one: LiveEpisode) -> Sequence[int]:
        return one.context

    def _add(self, grown: Sequence[LiveEpisode], drawn: Sequence[Completion]) -> None:
        for one, completion in zip(grown, drawn, strict=True):
            one.turn.add(completion, asked=self._slice.max_new_tokens, limit=self._turn)
        spoken = [one for one in grown if one.turn.done]
        for one in spoken:
            one.end_turn()
        self._episodes.answer([one for one in spoken if not one.ended], limit=self._limit, turn=self._turn)
        _fail_what_cannot_be_kept(spoken, "step")
        self._episodes.close_all([one for one in spoken if one.ended])

    def _look_at(self, taken: Sequence[Group[LiveEpisode]], metrics: StepMetrics) -> None:
        played = [one for group in taken for one in group.answers]
        self._episodes.count(played, metrics)
        self._episodes.look_at_failures(played)

    def _columns(self, groups: Sequence[Group[LiveEpisode]]) -> Sampled:
        for group in groups:
            for one in group.answers:
                one.group = group.serial
        return self._episodes.columns([one for group in groups for one in group.answers])

    def _state(self, answers: Sequence[LiveEpisode]) -> dict[str, Any]:
        return {"episodes": [one.state() for one in answers]}

    def _of_state(self, state: Mapping[str, Any], prompt: Prompt) -> list[LiveEpisode]:
        return [LiveEpisode.of(one, prompt=prompt) for one in state["episodes"]]

    def _play_again(self, kept: Sequence[LiveEpisode]) -> None:
        """New environments for these episodes, each told the turns that were drawn, in their order."""
        again = [new_episode(one.prompt) for one in kept]
        self._episodes.start(again)
        for number in range(max((one.num_turns for one in kept), default=0)):
            going = [(one, new) for one, new in zip(kept, again, strict=True) if number < one.num_turns and not new.ended]
            for one, new in going:
                new.add_turn(one.turn_at(number))
            self._episodes.answer([new for _, new in going], limit=self._limit, turn=self._turn)
        for one, new in zip(kept, again, strict=True):
            one.environment = new.environment
            if new.told != one.told:
                problem = f"played again after a resume it did otherwise than before{f': {new.error}' if new.error else ''}"
                one.fail("resume", ValueError(f"{problem}; what it does has to follow from its row and the turns"))


def chosen_partial(
    config: Config, *, strategy: StrategyBase, tokenizer: Any, prompts: Sequence[Prompt], episodes: Episodes | None
) -> PartialRollouts[Any] | None:
    """As the settings say; None where every step waits for its answers. Raises as `PartialRollouts`."""
    if not config.max_version_lag:
        return None
    if episodes is not None:
        return PartialEpisodes(episodes, strategy=strategy, config=config, tokenizer=tokenizer, prompts=prompts)
    return PartialAnswers(strategy=strategy, config=config, tokenizer=tokenizer, prompts=prompts)


def _fail_what_cannot_be_kept(episodes: Sequence[LiveEpisode], method: str) -> None:
    """A checkpoint keeps plain values alone: an environment that gives others fails."""
    for one in episodes:
        if not one.error and (found := _not_plain([one.info, one.messages, [messages for _, messages in one.exchanges]])):
            problem = f"it gave a {found}, which a checkpoint does not keep; give str, numbers, bool, None, and lists and dicts of them"
            one.fail(method, ValueError(problem))


def _not_plain(value: Any) -> str:
    """The name of the first type that is none of those."""
    if type(value) in (str, int, float, bool, type(None)):
        return ""
    if type(value) is dict:
        return next((found for pair in value.items() for one in pair if (found := _not_plain(one))), "")
    if type(value) in (list, tuple):
        return next((found for one in value if (found := _not_plain(one))), "")
    return type(value).__name__
