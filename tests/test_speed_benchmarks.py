"""The speed benchmarks: what a result is compared with, and what the scale model says of messages and of work."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


ONE = {
    "rollout_s": 2.0, "rollout_fixed_s": 0.5, "reward_s": 0.1, "logprob_s": 0.0, "advantage_s": 0.0, "update_s": 1.6, "sync_s": 0.1,
    "rest_s": 0.01, "weight_bytes": 3e9, "micro_batches": 16.0,
}  # fmt: skip


def test_what_moved_by_more_than_a_tenth_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = load("results", monkeypatch)
    monkeypatch.setattr(results, "COMMITTED", tmp_path / "committed")
    file = results.keep("a", {"same": 1.0, "slower": 1.0, "gone": 2.0}, folder=tmp_path)
    assert "nothing to compare with" in capsys.readouterr().out
    results.COMMITTED.mkdir()
    (results.COMMITTED / "a.json").write_text(file.read_text())
    results.keep("a", {"same": 1.09, "slower": 1.2, "new": 3.0}, folder=tmp_path)
    told = [line.partition(" (since")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["slower: 1 -> 1.2", "new: 3, new", "gone: gone, was 2"]
    kept = json.loads(file.read_text())
    assert kept["numbers"]["slower"] == 1.2 and kept["versions"]["torch"] and kept["device"]


def test_one_rank_is_what_was_measured_and_work_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("scale_model", monkeypatch)
    network, predict = model.Network(), model.predict
    alone = predict(ONE, 1, network=network)
    assert alone["step"] == pytest.approx(2.0 + 0.1 + 1.6 + 0.1 + 0.01)
    eight = predict(ONE, 8, network=network)
    assert eight["rollout"] == pytest.approx(0.5 + 1.5 / 8), "what no batch shortens stays"
    assert eight["update"] == pytest.approx(1.6 / 8), "hidden behind the computation, inside a node"
    many = predict(ONE, 512, network=network)
    bytes_of_a_step = 2 * 3e9 + 2 * 3e9  # one micro-batch: gathered twice in bfloat16, gradients reduced once in float32
    assert many["update"] == pytest.approx(bytes_of_a_step * 511 / 512 / network.between + 2 * 511 * network.latency_s)
    assert predict(ONE, 8, network=network, weak=True)["update"] == pytest.approx(1.6)


def test_committed_results_name_machine_versions_and_date() -> None:
    for file in (BENCHMARKS / "results").glob("*.json"):
        held = json.loads(file.read_text(encoding="utf-8"))
        assert held["name"] == file.stem and held["device"] and held["date"] and held["versions"]["torch"], file
        assert all(isinstance(value, (int, float)) for value in held["numbers"].values()), file


def test_passes_are_counted_whole_and_profiled(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "passes.py"),
        "--ranks",
        "2",
        "--rounds",
        "1",
        "--profile",
        "--json",
        "--work",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == 16 * (16 + 32) and found["micro_batches"] == 2, "8 of 16 sequences on a rank, 5 of 48 tokens in 256"
    trunk, head = 2 * (64 * 32 * (2 * 2 + 2 * 1) + 3 * 64 * 96), 64 * 512  # weights of two layers and of the output layer
    arithmetic = 6 * (trunk * 16 * 48 + head * 16 * 32) / 2
    assert found["update_tflops"] * 1e12 * found["update_s"] == pytest.approx(arithmetic)
    assert "profiled:" in done.stdout and (tmp_path / "passes-tiny-2.json").is_file()
