"""Whom the heartbeats of all ranks show to hold the others up, by hand-made heartbeats; and how long a phase may stand still."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from lightrft.config.hang_limits import WATCHED, HangLimits, hang_limit_problems, hang_limits
from lightrft.config.load import make_config
from lightrft.distributed.hang import Hang, judge
from lightrft.distributed.heartbeat import LEFT, Beat, Clock, Stamp, beat

WAITS = Beat(
    rank=0, number=9, phase="update", step=3, calls=7, collective="all_reduce", where="f (a.py:1)", stack=[], still_s=50, limit_s=30,
    host="h", process=1,
)  # fmt: skip


def told(*beats: Beat, silent: dict[int, float] | None = None, world_size: int = 0) -> Hang | None:
    known = {rank: replace(one, rank=rank) for rank, one in enumerate(beats)}
    return judge(known, silent or {}, world_size=world_size or len(beats))


def test_a_rank_outside_of_the_collective_is_the_one_that_others_wait_for() -> None:
    computes = replace(WAITS, collective="", calls=6, phase="reward", where="reward (mine.py:3)")
    hang = told(WAITS, computes, WAITS)
    assert hang is not None and hang.ranks == [1]
    assert hang.message == "rank 1 has not moved for 50 s (limit 30 s): phase reward of step 3, after 6 collectives, at reward (mine.py:3)"


def test_nobody_is_named_before_the_limit_of_the_rank_that_others_wait_for() -> None:
    generates = replace(WAITS, collective="", phase="rollout", still_s=1200, limit_s=1800)
    assert told(WAITS, generates) is None
    assert told(WAITS, replace(generates, still_s=1801)) == told(WAITS, replace(generates, still_s=1801))
    assert told(WAITS, replace(generates, limit_s=0)) is None, "0 is no limit"


def test_a_rank_without_a_heartbeat_is_named_whatever_it_was_in() -> None:
    hang = told(WAITS, replace(WAITS, still_s=1), silent={1: 61.0})
    assert hang is not None and hang.ranks == [1]
    assert "rank 1 (process 1 on h) has given no sign of life for 61 s in phase update of step 3" in hang.message
    assert "in collective all_reduce (number 7)" in hang.message


def test_ranks_in_different_collectives_are_all_named() -> None:
    hang = told(WAITS, replace(WAITS, collective="broadcast"))
    assert hang is not None and hang.ranks == [0, 1] and "rank 1: phase update of step 3, in collective broadcast" in hang.message


def test_a_rank_that_is_a_collective_behind_is_named() -> None:
    hang = told(WAITS, replace(WAITS, calls=6), WAITS)
    assert hang is not None and hang.ranks == [1]


def test_all_in_the_same_collective_point_at_the_network() -> None:
    hang = told(WAITS, WAITS)
    assert hang is not None and "is the network between them up?" in hang.message


def test_without_all_heartbeats_and_of_ranks_that_have_finished_nothing_is_said() -> None:
    assert told(WAITS, world_size=2) is None
    gone = replace(WAITS, number=LEFT, collective="", calls=0)
    assert told(replace(WAITS, still_s=1), gone, silent={1: 99.0}) is None
    hang = told(replace(WAITS, collective=""), gone)
    assert hang is not None and hang.ranks == [0]


def test_limits_follow_the_past_but_for_phases_that_generate() -> None:
    limits = HangLimits(default=1800, silence=60, chosen={"save": 7})
    assert limits.of("save", visits=9, longest=100) == 7
    assert limits.of("update", visits=2, longest=1) == 1800, "the first ones may be slow"
    assert limits.of("update", visits=3, longest=1) == 300
    assert limits.of("update", visits=3, longest=40) == 800
    assert limits.of("update", visits=3, longest=400) == 1800
    assert limits.of("rollout", visits=99, longest=1) == limits.of("evaluate", visits=99, longest=1) == 1800
    assert HangLimits(default=20, silence=60).of("update", visits=9, longest=400) == 20


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"phase_timeouts": ["rolout=3"]}, "no phase 'rolout'; did you mean 'rollout'?"),
        ({"phase_timeouts": ["rollout"]}, "'' is no number of seconds"),
        ({"phase_timeouts": ["rollout=-1"]}, "'-1' is no number of seconds"),
        ({"phase_timeouts": ["rollout=nan"]}, "'nan' is no number"),
        ({"phase_timeouts": ["rollout=3"], "hang_timeout_s": 0}, "has no effect with hang_timeout_s=0"),
    ],
)
def test_wrong_limits_are_told(given: dict[str, object], words: str) -> None:
    [problem] = hang_limit_problems(make_config(given))
    assert words in problem


def test_limits_of_the_settings() -> None:
    config = make_config({"phase_timeouts": ["reward=60", "save=0.5"]})
    assert not list(hang_limit_problems(config))
    assert hang_limits(config).chosen == {"reward": 60.0, "save": 0.5} and {*hang_limits(config).chosen} <= {*WATCHED}
    assert hang_limits(config).largest == 1800


def test_a_heartbeat_says_where_the_main_thread_is() -> None:
    stamp, clock, found = Stamp(), Clock(), []
    stamp.step = 4

    def watch() -> None:
        clock.still_s(stamp)
        time.sleep(0.2)
        still = clock.still_s(stamp)
        found.append(beat(stamp, rank=2, number=1, still_s=still, limit_s=9))

    with stamp.entering("reward"):
        watcher = threading.Thread(target=watch)
        watcher.start()
        watcher.join()
    [one] = found
    assert (one.rank, one.phase, one.step, one.collective) == (2, "reward", 4, "")
    assert 0.2 <= one.still_s < 2 and any("test_a_heartbeat_says" in line for line in one.stack)
    assert Beat.of_json(one.as_json()) == one
    assert stamp.phase == "start" and clock.still_s(stamp) == 0.0, "leaving a phase is a move"


STRAY = replace(WAITS, collective="broadcast", calls=8, where="reward (mine.py:3)")


def test_of_several_ranks_the_one_in_a_stray_collective_is_named_not_the_others() -> None:
    ahead = told(WAITS, STRAY, WAITS, WAITS)
    assert ahead is not None and ahead.ranks == [1]
    assert ahead.message == (
        "rank 1 waits for 50 s in a collective that the others are not in: phase update of step 3, in collective broadcast (number 8), at "
        "reward (mine.py:3); ranks 0, 2, 3: phase update of step 3, in collective all_reduce (number 7), at f (a.py:1)"
    )
    another = told(WAITS, WAITS, replace(STRAY, calls=7))
    assert (
        another is not None and another.ranks == [2] and "ranks 0, 1: phase update of step 3, in collective all_reduce" in another.message
    )


def test_where_the_others_wait_for_the_device_both_sides_are_told_the_stray_one_first() -> None:
    on_device = replace(WAITS, collective="", where="score (b.py:2)")
    hang = told(on_device, STRAY, on_device, on_device)
    assert hang is not None and hang.ranks == [1, 0, 2, 3]
    assert (
        "rank 1 waits for 50 s in a collective that the others are not in: phase update of step 3, in collective broadcast" in hang.message
    )
    assert hang.message.endswith(
        "or the others hang before it, ranks 0, 2, 3: phase update of step 3, after 7 collectives, at score (b.py:2)"
    )
    behind = told(WAITS, replace(WAITS, calls=6), WAITS, WAITS)
    assert behind is not None and behind.ranks == [1] and behind.message.startswith("rank 1 has not moved")
    early = told(replace(on_device, still_s=9), STRAY, replace(on_device, still_s=9))
    assert early is None, "those whom it waits for are within their limit"
