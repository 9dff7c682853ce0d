"""`engine_args` on vLLM: its own list of options, read without importing it, and an option that arrives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from lightrft.config import Config
from lightrft.engine.base import EngineSetup
from lightrft.plugins import Registry
from lightrft.testing.tiny import tiny_model_folder
from lightrft_vllm.options import OURS, options


def test_the_list_is_vllms_and_nothing_of_it_is_imported() -> None:
    found = options()
    assert set(found.types) > {*OURS, "enforce_eager", "max_num_seqs", "quantization", "speculative_config", "enable_prefix_caching"}
    fields = {word.rstrip(",") for use in OURS.values() for word in use.split() if word != "and"}
    assert fields - set(Config.model_fields) == {"nproc_per_node"}
    code = "import sys, lightrft_vllm.options as o; o.options(); sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(found.problems({"enforce_eagr": True, "seed": 1, "enforce_eager": "yes", "max_num_seqs": 4}, engine="vllm")) == [
        "engine_args.enforce_eagr: engine 'vllm' has no such option; did you mean 'enforce_eager'?",
        "engine_args.seed=1: LightRFT sets this option of engine 'vllm'; use seed",
        "engine_args.enforce_eager='yes': engine 'vllm' takes bool",
    ]


def test_what_it_sets_itself_is_in_the_list_or_may_be_overridden(tmp_path: Path) -> None:
    """One engine: an option of the user's arrives and wins over the engine's own choice; what it was built with is told."""
    setup = EngineSetup(
        model_path=str(tiny_model_folder(tmp_path)), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=64,
        max_batch_size=8, mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None,
        options={"max_num_seqs": 3, "max_num_batched_tokens": 128},
    )  # fmt: skip
    engine = Registry.discover().load("engine", "vllm")(setup)
    try:
        scheduler = engine._llm.llm_engine.vllm_config.scheduler_config
        assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (3, 128)
        assert engine.arguments["max_num_seqs"] == 3 and engine.arguments["model"] == setup.model_path
        free = {
            "disable_log_stats",
            "enforce_eager",
            "kv_cache_memory_bytes",
            "enable_chunked_prefill",
            "max_num_batched_tokens",
            "max_num_seqs",
        }
        assert set(engine.arguments) - set(OURS) == free
    finally:
        engine.shutdown()
