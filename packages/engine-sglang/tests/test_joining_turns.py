"""Turns of episodes that join those that SGLang draws: greedy episodes are those of a run turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.spmd import run_spmd
from lightrft.testing.turn_scenario import joining_and_waiting, turn_folder

TIMEOUT_S = 280.0


def played(folder: str, settings: dict[str, Any]) -> Any:
    """For `run_spmd`. SGLang's steps are in processes of its own."""
    return joining_and_waiting(folder, settings, lambda engine: lambda: 0)


@pytest.mark.long
@pytest.mark.parametrize(("world", "tp", "strategy"), [(1, 1, "single"), (2, 2, "fsdp")], ids=["single", "2-ranks-tp2"])
def test_greedy_episodes_are_those_of_a_run_turn_by_turn(tmp_path: Path, world: int, tp: int, strategy: str) -> None:
    settings = {"strategy": strategy, "engine_type": "sglang", "engine_tp_size": tp}
    for rank in run_spmd(played, world, str(turn_folder(tmp_path)), settings, timeout_s=TIMEOUT_S):
        (joined, waited), *drawn = rank
        assert joined.columns == waited.columns and joined.earned == waited.earned
        assert joined.logprobs == pytest.approx(waited.logprobs, abs=2e-5)
        for pair in drawn:  # no seeds: other tokens, as many episodes
            assert pair[0].columns["group_ids"] == pair[1].columns["group_ids"]
