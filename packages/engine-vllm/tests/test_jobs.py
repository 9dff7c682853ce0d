"""Two runs with vLLM live on one machine at once; one that is killed leaves nothing that disturbs the next."""

from __future__ import annotations

import pytest

from lightrft.testing.two_jobs import TwoJobs

pytestmark = pytest.mark.long  # three jobs with vLLM


class TestJobs(TwoJobs):
    engine_name = "vllm"
