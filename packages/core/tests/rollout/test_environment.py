"""The contract of environments, and their calls: many at a time, each with a limit, and none of their failures is the run's."""

from __future__ import annotations

import asyncio
import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest

from lightrft.errors import PluginBrokenError
from lightrft.plugins import EnvironmentSpec, PluginEntry, Registry
from lightrft.plugins.registry import Provider
from lightrft.rollout.environment import Continue, End, Environment, SingleTurn, Turn, reward_parts
from lightrft.rollout.environment_calls import EnvironmentCalls

TURN = Turn(number=0, token_ids=(5,), text="a", raw_text="a<end>", finish_reason="stop", is_last=False)


def calls(timeout_s: float = 10.0, concurrency: int = 8) -> EnvironmentCalls:
    return EnvironmentCalls(timeout_s=timeout_s, concurrency=concurrency)


def test_a_single_turn_ends_after_it() -> None:
    environment = SingleTurn()
    assert environment.start({"prompt": "x"}) is None
    assert environment.step(TURN) == End()
    assert environment.close() is None


def test_the_default_is_a_plugin_like_any_other() -> None:
    assert Registry.discover().load("environment", "single_turn") is SingleTurn


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "exactly one of messages, text and token_ids, found none"),
        ({"text": "a", "token_ids": [1]}, "found text, token_ids"),
        ({"text": 7}, "text is 7, a int, not a str"),
        ({"messages": []}, "not a list of at least one message"),
        ({"messages": "hello"}, "not a list of at least one message"),
        ({"token_ids": [3, -1]}, "not a list of token ids"),
        ({"token_ids": [True]}, "not a list of token ids"),
        ({"text": "a", "reward": float("nan")}, "give one finite number, or named ones"),
    ],
)
def test_what_follows_a_turn_is_checked_where_it_is_made(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Continue(**given)


@pytest.mark.parametrize("reward", ["1", None, {"a": float("inf")}, {1: 1.0}])
def test_a_reward_is_a_finite_number_or_named_ones(reward: Any) -> None:
    with pytest.raises(ValueError, match="give one finite number, or named ones"):
        End(reward=reward)
    assert reward_parts(2) == {"reward": 2.0}
    assert reward_parts({"solved": True, "fast": 0.5}) == {"solved": 1.0, "fast": 0.5}


@pytest.mark.parametrize("target", ["Turn", "TURN", "Unfinished"])
def test_a_plugin_that_is_no_environment_is_named(target: str) -> None:
    spec = EnvironmentSpec(name="mine", target=f"{__name__}:{target}")
    registry = Registry([PluginEntry(provider=Provider(distribution="d", version="1", entry_point="e"), spec=spec)])
    with pytest.raises(PluginBrokenError, match=r"no subclass of lightrft.rollout.environment.Environment|does not define step"):
        registry.load("environment", "mine")


class Unfinished(Environment):
    pass


def test_outcomes_come_in_the_order_of_the_calls() -> None:
    async def later(value: int) -> int:
        await asyncio.sleep(0.01 * (3 - value % 3))
        return value

    runner = calls(concurrency=3)
    found = runner.run([(lambda v=v: later(v)) if v % 2 else (lambda v=v: v) for v in range(20)])
    assert [one.value for one in found] == list(range(20))
    assert not any(one.error for one in found)
    runner.close()
    assert runner.run([]) == []


def test_no_more_run_at_a_time_than_asked() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    calls(concurrency=3).run([work] * 15)
    assert most == 3


def test_a_call_that_raises_exits_or_hangs_is_an_outcome_of_its_own() -> None:
    released = threading.Event()

    async def never() -> None:
        await asyncio.sleep(60)

    def leaves() -> None:
        raise SystemExit(3)

    runner = calls(timeout_s=0.2, concurrency=1)
    began = time.monotonic()
    good, bad, exits, hangs, hangs_async = runner.run([lambda: 1, lambda: 1 / 0, leaves, lambda: released.wait(60), never])
    released.set()
    assert good.value == 1 and good.error is None
    assert isinstance(bad.error, ZeroDivisionError)
    assert isinstance(exits.error, SystemExit)
    assert str(hangs.error) == str(hangs_async.error) == "did not return within 0.2 s (environment_timeout_s)"
    assert time.monotonic() - began < 5
    runner.close()


def test_a_call_that_was_late_is_late_however_late_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy, whoever waits for the calls comes after their ends."""

    class Busy:
        def __init__(self) -> None:
            self.own: Any = SimpleQueue()
            self.put = self.own.put

        def get(self, timeout: float) -> Any:
            time.sleep(0.5)
            return self.own.get(timeout=timeout)

    monkeypatch.setattr("lightrft.rollout.environment_calls.queue.SimpleQueue", Busy)
    in_time, late = calls(timeout_s=0.2).run([lambda: 1, lambda: time.sleep(0.3)])
    assert in_time.value == 1 and isinstance(late.error, TimeoutError)


def test_async_calls_share_one_event_loop() -> None:
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    runner = calls()
    first, second = (runner.run([loop])[0].value for _ in range(2))
    assert first == second
    runner.close()
