"""What the ranks of these tests have in common."""

from __future__ import annotations

import torch

from lightrft.testing import preload
from lightrft_vllm.guests import set_environment

if not torch.cuda.is_available():
    set_environment("cpu")  # before vLLM is imported, in the process that the ranks are copies of too
    preload(
        "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.qwen3",
        "deepspeed.runtime.zero.stage3", "lightrft_vllm.engine",
    )  # fmt: skip
