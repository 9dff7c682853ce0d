"""`lightrft plan` against what whole runs on this CPU hold: two ranks of FSDP2 and of DeepSpeed, adapters, a critic."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def plan_peaks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("plan_peaks")
    sys.modules.pop("plan_peaks")


@pytest.mark.long
@pytest.mark.parametrize("cell", ["fsdp", "zero-2", "fsdp lora", "single critic"])
def test_a_run_peaks_where_the_plan_says(plan_peaks: Any, cell: str) -> None:
    found = plan_peaks.cell(cell)
    assert {"rollout", "update", "optimizer step", "sync"} <= {*found}
    assert abs(plan_peaks.error_of_peak(found)) <= 0.1, plan_peaks.line(cell, found)
    assert all(0.75 < plan / real < 1.25 for plan, real in found.values()), plan_peaks.line(cell, found)
