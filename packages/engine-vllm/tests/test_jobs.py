"""Two runs with vLLM live on one machine at once; one that is killed leaves nothing that disturbs the next."""

from __future__ import annotations

from lightrft.testing.two_jobs import TwoJobs


class TestJobs(TwoJobs):
    engine_name = "vllm"
