"""Two runs of an engine on one machine, and killed ones. A class to inherit.

class TestJobs(TwoJobs):
    engine_name = "mine"
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from lightrft.testing.jobs import Job, still_there
from lightrft.testing.tiny import tiny_model_folder

RANKS = 2
START_S = 240.0
Start = Callable[[str], Job]


class TwoJobs:
    """Set `engine_name`. Jobs have two ranks and one engine, which both ranks hold or the first one alone."""

    engine_name: ClassVar[str]
    usual_ports: ClassVar[tuple[int, ...]] = ()
    """Where the engine's library listens unless it is told otherwise; they are taken while a job has to start."""

    def is_starting(self, job: Job) -> bool:
        """Whether the engine is half-way up; the moment to kill it."""
        return job.begun() == RANKS

    @pytest.fixture
    def start(self, tmp_path: Path) -> Iterator[Start]:
        jobs: list[Job] = []
        model = tiny_model_folder(tmp_path / "model", kv_heads=2)
        settings = {"engine_type": self.engine_name, "engine_tp_size": RANKS, "strategy": "fsdp"}

        def start(name: str) -> Job:
            jobs.append(Job(tmp_path / name, model=model, ranks=RANKS, settings=settings))
            return jobs[-1]

        yield start
        for job in jobs:
            job.end()
        left = still_there({name for job in jobs for name in job.segments})
        assert not left, f"shared memory that outlives its job: {sorted(left)}"

    def test_a_killed_job_leaves_nothing_and_two_at_once_do_not_meet(self, start: Start) -> None:
        """One is killed while its engine starts. Two come next, at once; one is killed at work, the other goes on and ends in order"""
        first = start("first")
        first.wait_for(lambda: self.is_starting(first), what="the engine is starting", timeout_s=START_S)
        first.kill()
        first.check_gone()
        taken = [taken_port(port) for port in self.usual_ports]
        killed, other = start("killed"), start("other")
        for job in (killed, other):
            job.wait_for(lambda job=job: len(job.answers()) == RANKS, what="both ranks answer", timeout_s=START_S)  # type: ignore[misc]
            assert job.answers() == [True] * RANKS
        killed.kill()
        killed.check_gone()
        other.forget_answers()
        other.wait_for(lambda: other.answers() == [True] * RANKS, what="the other one goes on", timeout_s=60.0)
        other.finish(timeout_s=60.0)
        for listener in taken:
            listener.close()


def taken_port(port: int) -> socket.socket:
    """Somebody who listens there."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener
