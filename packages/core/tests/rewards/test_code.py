"""A program passes only if it passes; none can hang, fill or leave its process. Off unless asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.plugins.registry import Registry
from lightrft.rewards.code import code_reward, program_of
from lightrft.types import Sample
from lightrft.utils.sandbox import passes

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


def test_blocks_without_an_end_are_looked_for_in_no_time() -> None:
    """Each once took a look at the whole rest: minutes, in which no thread of the rank could say that it lives."""
    began = time.monotonic()
    for text in ("```x\n" * 20_000, "```" + " " * 100_000, "```python\na\n```\n" + "```python\n" * 10_000):
        program_of(text)
    assert time.monotonic() - began < 2
    assert program_of("```python\na\n```\n" + "```python\n" * 100) == "a\n"
    assert program_of("  ```py x=1\na\n\n```b\n```  \n```c\nd\n```") == "a\n\n```b\n"


def test_what_runs_for_ever_or_takes_all_memory_ends() -> None:
    began = time.monotonic()
    assert not passes("while True: pass", TESTS, wall_s=2)
    assert not passes("import time; time.sleep(60)", TESTS, wall_s=1)
    assert not passes("x = bytearray(3 << 30)\n" + GOOD, TESTS, wall_s=20)
    assert not passes("open('big', 'wb').write(b'x' * (64 << 20))\n" + GOOD, TESTS, wall_s=20)
    assert not passes(GOOD, "while True: pass", wall_s=2)
    assert time.monotonic() - began < 40


def test_a_system_that_gives_no_sandbox_is_told_in_one_line() -> None:
    """As where user namespaces are off: `unshare` is refused by a filter of system calls, which children inherit."""
    found = subprocess.run([sys.executable, "-c", WITHOUT_NAMESPACES], capture_output=True, text=True, timeout=60)
    assert found.stderr == ""
    full, weak = found.stdout.splitlines()
    assert full.startswith(
        "programs of the model need what this system does not give: namespaces of its own (unshare) (Operation not permitted)"
    )
    assert "set --code_sandbox weak to go on without" in full
    assert weak in ("[1.0, 0.0]", *[line for line in [weak] if os.geteuid() == 0 and "a user other than root who may run" in line])


WITHOUT_NAMESPACES = f"""
import sys
from pathlib import Path
from lightrft.config.load import make_config
from lightrft.errors import RewardError
from lightrft.plugins.registry import Registry
from lightrft.utils import sandbox
from lightrft.rewards.load import rewards_of
from lightrft.types import Sample
sys.path.insert(0, str(Path(sandbox.__file__).parent))
import confine
confine.refuse_system_calls(signals=False)
samples = [Sample(prompt="p", completion=text, answer={TESTS!r}) for text in ({GOOD!r}, "def add(a, b): return 0")]
for chosen in ("full", "weak"):
    config = make_config(dict(reward=["code"], allow_code_execution=True, code_sandbox=chosen))
    try:
        [reward] = rewards_of(config, registry=Registry.discover())
        print(reward.function(samples))
    except RewardError as error:
        print(error)
"""


def test_it_is_off_unless_asked_and_not_on_without_it() -> None:
    [problem] = check_rewards(make_config({"reward": ["code"]}), registry=Registry.discover())
    assert "set --allow_code_execution" in problem
    assert list(check_rewards(make_config({"reward": ["code"], "allow_code_execution": True}), registry=Registry.discover())) == []
    for setting, words in (
        ({"allow_code_execution": True}, "what runs programs of the model (reward code, environment python)"),
        ({"code_sandbox": "weak"}, "what runs programs of the model"),
    ):
        [problem] = check_rewards(make_config({"reward": ["format"], **setting}), registry=Registry.discover())
        assert f"has no effect without {words}" in problem


def test_tests_are_needed() -> None:
    with pytest.raises(ValueError, match="sample 0 has no reference answer"):
        code_reward([Sample(prompt="p", completion=GOOD)])
