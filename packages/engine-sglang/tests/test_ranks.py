"""SGLang holds the actor after every sync, on real ranks, beside each backend and in groups of one and two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.engine_scenario import ScenarioResult, scenario
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_model_folder

TIMEOUT_S = 240.0
FSDP: dict[str, Any] = {"strategy": "fsdp"}
ZERO_2: dict[str, Any] = {"strategy": "deepspeed", "zero_stage": 2}
ZERO_3: dict[str, Any] = {"strategy": "deepspeed", "zero_stage": 3}


def run(folder: Path, world: int, **settings: Any) -> list[ScenarioResult]:
    tiny_model_folder(folder, tie=True, kv_heads=2)
    return run_spmd(scenario, world, str(folder), {"engine_type": "sglang"} | settings, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("world", "tp", "backend"),
    [
        pytest.param(1, 1, {"strategy": "single"}, id="single", marks=pytest.mark.long),  # the kit's own first rank, daily
        pytest.param(2, 1, ZERO_3, id="zero3-tp1"),
        pytest.param(2, 2, ZERO_2, id="zero2-tp2"),
        pytest.param(4, 2, FSDP, id="4-ranks-fsdp-tp2", marks=pytest.mark.long),  # as vLLM's tests do daily
    ],
)
def test_it_samples_from_the_actor_after_every_sync(tmp_path: Path, world: int, tp: int, backend: dict[str, Any]) -> None:
    found = run(tmp_path / "model", world, engine_tp_size=tp, **backend)
    assert [f.wrong for f in found] == [[]] * world
    assert max(f.logprob_error for f in found) < 1e-5
    assert [f.version for f in found] == [2] * world
    assert all(f.group_works_after for f in found)
