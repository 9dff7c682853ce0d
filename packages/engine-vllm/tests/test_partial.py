"""Rollouts with vLLM that leave answers unfinished, and turns that go on from what its prefix cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.partial_scenario import EPISODES, partial_folder, partial_problems, partial_run
from lightrft.testing.spmd import run_spmd
from lightrft.testing.turn_scenario import TURNS, cached_tokens, turn_folder
from lightrft_vllm.stepping import Stepping

TIMEOUT_S = 240.0


@pytest.mark.parametrize(
    ("world", "tp", "strategy"),
    [(1, 1, "single"), (2, 1, "fsdp"), (2, 2, "fsdp")],
    ids=["single", "2-ranks-tp1", "2-ranks-tp2"],
)
def test_answers_that_go_on_under_the_next_weights_are_accounted_for(tmp_path: Path, world: int, tp: int, strategy: str) -> None:
    settings = {"strategy": strategy, "engine_type": "vllm", "engine_tp_size": tp}
    run_spmd(partial_run, world, str(partial_folder(tmp_path)), settings, timeout_s=TIMEOUT_S)
    assert partial_problems(tmp_path, world=world) == []


@pytest.mark.slow
def test_episodes_that_go_on_under_the_next_weights_are_accounted_for(tmp_path: Path) -> None:
    settings = {"strategy": "fsdp", "engine_type": "vllm", "engine_tp_size": 2, **EPISODES}
    run_spmd(partial_run, 2, str(partial_folder(tmp_path)), settings, timeout_s=TIMEOUT_S)
    assert partial_problems(tmp_path, world=2) == []


def played(folder: str) -> Any:
    """For `run_spmd`."""
    found: list[int] = []
    plain = Stepping.step

    def step(self: Any) -> Any:
        core, own = self._llm.llm_engine, self._llm.llm_engine.step

        def observed() -> Any:
            answers = own()
            found.extend(answer.num_cached_tokens for answer in answers if answer.finished)
            return answers

        core.step = observed
        try:
            return plain(self)
        finally:
            del core.step

    Stepping.step = step  # type: ignore[method-assign]
    return cached_tokens(folder, {"engine_type": "vllm"}, found)


def test_a_later_turn_reads_what_the_prefix_cache_has_of_the_earlier_ones(tmp_path: Path) -> None:
    [(lengths, found, block)] = run_spmd(played, 1, str(turn_folder(tmp_path)), timeout_s=TIMEOUT_S)
    assert len(found) == len(lengths) == TURNS and lengths[0] > block
    # Of a turn before it the engine has computed all tokens but the last one, in whole blocks.
    assert found[1:] == [(length - 1) // block * block for length in lengths[1:]]
