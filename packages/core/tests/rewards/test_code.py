"""Does a program pass only if it passes, and can none hang, fill or leave its process? Off unless asked."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

import pytest

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.plugins.registry import Registry
from lightrft.rewards import sandbox
from lightrft.rewards.code import code_reward, program_of
from lightrft.rewards.sandbox import passes
from lightrft.types import Sample

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
GOOD = "def add(a, b):\n    return a + b\n"


def judge(*completions: str) -> list[float]:
    return code_reward([Sample(prompt="p", completion=text, answer=TESTS) for text in completions])


def test_a_program_passes_only_if_its_tests_run_to_their_end() -> None:
    fenced = f"First try:\n```python\ndef add(a, b): return 0\n```\nBetter:\n```python\n{GOOD}```\nDone."
    assert judge(GOOD, fenced) == [1.0, 1.0]
    assert judge("def add(a, b):\n    return a - b\n", "no program", "", "def add(:", "```python\n```") == [0.0] * 5
    left_early = ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "import os; os.kill(os.getpid(), 9)")
    assert judge(*left_early) == [0.0] * 4
    assert code_reward([]) == []


def test_the_last_block_of_python_is_the_program() -> None:
    assert program_of("```python\na\n```\n```\nb\n```\n```bash\nc\n```") == "b\n"
    assert program_of("just text") == "just text"


def test_what_runs_for_ever_or_takes_all_memory_ends() -> None:
    began = time.monotonic()
    assert not passes("while True: pass", "", wall_s=2)
    assert not passes("import time; time.sleep(60)", "", wall_s=1)
    assert not passes("x = bytearray(3 << 30)", "", wall_s=20)
    assert not passes("open('big', 'wb').write(b'x' * (64 << 20))", "", wall_s=20)
    assert time.monotonic() - began < 40


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    marker = f"lightrft-left-{os.getpid()}"
    program = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)', {marker!r}], start_new_session=True)\n"
        f"open({marker!r}, 'w').write('x')\n"
    )
    assert passes(program, "", wall_s=20)
    time.sleep(0.3)
    apart = not _without_namespaces()
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if marker.encode() in _bytes(p) and b"time.sleep" in _bytes(p)]
    assert not running or not apart, "a program that leaves its session is ended where it has a namespace of its own"
    for path in running:
        os.kill(int(path.parent.name), 9)
    assert not Path(marker).exists()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _without_namespaces() -> bool:
    return not passes("import os", "assert os.getpid() == 1")


def test_the_environment_and_the_network_are_away(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    assert passes("import os", "assert 'SECRET_TOKEN' not in os.environ and os.listdir('.') == []")
    monkeypatch.setattr(sandbox, "_told", False)
    connects = "import socket\nsocket.create_connection(('127.0.0.1', PORT), timeout=2)"
    with socket.create_server(("127.0.0.1", 0)) as server, caplog.at_level(logging.WARNING):
        reached = passes(connects.replace("PORT", str(server.getsockname()[1])), "")
    assert reached == any("can reach the network" in record.getMessage() for record in caplog.records)


def test_it_is_off_unless_asked_and_not_on_without_it() -> None:
    [problem] = check_rewards(make_config({"reward": ["code"]}), registry=Registry.discover())
    assert "set --allow_code_execution" in problem
    assert list(check_rewards(make_config({"reward": ["code"], "allow_code_execution": True}), registry=Registry.discover())) == []
    [problem] = check_rewards(make_config({"reward": ["format"], "allow_code_execution": True}), registry=Registry.discover())
    assert "has no effect without the reward code" in problem


def test_tests_are_needed() -> None:
    with pytest.raises(ValueError, match="sample 0 has no reference answer"):
        code_reward([Sample(prompt="p", completion=GOOD)])
