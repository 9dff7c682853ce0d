"""A rank that waits in a collective tells which one it is, from another thread."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import torch.distributed as dist

from lightrft.distributed import flight_recorder
from lightrft.distributed.flight_recorder import last_collectives
from lightrft.testing import run_spmd


def while_the_first_rank_waits() -> str:
    dist.init_process_group("gloo")
    told: list[str] = []
    dist.all_reduce(torch.ones(5))
    if dist.get_rank() == 0:
        teller = threading.Timer(1.0, lambda: told.append(last_collectives(2)))
        teller.start()
        dist.all_reduce(torch.ones(7, 2))
        teller.join()
    else:
        time.sleep(3)
        dist.all_reduce(torch.ones(7, 2))
    dist.destroy_process_group()
    return told[0] if told else ""


def test_the_collective_in_which_a_rank_waits_is_the_last() -> None:
    first, second = run_spmd(while_the_first_rank_waits, 2)
    head, before, waits = first.splitlines()
    assert "flight recorder" in head
    assert "all_reduce" in before and "sizes [[5]]" in before
    assert "all_reduce" in waits and "sizes [[7, 2]]" in waits and not waits.endswith("completed")
    assert second == ""


def test_a_recorder_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_recorder, "ANSWERS_WITHIN_S", 0.05)
    monkeypatch.setattr(flight_recorder, "_entries", lambda: time.sleep(1) or [])
    assert last_collectives() == "torch's flight recorder does not answer within 0.05 s\n"


def test_nothing_is_said_where_nothing_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_recorder, "_entries", list)
    assert last_collectives() == ""
