"""Episodes of several turns with any engine: what of each turn's context it had in its prefix cache, and turns that join those that run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.engine.base import InferenceEngine
from lightrft.experience.episodes import Episodes
from lightrft.models.scratch import char_tokenizer, scratch_model
from lightrft.plugins.specs import Capability
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import SamplingParams

TURNS, TURN = 4, 40
WORDS = "0123456789"


class Talks(Environment):
    """Goes on for ever."""

    def step(self, turn: Turn) -> Step:
        return Continue(text=str(turn.number) * 3)


def turn_folder(path: Path) -> Path:
    """A tiny model in `path`."""
    tokenizer = char_tokenizer([WORDS])
    scratch_model(tokenizer, layers=2, hidden=64, heads=2, kv_heads=2, seed=3).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def cached_tokens(folder: str, settings: dict[str, Any], found: list[int]) -> tuple[Sequence[int], list[int], int]:
    """One episode of `TURNS` turns: the tokens that the engine had computed of the context of each turn at its begin, but for what the
    environment said last; `found`, which the caller's engine has filled; and the engine's block of tokens.
    """
    config = make_config({
        "strategy": "single", "model_name_or_path": folder, "environment": f"{__name__}:Talks", "max_turns": TURNS, "turn_max_len": TURN,
        "prompt_max_len": 400, "generate_max_len": 400, **settings,
    })  # fmt: skip
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    found.clear()
    tokenizer = char_tokenizer([WORDS])
    prompt = tuple(tokenizer(WORDS * 30)["input_ids"])
    episodes = Episodes(strategy=strategy, config=config, tokenizer=tokenizer)
    rows = [Prompt(index=0, text="", token_ids=prompt, answer=None, row={})]
    sampling = SamplingParams(max_new_tokens=400, ignore_eos=True)
    [one] = episodes.play(rows, sampling, sleep_engine=False)
    engine = strategy.inference_engine
    assert engine is not None and one.num_turns == TURNS
    block = engine.cache_block
    strategy.shutdown()
    return [len(prompt) + number * (TURN + 3) - 3 * (number > 0) for number in range(TURNS)], list(found), block


UNEVEN = (6, 1, 2, 1, 3, 1)
"""Turns of the episodes of each row."""

COLUMNS = ("token_ids", "offsets", "loss_mask", "versions", "group_ids", "env_failed", "truncated")


class Uneven(Environment):
    """Ends after as many turns as the row says; one of seven tokens fails it. Takes a moment where the row says so."""

    def start(self, row: Mapping[str, Any]) -> None:
        self._row = row

    def step(self, turn: Turn) -> Step:
        time.sleep(self._row["seconds"] * (turn.token_ids[0] % 3))
        if turn.number + 1 >= self._row["turns"]:
            return End(reward=float(sum(turn.token_ids)))
        if self._row["turns"] == 3 and sum(turn.token_ids) % 7 == 0:
            raise KeyError("none of these")
        return Continue(text=str(turn.number) * (1 + turn.token_ids[0] % 4))


@dataclass(frozen=True)
class Rollout:
    """What a rank has of a rollout: columns by name, the engine's log-probs, what each episode earned, and the steps of the engine."""

    columns: dict[str, list[Any]]
    logprobs: list[float]
    earned: list[Any]
    steps: int


def joining_and_waiting(folder: str, settings: dict[str, Any], count: Callable[[Any], Callable[[], int]]) -> list[list[Rollout]]:
    """Rollouts, greedy and drawn, of environments that answer at once and slowly: each with turns that join those that run, and turn by
    turn through `generate`. `count(engine)` gives what tells the steps of the engine so far. For `run_spmd`.
    """
    config = make_config({
        "model_name_or_path": folder, "environment": f"{__name__}:Uneven", "max_turns": 6, "turn_max_len": TURN, "prompt_max_len": 40,
        "generate_max_len": 300, "n_samples_per_prompt": 3, **settings,
    })  # fmt: skip
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    engine: Any = strategy.inference_engine
    steps = count(engine)
    tokenizer, world = char_tokenizer([WORDS]), strategy.world
    found = []
    for temperature, seconds in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.02)):
        rows = [{"turns": turns, "seconds": seconds} for turns in UNEVEN]
        starts = [tuple(tokenizer(WORDS[at:])["input_ids"]) for at in range(len(rows))]
        prompts = [Prompt(index=at, text="", token_ids=starts[at], answer=None, row=row) for at, row in enumerate(rows)]
        pair = []
        for waits in (False, True):
            with turn_by_turn(strategy) if waits else nullcontext():
                episodes = Episodes(strategy=strategy, config=config, tokenizer=tokenizer)
                strategy.restore_engine(weight_version=0, calls=7)
                strategy.reset_engine_cache()
                before, mine = steps(), prompts[world.rank :: world.world_size]
                sampling = SamplingParams(n=3, max_new_tokens=300, temperature=temperature)
                played = episodes.play(mine, sampling, logprobs=len(mine), sleep_engine=False)
                batch = episodes.columns(played)
                assert batch.engine_logprobs is not None
                pair.append(
                    Rollout(
                        columns={name: getattr(batch, name).tolist() for name in COLUMNS},
                        logprobs=batch.engine_logprobs.tolist(),
                        earned=[(one.rewards, one.error) for one in played],
                        steps=steps() - before,
                    )
                )
        found.append(pair)
    strategy.shutdown()
    return found


@contextmanager
def turn_by_turn(strategy: StrategyBase) -> Iterator[None]:
    """The engine as one without `stepping`: every turn is a call of `generate`."""
    controller: Any = strategy._engine()
    engine, spec = controller.engine, controller.spec
    controller.spec = replace(spec, capabilities=spec.capabilities - {Capability.STEPPING})
    for name in ("start", "poll", "abort"):
        if engine is not None:
            setattr(engine, name, getattr(InferenceEngine, name).__get__(engine))
    yield
    controller.spec = spec
    for name in ("start", "poll", "abort"):
        if engine is not None:
            delattr(engine, name)
