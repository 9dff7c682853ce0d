"""Two runs with SGLang live on one machine at once; one that is killed, whenever, leaves nothing that disturbs the next."""

from __future__ import annotations

import pytest

from lightrft.testing.jobs import Job
from lightrft.testing.two_jobs import RANKS, TwoJobs

pytestmark = pytest.mark.long  # three jobs with SGLang; a killed scheduler is tested daily in test_process.py


class TestJobs(TwoJobs):
    engine_name = "sglang"
    usual_ports = (30_000,)

    def is_starting(self, job: Job) -> bool:
        """A process more than the launcher and the ranks: a scheduler, which imports SGLang for some seconds."""
        return job.begun() == RANKS and len(job.processes()) > 1 + RANKS + 1  # and the resource tracker
