"""The tool `python`: what the model is told of its programs, what they cannot reach or take, and when they may not run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.errors import CodePermissionError
from lightrft.experience.environments import check_environment
from lightrft.plugins import Registry
from lightrft.rollout.environment import Continue, End, ToolCall, Turn
from lightrft.rollout.environment_calls import EnvironmentCalls
from lightrft.rollout.python_tool import PythonTool
from lightrft.utils.permission import code_execution
from lightrft.utils.sandbox import lacking, run_program

whole = pytest.mark.skipif(bool(lacking()), reason=f"this system gives no whole sandbox: {lacking()}")


class Short(PythonTool):
    time_limit_s = 1.5


class Brief(PythonTool):
    time_limit_s = 30.0
    max_result_chars = 400


def said(*programs: str) -> Turn:
    calls = tuple(ToolCall(name="python", arguments={"code": program}) for program in programs)
    return Turn(number=0, token_ids=(1,), text="", raw_text="", finish_reason="stop", is_last=False, calls=calls)


def told(environment: PythonTool, *programs: str) -> list[str]:
    step = environment.step(said(*programs))
    assert isinstance(step, Continue) and step.messages is not None
    return [message["content"] for message in step.messages]


def counts(environment: PythonTool) -> dict[str, int]:
    end = environment.step(said())
    assert isinstance(end, End)
    return {name: number for name, number in end.info.items() if number}


@whole
def test_output_and_errors_are_told() -> None:
    made = PythonTool()
    assert told(made, "print(6 * 7)", "x = 1", "import sys\nprint('a', end='')\nsys.stderr.write('b')\nsys.exit(3)") == [
        "42",
        "(no output)",
        "ab\nerror: exit code 3",
    ]
    [ended] = told(made, "import os, sys\nprint('a', end='')\nprint('b', file=sys.stderr)\nprint('c', end='')\nos._exit(2)")
    assert ended == "ab\nc\nerror: exit code 2", "what was written is told in its order, also before an end by force"
    [raised] = told(made, "def f():\n    print(input())\nf()\n")
    assert raised.startswith('Traceback (most recent call last):\n  File "program.py", line 3, in <module>\n    f()\n')
    assert raised.endswith("EOFError: EOF when reading a line\nerror: exit code 1")
    [unread] = told(made, "x = (")
    assert unread.endswith("SyntaxError: '(' was never closed\nerror: exit code 1")
    assert counts(made) == {"tool_calls": 6, "failed_programs": 4}


@whole
def test_nothing_is_kept_between_calls() -> None:
    made = PythonTool()
    assert told(made, "x = 1\nopen('f', 'w').write('x')", "import os\nprint('x' in globals(), os.listdir())") == ["(no output)", "False []"]


@whole
def test_a_program_without_an_end_takes_the_time_of_its_turn_alone() -> None:
    made, begun = Short(), time.monotonic()
    assert told(made, "while True: pass", "print(1)") == [
        "error: stopped, the 1.5 s of this turn are over",
        "error: not run, the 1.5 s of this turn are over",
    ]
    assert told(made, "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)") == ["error: stopped, the 1.5 s of this turn are over"]
    assert time.monotonic() - begun < 20
    assert counts(made) == {"tool_calls": 3, "stopped_programs": 3}


@whole
def test_a_huge_output_is_ended_and_cut_in_its_middle() -> None:
    begun = time.monotonic()
    [text] = told(Brief(), "print('first')\nwhile True: print('x' * 1000)")
    assert text.startswith("first\nxxx") and text.endswith("x\nerror: stopped, it wrote too much")
    assert len(text) <= 400 and "characters left out) ..." in text
    assert time.monotonic() - begun < 30, "ended by its output, not by the time"
    output = run_program("print('0123456789' * 30)\n1 / 0", time_limit_s=30, max_chars=150)
    assert len(output.text) == 150
    assert output.text.startswith("0123")
    assert output.text.endswith("ZeroDivisionError: division by zero\n")


@whole
@pytest.mark.parametrize("code", [97, 98])
def test_no_exit_code_is_taken_for_the_system_s(code: int) -> None:
    [text] = told(PythonTool(), f"import os\nos._exit({code})")
    assert text == ("error: exit code 97" if code == 97 else "error: stopped, by a signal or for its memory or processor time")


@whole
def test_the_run_s_files_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    path = str(tmp_path / "metrics.jsonl")
    reads, writes, memory = told(
        PythonTool(), f"print(open({path!r}).read())", f"open({path!r}, 'w').write('gone')", "x = bytearray(3 << 30)"
    )
    assert "FileNotFoundError" in reads and "precious" not in reads and "FileNotFoundError" in writes and "MemoryError" in memory
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


@whole
def test_the_threads_of_calls_see_the_permission() -> None:
    calls = EnvironmentCalls(timeout_s=10.0, concurrency=2)

    async def later() -> Continue | End:
        return PythonTool().step(said("print(2)"))  # type: ignore[return-value]

    with code_execution(False):
        refused = calls.run([lambda: PythonTool().step(said("print(1)")), later])
    with code_execution(True):
        allowed = calls.run([lambda: PythonTool().step(said("print(1)")), later])
    calls.close()
    assert [type(one.error) for one in refused] == [CodePermissionError] * 2
    assert [one.value.messages[0]["content"] for one in allowed] == ["1", "2"]


def test_it_is_refused_at_start_without_permission() -> None:
    registry = Registry.discover()
    [problem] = check_rewards(make_config({"environment": "python"}), registry=registry)
    assert problem.startswith("environment='python' runs programs that the model wrote; set --allow_code_execution")
    assert list(check_rewards(make_config({"environment": "python", "allow_code_execution": True}), registry=registry)) == []
    with pytest.raises(CodePermissionError, match=r"environment='.*:Short' runs programs that the model wrote; set --allow_code_execution"):
        check_environment(make_config({"environment": f"{__name__}:Short"}), registry=registry)
    with pytest.raises(CodePermissionError, match="allow_code_execution is off"), code_execution(False):
        PythonTool().step(said("print(1)"))
