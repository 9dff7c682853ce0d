"""Episodes of several turns: each goes on as soon as its environment has answered, until all have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from lightrft.batch.collect import conversations_of
from lightrft.batch.stages import Sampled
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import gather_objects
from lightrft.errors import EpisodeError
from lightrft.experience.environments import load_environment, turn_writer
from lightrft.experience.live_episode import LiveEpisode, Words
from lightrft.experience.talking_episodes import TalkingEpisodes
from lightrft.observe.metrics import StepMetrics
from lightrft.rollout.environment import Continue, Step, Turn
from lightrft.rollout.environment_calls import EnvironmentCalls, Outcome
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample, SamplingParams
from lightrft.utils.permission import code_execution


class Episodes:
    """Plays the environment of the settings. Of its methods `sampled`, `play` and `look_at_failures` are collective, whatever the number of
    episodes and turns of a rank.

    Raises:
        EpisodeError, PluginError, DataError: no such environment, or a chat template that does not go with it (`turn_writer`).
    """

    def __init__(self, *, strategy: StrategyBase, config: Config, tokenizer: Any) -> None:
        self._strategy, self._config, self._tokenizer = strategy, config, tokenizer
        self._make = load_environment(config.environment, registry=strategy.registry)
        self._writer = turn_writer(config, tokenizer, registry=strategy.registry)
        self._calls = EnvironmentCalls(timeout_s=config.environment_timeout_s, concurrency=config.environment_concurrency)
        self.first_error = ""
        """The first of the run, over all ranks; empty where no environment failed."""
        self.first_close_error = ""
        """The same of `close`."""

    def sampled(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, *, logprobs: int, sleep_engine: bool, metrics: StepMetrics
    ) -> Sampled:
        """A rollout: `sampling.n` episodes of each prompt. The engine's log-probs are asked for the first `logprobs` prompts."""
        played = self.play(prompts, sampling, logprobs=logprobs, sleep_engine=sleep_engine)
        self.count(played, metrics)
        return self.columns(played)

    def count(self, played: Sequence[LiveEpisode], metrics: StepMetrics) -> None:
        """What there is to tell of episodes that have ended. Local."""
        after, own = (sum(len(one.token_ids) for one in played), sum(sum(one.sampled) for one in played))
        metrics.mean("episode/turns", float(sum(one.num_turns for one in played)), float(len(played)))
        metrics.mean("episode/env_tokens", float(after - own), float(after))
        metrics.mean("episode/contexts", float(sum(1 + len(one.begins) for one in played)), float(len(played)))
        metrics.mean("episode/no_room", float(sum(one.no_room for one in played)), float(len(played)))
        metrics.mean("episode/env_error", float(sum(bool(one.error) for one in played)), float(len(played)))
        metrics.mean("episode/close_error", float(sum(bool(one.close_error) for one in played)), float(len(played)))

    def columns(self, played: Sequence[LiveEpisode]) -> Sampled:
        """Episodes that have ended, in order. Local."""
        conversations = [one.conversation() for one in played]
        return conversations_of(conversations, group_ids=[one.group for one in played], samples=self.samples(played))

    def samples(self, played: Sequence[LiveEpisode]) -> list[Sample]:
        """What reward functions see of episodes. Local."""
        return [one.sample(decode=self._decode) for one in played]

    def play(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, logprobs: int = 0, sleep_engine: bool) -> list[LiveEpisode]:
        """`sampling.n` episodes of each prompt, prompt by prompt, to their ends; `sampling.max_new_tokens` bounds a whole episode.

        Raises:
            EpisodeError: every episode failed in its environment, on all ranks.
        """
        played = [new_episode(prompt, asks_logprobs=index < logprobs) for index, prompt in enumerate(prompts) for _ in range(sampling.n)]
        try:
            self.start(played)
            agree_on_prompts(played, number=sampling.n)
            self._take_turns(played, sampling)
        finally:
            self.close_all(played)
        if sleep_engine:
            self._strategy.maybe_sleep_inference_engine()
        self.look_at_failures(played)
        return played

    def start(self, played: Sequence[LiveEpisode]) -> None:
        """Makes the environment of each, and asks it what the policy reads first. Local."""

        def begin(one: LiveEpisode) -> Callable[[], Any]:
            def call() -> Any:
                one.environment = self._make()
                return one.environment.start(one.prompt.own_row())

            return call

        for one, outcome in zip(played, self._run([begin(one) for one in played]), strict=True):
            if outcome.error is not None:  # of any kind: what is raised in its thread is its own
                one.fail("start", outcome.error)
                continue
            try:
                if outcome.value is not None:
                    one.prompt_ids, one.messages = self._prompt(outcome.value)
            except (Exception, SystemExit) as error:
                one.fail("start", error)

    def answer(self, going: Sequence[LiveEpisode], *, limit: int, turn: int) -> None:
        """Asks the environments of these episodes what follows their last turn. `limit`: tokens of an episode, `turn`: of a turn. Local."""
        steps = [self.step(one) for one in going]
        for one, (said, _), outcome in zip(going, steps, self._run([call for _, call in steps]), strict=True):
            self.take(one, said, outcome, limit=limit, turn=turn)

    def step(self, one: LiveEpisode) -> tuple[Turn, Callable[[], Any]]:
        """The last turn as the environment is told it, and the call that tells it. Local."""
        said = one.last_turn(decode=self._decode, read_calls=self._writer.calls, max_turns=self._config.max_turns)
        environment = one.environment
        assert environment is not None
        return said, lambda: environment.step(said)

    def take(self, one: LiveEpisode, said: Turn, outcome: Outcome, *, limit: int, turn: int) -> None:
        """What the environment answered; the limits are those of `answer`. Local."""
        if outcome.error is not None:
            one.fail("step", outcome.error)
            return
        try:
            words = self._words(one, outcome.value, said)
        except (Exception, SystemExit) as error:
            one.fail("step", error)
            return
        one.no_room = not said.is_last and isinstance(outcome.value, Continue) and one.length(words) + turn > limit
        one.go_on(outcome.value, words, stops=said.is_last or one.no_room, limit=limit)

    def close_all(self, played: Sequence[LiveEpisode]) -> None:
        """Every environment that was made is closed. One that fails there has said all that counts before: its episode stays as it is.
        Local.
        """
        made = [one for one in played if one.environment is not None]
        calls = [lambda one=one: one.environment.close() for one in made]
        for one, outcome in zip(made, self._run(calls), strict=True):
            if outcome.error is not None:
                one.fail_to_close(outcome.error)

    def look_at_failures(self, played: Sequence[LiveEpisode]) -> None:
        """Remembers the first errors of the run. Collective. Raises as `play`."""
        errors, unclosed = [one.error for one in played if one.error], [one.close_error for one in played if one.close_error]
        failed, total = self._sum(len(errors)), self._sum(len(played))
        if failed and not self.first_error:
            self.first_error = self._first(errors)
        if self._sum(len(unclosed)) and not self.first_close_error:
            self.first_close_error = self._first(unclosed)
        if failed and failed == total:
            raise EpisodeError(f"environment {self._config.environment!r} failed in all {total} episodes; the first: {self.first_error}")

    def turn_limit(self, limit: int) -> int:
        """Tokens that a turn may have, where an episode may have `limit`. Local."""
        return min(self._config.turn_max_len or max(limit // self._config.max_turns, 1), limit)

    def close(self) -> None:
        """Ends the event loop of `async` environments. Idempotent. Local."""
        self._calls.close()

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _prompt(self, start: Any) -> tuple[tuple[int, ...], Sequence[Mapping[str, Any]]]:
        """Its tokens, and the messages that they were written from, if any."""
        if not isinstance(start, Sequence) or isinstance(start, (str, bytes)) or not len(start):
            raise ValueError(f"it returned {start!r:.60}; give token ids, chat messages, or None for the prompt of the data")
        given = all(isinstance(one, int) and not isinstance(one, bool) for one in start)
        ids = tuple(start) if given else self._writer.prompt(start)
        if given and not 0 <= min(ids) <= max(ids) < len(self._tokenizer):
            strange = next(one for one in ids if not 0 <= one < len(self._tokenizer))
            raise ValueError(f"its prompt has the token {strange}, and the tokenizer has {len(self._tokenizer)}, from 0")
        if len(ids) > self._config.prompt_max_len:
            raise ValueError(f"its prompt has {len(ids)} tokens, more than prompt_max_len={self._config.prompt_max_len}")
        return ids, () if given else start

    def _take_turns(self, played: Sequence[LiveEpisode], sampling: SamplingParams) -> None:
        """The first turn is drawn as `n` completions of each prompt, which engines do at less cost than n prompts."""
        limit = sampling.max_new_tokens
        turn = self.turn_limit(limit)
        sampling = replace(sampling, max_new_tokens=turn, min_new_tokens=min(sampling.min_new_tokens, turn))
        firsts = played[:: sampling.n]
        with self._permission():  # the calls see it from here
            before = self._strategy.converse(
                sampling,
                [one.context for one in firsts],
                TalkingEpisodes(played, self, self._calls.begin(), limit=limit, turn=turn),
                logprobs=[one.asks_logprobs for one in firsts],
            )
        for at, one in enumerate(played):
            one.group = before + at // sampling.n

    def _words(self, one: LiveEpisode, step: Step, turn: Turn) -> Words:
        """What the environment says, as tokens; nothing at an end."""
        if not isinstance(step, Step):
            raise ValueError(f"it returned {step!r:.60}; give Continue(...) or End(...)")
        if not isinstance(step, Continue):
            return Words()
        one.exchanges.append((turn.token_ids, step.messages))
        if step.messages is not None:
            after = self._writer.after(one.token_ids, step.messages)
            return Words(token_ids=after, context=self._context(one) if self._writer.rewrites(step.messages) else ())
        if step.text is not None:
            return Words(token_ids=self._writer.words(step.text))
        ids = list(step.token_ids or ())
        if ids and max(ids) >= len(self._tokenizer):
            raise ValueError(f"it returned token {max(ids)}, and the tokenizer has {len(self._tokenizer)}")
        return Words(token_ids=ids)

    def _context(self, one: LiveEpisode) -> tuple[int, ...]:
        """The conversation as the template writes it anew."""
        told = [(sampled, messages) for sampled, messages in one.exchanges if messages is not None]
        if not one.messages or len(told) < len(one.exchanges):
            raise ValueError(
                "the chat template writes earlier turns anew, which takes messages; the episode has token ids or text among them"
            )
        return self._writer.again(one.messages, told)

    def _run(self, calls: Sequence[Callable[[], Any]]) -> list[Outcome]:
        """The outcomes of calls of environments, which may run programs of the model where the settings allow it."""
        with self._permission():
            return self._calls.run(calls)

    def _permission(self) -> AbstractContextManager[None]:
        return code_execution(self._config.allow_code_execution, weak=self._config.code_sandbox == "weak")

    def _first(self, errors: Sequence[str]) -> str:
        """The first of all ranks, of which one has some. Collective."""
        told = gather_objects(next(iter(errors), ""), group=self._strategy.world.group)
        return str(next(error for error in told if error))

    def _sum(self, number: int) -> int:
        return int(self._strategy.all_reduce(number, "sum"))

    def _decode(self, ids: Sequence[int], special: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))


def chosen_episodes(config: Config, *, strategy: StrategyBase, tokenizer: Any) -> Episodes | None:
    """Episodes with the environment of the settings; None without one. Raises as `Episodes`."""
    return Episodes(strategy=strategy, config=config, tokenizer=tokenizer) if config.environment else None


def new_episode(prompt: Prompt, *, asks_logprobs: bool = False) -> LiveEpisode:
    """One of this data row, before its start."""
    return LiveEpisode(prompt=prompt, prompt_ids=prompt.token_ids, messages=prompt.messages, asks_logprobs=asks_logprobs)


def agree_on_prompts(played: Sequence[LiveEpisode], *, number: int) -> None:
    """One prompt for all episodes of a data row, `number` after `number` of them: one that began otherwise than the first fails."""
    for group in (played[at : at + number] for at in range(0, len(played), number)):
        begun = [one.prompt_ids for one in group if not one.error]
        common = begun[0] if begun else group[0].prompt.token_ids
        for one in group:
            if not one.error and one.prompt_ids != common:
                problem = "its prompt is another one than that of the row's other episodes, which are compared with each other"
                one.fail("start", ValueError(problem))
            one.prompt_ids = common
