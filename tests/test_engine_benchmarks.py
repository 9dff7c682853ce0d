"""The engines' benchmarks measure what they print, and fail where they should."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words, "--json"])
    module.main()
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_matrix_holds_the_actor_in_a_cell_and_names_a_cell_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("engine_matrix", monkeypatch)
    good = run(module, capsys, monkeypatch, "--engines", "hf", "--strategies", "single")
    assert good["ok"] is True and [row["strategy"] for row in good["rows"]] == ["single"]  # type: ignore[attr-defined]
    bad = run(module, capsys, monkeypatch, "--engines", "nope", "--strategies", "single")
    [row] = bad["rows"]  # type: ignore[misc]
    assert bad["ok"] is row["ok"] is False and "nope" in row["failure"]


def test_the_matrix_has_every_combination_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = load("engine_matrix", monkeypatch).cells_of("hf", strategies=["single", "fsdp", "zero 3"], ranks=[1, 4], tps=[1, 2])
    assert [(c.strategy, c.ranks, c.tp) for c in cells] == [
        ("single", 1, 1), ("fsdp", 1, 1), ("zero 3", 1, 1), ("fsdp", 4, 1), ("zero 3", 4, 1), ("fsdp", 4, 2), ("zero 3", 4, 2),
    ]  # fmt: skip


def test_other_tokens_a_wide_gap_or_no_sync_are_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("engine_matrix", monkeypatch)
    good = dict(engine="hf", tp=1, strategy="single", ranks=1, wrong=0, gap=1e-6, syncs=1, seconds=1.0, failure="")
    assert module.Row(**good).ok
    for change in ({"wrong": 1}, {"gap": 1e-4}, {"gap": float("nan")}, {"syncs": 0}, {"failure": "x"}):
        assert not module.Row(**good | change).ok


def test_a_rollout_is_compared_with_the_engine_inside_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("rollout", monkeypatch)
    found = run(module, capsys, monkeypatch, "--ranks", "1", "--prompts", "6", "--tokens", "4", "--rounds", "1")
    [row] = found["rows"]  # type: ignore[misc]
    [once] = row["rounds"]
    assert once["ours_s"] >= once["inside_s"] > 0 and once["bare_s"] > 0
    assert module.summary([module.Round(1.005, 1.0, 1.0)])["ok"] and not module.summary([module.Round(1.02, 1.0, 1.0)])["ok"]


def test_a_sync_is_compared_with_a_copy_and_its_checks_with_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = load("sync", monkeypatch)
    folder = module.tiny_model_folder(tmp_path, **dict(module.MODEL, layers=1, hidden=64, heads=2, kv_heads=1))
    size = sum(p.numel() * 4 for p in module.load_causal_lm(str(folder), dtype=module.torch.float32).parameters())
    median = dict(rollout=5.0, update=4.0, plain=0.5, verified=0.55, probe=0.3, copy=0.1)
    found = module.summary(median, str(folder), every=10, checksums=True)
    assert found["bytes"] == size and found["copy_to_sync"] == pytest.approx(5.0)
    assert found["sync_bytes_per_s"] == pytest.approx(size / 0.5)
    assert found["step_s"] == pytest.approx(9.55)
    assert found["verify_fraction"] == pytest.approx((0.05 + 0.03) / 9.55)
    assert module.summary(median, str(folder), every=10, checksums=False)["verify_fraction"] == pytest.approx(0.03 / 9.55)
