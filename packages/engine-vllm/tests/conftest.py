"""What the ranks of these tests have in common."""

from __future__ import annotations

from lightrft.testing import preload

preload(
    "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.qwen3",
    "deepspeed.runtime.zero.stage3", "lightrft_vllm.engine",
)  # fmt: skip
