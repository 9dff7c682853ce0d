"""A block that takes too long ends its process, with words; any other goes on as if nothing watched it."""

import threading
import time

import pytest

from lightrft.distributed.watchdog import ends_after
from lightrft.errors import EngineError
from lightrft.testing.spmd import SpmdError, run_spmd


def watchers() -> int:
    return sum(thread.name == "lightrft-watchdog" for thread in threading.enumerate())


def test_a_block_in_time_goes_on_and_leaves_no_thread() -> None:
    with ends_after(1e300, error=EngineError("late"), where="here", rank=0):
        assert watchers() == 1
    assert watchers() == 0


def test_zero_is_no_limit_and_no_thread() -> None:
    with ends_after(0.0, error=EngineError("late"), where="here", rank=0):
        assert watchers() == 0


def test_an_error_in_the_block_passes() -> None:
    with pytest.raises(ZeroDivisionError), ends_after(600.0, error=EngineError("late"), where="here", rank=0):
        raise ZeroDivisionError
    assert watchers() == 0


def wait_for_ever() -> None:
    other = threading.Thread(target=threading.Event().wait, name="idle-helper", daemon=True)
    other.start()
    with ends_after(0.5, error=EngineError("it was late"), where="waiting", rank=4):
        time.sleep(1000)


def test_a_block_that_hangs_ends_the_process_with_all_stacks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpmdError, match="rank 0 ended with exit code 70 and no traceback"):
        run_spmd(wait_for_ever, 1, timeout_s=60)
    lines = capsys.readouterr().out.splitlines()
    assert "[rank 4] rank 4 failed in waiting:" in lines
    assert lines[-1] == "[rank 4] EngineError: it was late"
    heads = [line for line in lines if line.endswith(", most recent call last:")]
    assert heads[-1] == "[rank 4] MainThread, most recent call last:"
    assert "[rank 4] idle-helper, most recent call last:" in heads
    assert any("in wait_for_ever" in line for line in lines) and any("time.sleep(1000)" in line for line in lines)
