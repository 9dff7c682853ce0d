"""`deterministic_rollout` with vLLM: what is refused here, and what is set before vLLM is imported. Its kernels need a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import CapabilityError, ConfigError, EngineStateError
from lightrft.plugins.registry import Registry
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_model_folder
from lightrft_vllm.guests import BATCH_INVARIANT, make_deterministic

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each test, and after it, which for a variable that was not there `delenv` alone would not see to."""
    monkeypatch.setenv(BATCH_INVARIANT, "0")
    monkeypatch.delenv(BATCH_INVARIANT)


def test_a_cpu_is_refused_before_anything_loads(tmp_path: Path) -> None:
    settings = {"strategy": "fake", "engine_type": "vllm", "model_name_or_path": str(tiny_model_folder(tmp_path))}
    config = make_config({**settings, "deterministic_rollout": True})
    strategy = get_strategy(config, registry=fake_registry(Registry.discover().spec("engine", "vllm")))
    with pytest.raises(ConfigError, match=r"deterministic_rollout=True: engine 'vllm' has 'deterministic' on CUDA only.*leave it out"):
        strategy.setup_inference_engine(config)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(CapabilityError, match=r"needs a GPU of compute capability 9\.0 or more, found compute capability 8\.0"):
        make_deterministic(CUDA)
    assert BATCH_INVARIANT not in os.environ


def test_it_is_set_before_vllm_is_imported_and_refused_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "vllm", sys)
    with pytest.raises(EngineStateError, match=f"imported without it before; set {BATCH_INVARIANT}=1"):
        make_deterministic(CUDA)
    monkeypatch.delitem(sys.modules, "vllm")
    make_deterministic(CUDA)
    assert os.environ[BATCH_INVARIANT] == "1"
