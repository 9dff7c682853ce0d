"""A reward without a signal is reported once, in words, and not before its time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lightrft.experience.reward_signal import DeadRewardMonitor

LIVE = [0.0, 1.0, 1.0, 1.0]
SAME = [0.0] * 4
FLAT = [0.0, 0.0, 1.0, 1.0]
GROUPS = [0, 0, 1, 1]


def feed(monitor: DeadRewardMonitor, rollouts: Sequence[Sequence[float]], groups: Sequence[int] = GROUPS) -> list[str | None]:
    return [monitor.update(rewards, groups) for rewards in rollouts]


def test_a_constant_reward_is_reported_once_after_patience() -> None:
    found = feed(DeadRewardMonitor(patience=3), [SAME] * 6)
    assert found[:2] == [None, None] and found[3:] == [None, None, None]
    assert found[2] is not None and found[2].startswith(
        "reward is 0.0 for all 12 completions of the last 3 rollouts, so nothing can be learned; look at "
    )


def test_groups_without_variance_are_reported() -> None:
    found = feed(DeadRewardMonitor(patience=2), [FLAT, FLAT, FLAT])
    assert found[0] is None and found[2] is None
    assert found[1] is not None and found[1].startswith(
        "no group has two different rewards in the last 2 rollouts, so no advantage and no learning; "
    )


def test_a_live_rollout_starts_anew() -> None:
    found = feed(DeadRewardMonitor(patience=2), [SAME, LIVE, SAME, SAME, SAME, LIVE, FLAT, FLAT])
    assert [text is not None for text in found] == [False, False, False, True, False, False, False, True]


def test_one_dead_stretch_is_reported_once_though_its_kind_changes() -> None:
    found = feed(DeadRewardMonitor(patience=2), [FLAT, FLAT, SAME, SAME, SAME])
    assert [text is not None for text in found] == [False, True, False, False, False]


def test_all_zero_then_all_one_is_not_one_constant() -> None:
    found = feed(DeadRewardMonitor(patience=2), [[0.0] * 4, [1.0] * 4])
    assert found[1] is not None and found[1].startswith("no group has two different rewards")


def test_a_mixed_stretch_counts_as_groups_without_variance() -> None:
    found = feed(DeadRewardMonitor(patience=3), [SAME, FLAT, SAME])
    assert found[2] is not None and found[2].startswith("no group has two different rewards in the last 3 rollouts")


def test_patience_one_and_the_group_ids_need_no_order() -> None:
    assert DeadRewardMonitor(patience=1).update([1.0, 0.0, 1.0, 0.0], [7, 3, 7, 3]) is not None
    assert DeadRewardMonitor(patience=1).update([1.0, 0.0, 1.0, 0.0], [7, 7, 3, 3]) is None
    text = DeadRewardMonitor(patience=1).update([1.0, 1.0], [0, 0])
    assert text is not None and "reward is 1.0 for all 2 completions of the last rollout, so" in text


def test_groups_of_one_have_no_variance_to_miss() -> None:
    singles = [0, 1, 2, 3]
    assert feed(DeadRewardMonitor(patience=1), [LIVE, FLAT], singles) == [None, None]
    assert feed(DeadRewardMonitor(patience=2), [[0.0] * 4, [1.0] * 4], singles) == [None, None]
    assert feed(DeadRewardMonitor(patience=2), [SAME, SAME], singles)[1] is not None


def test_an_empty_rollout_counts_as_none() -> None:
    monitor = DeadRewardMonitor(patience=2)
    assert monitor.update(SAME, GROUPS) is None and monitor.update([], []) is None and monitor.update(SAME, GROUPS) is not None


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="patience=0"):
        DeadRewardMonitor(patience=0)
    with pytest.raises(ValueError, match="2 rewards but 1 group ids"):
        DeadRewardMonitor(patience=1).update([1.0, 0.0], [0])
