"""10,000 episodes of 1 to 8 turns with environments that fail at random: each is accounted for, and memory and threads stay as they are."""

from __future__ import annotations

import asyncio
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightrft.batch.stages import Sampled
from lightrft.rollout.environment import Continue, End, Environment, Turn
from lightrft.testing.small_trainer import make_trainer, prompts

ROLLOUTS, PROMPTS, SAMPLES = 10, 250, 4
LIMIT_S = 3.0
FATES = {"well": 80, "start": 3, "raise": 4, "exit": 2, "garbage": 4, "huge": 4, "slow": 1, "hang": 1, "close": 1}
"""How many of a hundred."""

TOLD = {
    "well": "",
    "close": "",
    "huge": "",
    "start": "KeyError",
    "raise": "ZeroDivisionError",
    "exit": "sys.exit",
    "garbage": "it returned",
}
"""Words of the error that a fate leaves; the others run into their time limit."""

lock, source = threading.Lock(), random.Random(5)
fates: Counter[str] = Counter()
turns: Counter[int] = Counter()
closed: Counter[str] = Counter()


class Unreliable(Environment):
    """Goes on for 1 to 8 turns; at the last of them it does what its fate is."""

    def start(self, row: Mapping[str, Any]) -> None:
        with lock:
            self.fate = source.choices(list(FATES), list(FATES.values()))[0]
            self.last = source.randrange(8)
            fates[self.fate] += 1
            turns[0 if self.fate == "start" else self.last + 1] += 1
        if self.fate == "start":
            raise KeyError("nothing to start from")

    def step(self, turn: Turn) -> Any:
        if turn.number < self.last:
            return Continue(text="+ " * (turn.number + 1), reward=0.5)
        match self.fate:
            case "raise":
                raise ZeroDivisionError("by zero")
            case "exit":
                raise SystemExit(3)
            case "garbage":
                return {"neither": "one nor the other"}
            case "huge":
                return Continue(text="7" * 20_000)
            case "slow":
                time.sleep(1.5 * LIMIT_S)
            case "hang":
                return asyncio.sleep(3600)
        return End(reward=1.0, info={"last": self.last})

    def close(self) -> None:
        with lock:
            closed[self.fate] += 1
        if self.fate == "close":
            raise OSError("still open")


def outcomes(batch: Sampled) -> Counter[str]:
    """How episodes ended, by the words of their errors."""
    found: Counter[str] = Counter()
    for sample in batch.samples:
        assert sample.episode is not None
        if not sample.episode.error:
            found["cut off" if sample.finish_reason == "length" else "ended"] += 1
            continue
        assert sample.finish_reason == "env_error"
        found[next((words for words in TOLD.values() if words and words in sample.episode.error), sample.episode.error)] += 1
    return found


@pytest.mark.long
def test_ten_thousand_episodes_are_accounted_for(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, environment=f"{__name__}:Unreliable", max_turns=9, turn_max_len=3, generate_max_len=160, n_samples_per_prompt=SAMPLES,
        ignore_eos=True, environment_timeout_s=LIMIT_S, environment_concurrency=64,
    )  # fmt: skip
    rows, found, peaks, played = prompts(PROMPTS), Counter[str](), list[int](), 0
    for _ in range(ROLLOUTS):
        batch = trainer.experience_maker.generate(rows)
        assert len(batch) == PROMPTS * SAMPLES and batch.num_sampled.sum() == batch.loss_mask.sum()
        found += outcomes(batch)
        played += sum((len(sample.episode.turns) + 1) // 2 for sample in batch.samples if sample.episode is not None)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    late = f"step: TimeoutError: did not return within {LIMIT_S:g} s (environment_timeout_s)"
    expected = {words: fates[fate] for fate, words in TOLD.items() if words}
    expected |= {late: fates["slow"] + fates["hang"], "cut off": fates["huge"], "ended": fates["well"] + fates["close"]}
    assert sum(fates.values()) == ROLLOUTS * PROMPTS * SAMPLES == 10_000
    assert found == expected and closed == fates
    # One whose start failed has a turn all the same, for those of a prompt are drawn together.
    assert played == sum(number * count for number, count in turns.items()) + fates["start"]
    assert peaks[-1] - peaks[2] < 40 * 1024, f"peak memory after each rollout, KiB: {peaks}"
    time.sleep(2 * LIMIT_S)
    left = [thread.name for thread in threading.enumerate() if thread.name == "lightrft-environment"]
    assert not left, f"{len(left)} threads of environments are left"
