"""An episode of several turns with any engine: how many tokens of each turn's context the engine had in its prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.episodes import Episodes
from lightrft.models.scratch import char_tokenizer, scratch_model
from lightrft.rollout.environment import Continue, Environment, Step, Turn
from lightrft.strategy import get_strategy
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
