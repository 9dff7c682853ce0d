"""Rollouts with SGLang that leave answers unfinished, and turns that go on from what its prefix cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.partial_scenario import partial_folder, partial_problems, partial_run
from lightrft.testing.spmd import run_spmd
from lightrft.testing.turn_scenario import TURNS, cached_tokens, turn_folder
from lightrft_sglang.engine import SGLangEngine

TIMEOUT_S = 240.0


@pytest.mark.parametrize(
    ("world", "tp", "strategy"),
    [
        pytest.param(1, 1, "single", id="single", marks=pytest.mark.long),
        pytest.param(2, 1, "fsdp", id="2-ranks-tp1", marks=pytest.mark.long),
        pytest.param(2, 2, "fsdp", id="2-ranks-tp2"),
    ],
)
def test_answers_that_go_on_under_the_next_weights_are_accounted_for(tmp_path: Path, world: int, tp: int, strategy: str) -> None:
    settings = {"strategy": strategy, "engine_type": "sglang", "engine_tp_size": tp}
    run_spmd(partial_run, world, str(partial_folder(tmp_path)), settings, timeout_s=TIMEOUT_S)
    assert partial_problems(tmp_path, world=world) == []


def played(folder: str) -> Any:
    """For `run_spmd`."""
    found: list[int] = []
    plain = SGLangEngine._completion

    def completion(self: Any, request: Any, answer: Any, sampling: Any) -> Any:
        found.append(answer["meta_info"]["cached_tokens"])
        return plain(self, request, answer, sampling)

    SGLangEngine._completion = completion  # type: ignore[method-assign]
    return cached_tokens(folder, {"engine_type": "sglang"}, found)


def test_a_later_turn_reads_what_the_prefix_cache_has_of_the_earlier_ones(tmp_path: Path) -> None:
    [(lengths, found, page)] = run_spmd(played, 1, str(turn_folder(tmp_path)), timeout_s=TIMEOUT_S)
    assert len(found) == len(lengths) == TURNS
    # Of a turn before it the engine has computed all tokens but the last one, in whole pages.
    assert found[1:] == [(length - 1) // page * page for length in lengths[1:]]
