"""The command for machines with several GPUs: its parts for any number of ranks, what it says of a failed one, and all on CPU ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu_multi(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_multi

    return gpu_multi


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("cuda", [False, True])
def test_every_command_names_a_file_that_is_there(gpu_multi, tmp_path: Path, ranks: int, cuda: bool) -> None:  # type: ignore[no-untyped-def]
    for make in gpu_multi.PARTS.values():
        commands = list(make(ranks, cuda, tmp_path))
        assert commands
        for words in commands:
            assert any(Path(word).is_file() and word.endswith(".py") for word in words[1:]), words


def test_the_work_of_each_size(gpu_multi, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert [gpu_multi.sizes(n) for n in (1, 2, 4, 8)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]
    phases = [words for words in gpu_multi.scaling(4, False, tmp_path) if words[1].endswith("phases.py")]
    asked = [(int(words[words.index("--ranks") + 1]), int(words[words.index("--prompts") + 1])) for words in phases]
    assert asked == [(1, 8), (2, 8), (4, 8), (1, 8), (2, 16), (4, 32)]


def test_what_fails_and_what_hangs_is_told(gpu_multi, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def outcome(code: str, limit_s: float):  # type: ignore[no-untyped-def]
        return gpu_multi.run(gpu_multi.Step("lost", (sys.executable, "-c", code), limit_s), tmp_path / "log")

    failed = outcome("print('first'); raise SystemExit('the last line')", 30)
    assert (failed.rc, failed.last) == (1, "the last line")
    assert "FAILED (1): the last line" in gpu_multi.told(failed)
    hung = outcome("import time; time.sleep(100)", 1)
    assert hung.rc is None and hung.seconds < 60 and "OUT OF TIME" in gpu_multi.told(hung)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 4])
def test_all_parts_on_cpu_ranks(tmp_path: Path, ranks: int) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu_multi.py"),
        "--ranks",
        str(ranks),
        "--work",
        str(tmp_path),
        "--limit",
        "1800",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] and not found["cuda"] and {one["part"] for one in found["commands"]} == {
        "parity", "rows", "memory", "engine", "frozen", "guide", "scaling", "lost"
    }  # fmt: skip
