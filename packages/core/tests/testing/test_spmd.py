"""`run_spmd` gives results in order, and fails with the right tracebacks, in time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from lightrft.distributed.world import World
from lightrft.errors import PeerError
from lightrft.testing import SpmdError, run_spmd


@dataclass
class Mine:
    value: int


def ranks_and_sum(base: Mine) -> tuple[Mine, float, int, str, int]:
    world = World.join(need_group=True)
    total = torch.tensor(float(world.rank + 1))
    dist.all_reduce(total)
    print(f"hello from {world.rank}")
    return Mine(base.value + world.rank), total.item(), torch.get_num_threads(), os.environ["LIGHTRFT_TEST_MARK"], os.getpid()


def test_results_in_rank_order_with_the_callers_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LIGHTRFT_TEST_MARK", "here")
    results = run_spmd(ranks_and_sum, 3, Mine(10))
    assert [r[0] for r in results] == [Mine(10), Mine(11), Mine(12)]
    assert [r[1:4] for r in results] == [(6.0, 1, "here")] * 3
    assert len({r[4] for r in results} | {os.getpid()}) == 4
    assert "--- rank 2 ---\nhello from 2" in capsys.readouterr().out


def join_twice() -> float:
    for _ in range(2):
        world = World.join(need_group=True)
        total = torch.tensor(1.0)
        dist.all_reduce(total)
        world.leave()
    return total.item()


def test_a_group_may_be_left_and_joined_again() -> None:
    assert run_spmd(join_twice, 2, timeout_s=30) == [2.0, 2.0]


def one_raises() -> None:
    world = World.join(need_group=True)
    if world.rank == 1:
        raise ValueError("the cause, on rank 1")
    if world.rank == 0:
        raise PeerError("rank 0 heard of it")
    dist.barrier()


def test_the_cause_comes_first_then_the_others() -> None:
    begin = time.monotonic()
    with pytest.raises(SpmdError) as caught:
        run_spmd(one_raises, 3, timeout_s=60)
    message = str(caught.value)
    assert caught.value.ranks[0] == 1 and set(caught.value.ranks) == {0, 1, 2}
    assert message.startswith("3 of 3 ranks failed\n\nrank 1 raised:\nTraceback")
    assert message.index("the cause, on rank 1") < message.index("rank 0 heard of it")
    assert time.monotonic() - begin < 40


def hangs() -> None:
    rank = int(os.environ["RANK"])
    if rank == 1:
        time.sleep(600)  # the line that the stack must show


def test_a_hang_ends_at_the_time_out_and_says_where() -> None:
    begin = time.monotonic()
    with pytest.raises(SpmdError, match=r"1 of 2 ranks failed\n\nrank 1 was still running after 4 s, in:[\s\S]*in hangs") as caught:
        run_spmd(hangs, 2, timeout_s=4)
    assert caught.value.ranks == [1]
    assert time.monotonic() - begin < 20


def dies() -> None:
    if os.environ["RANK"] == "0":
        os._exit(7)
    time.sleep(600)


def test_a_rank_that_dies_without_a_word_is_named_first() -> None:
    with pytest.raises(SpmdError, match="rank 0 ended with exit code 7 and no traceback") as caught:
        run_spmd(dies, 2, timeout_s=60)
    assert caught.value.ranks == [0, 1]
    assert "rank 1 was still running 5 s after another rank had failed" in str(caught.value)
