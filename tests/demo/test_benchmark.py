"""The demo's benchmark reads a run's metrics right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks/demo_seeds.py"
    spec = importlib.util.spec_from_file_location("demo_seeds", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_step_that_reaches_the_reward(benchmark, tmp_path):
    rewards = {0: 0.3, 1: None, 10: 0.91, 20: 0.89, 30: 0.95}
    rows = [{"step": step} | ({} if reward is None else {"eval/reward": reward}) for step, reward in rewards.items()]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert benchmark.steps_to(0.9, metrics=path) == 10
    assert benchmark.steps_to(0.95, metrics=path) == 30
    assert benchmark.steps_to(0.96, metrics=path) is None


def test_the_table(benchmark, capsys):
    row = {
        "seed": 0,
        "accuracy_before": 0.34,
        "accuracy_after": 0.96,
        "steps_to_solved": 90,
        "seconds": 71.4,
        "peak_memory_gib": [0.5, 0.51],
    }
    benchmark.print_table([row, row | {"seed": 1, "steps_to_solved": None}])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["0", "0.340", "0.960", "90", "71", "0.50", "0.51"]
    assert lines[2][:4] == ["1", "0.340", "0.960", "-"]
