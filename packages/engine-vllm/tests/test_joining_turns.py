"""Turns of episodes that join those that vLLM draws: the episodes are those of a run turn by turn, in fewer steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.counted import count_calls
from lightrft.testing.spmd import run_spmd
from lightrft.testing.turn_scenario import joining_and_waiting, turn_folder

TIMEOUT_S = 240.0


def steps_of(engine: Any) -> Callable[[], int]:
    """Counts forward passes of vLLM."""
    return count_calls(engine._llm.llm_engine.engine_core, "get_output")


def played(folder: str, settings: dict[str, Any]) -> Any:
    """For `run_spmd`."""
    return joining_and_waiting(folder, settings, steps_of)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "tp", "strategy"), [(1, 1, "single"), (2, 2, "fsdp")], ids=["single", "2-ranks-tp2"])
def test_episodes_are_those_of_a_run_turn_by_turn(tmp_path: Path, world: int, tp: int, strategy: str) -> None:
    settings = {"strategy": strategy, "engine_type": "vllm", "engine_tp_size": tp}
    ranks = run_spmd(played, world, str(turn_folder(tmp_path)), settings, timeout_s=TIMEOUT_S)
    for rank in ranks:
        assert len(rank) == 3
        for joined, waited in rank:
            assert joined.columns == waited.columns and joined.earned == waited.earned
            assert joined.logprobs == pytest.approx(waited.logprobs, abs=2e-6)
    joined, waited = ranks[0][1]  # turns of unequal lengths, which are answered at once
    print("steps", [(j.steps, w.steps) for j, w in ranks[0]])
    assert joined.steps < 0.85 * waited.steps, (joined.steps, waited.steps)
