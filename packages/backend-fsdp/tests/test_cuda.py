"""Does the backend do on a GPU what it does on the CPU, and does offloading free the device's memory?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.plugins import PluginEntry, Registry
from lightrft.plugins.registry import Provider
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft_fsdp.plugin import lightrft_plugins
from lightrft_fsdp.strategy import FSDPV2Strategy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def fsdp(**settings: Any) -> StrategyBase:
    """Not through the entry point: the packages need not be installed where the GPU is."""
    (spec,) = lightrft_plugins()
    registry = Registry([PluginEntry(provider=Provider(distribution="source", version="0", entry_point="fsdp"), spec=spec)])
    return FSDPV2Strategy(make_config({"fsdp": True, **settings}), spec=registry.spec("strategy", "fsdp"), registry=registry)


def five_steps(strategy: StrategyBase) -> dict[str, torch.Tensor]:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    for step in range(5):
        strategy.maybe_load_optimizer(optimizer)
        train(strategy, model, optimizer, first=step, last=step + 1, max_norm=0.5)
        strategy.maybe_offload_optimizer(optimizer)
    return full_parameters(strategy, model)


def offloading() -> dict[str, Any]:
    strategy = fsdp(fsdp_cpu_offload=True)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(hidden=512, layers=4), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    moments = 8 * sum(p.numel() for p in model.parameters())
    before = torch.cuda.memory_allocated()
    strategy.maybe_offload_optimizer(optimizer)
    freed = before - torch.cuda.memory_allocated()
    hosts = [v for state in optimizer.state.values() for v in state.values() if v.dim() > 0]
    pinned = all(t.is_pinned() for t in hosts)
    strategy.maybe_load_optimizer(optimizer)
    return {"share freed": freed / moments, "pinned": pinned, "back": torch.cuda.memory_allocated() / before}


def measure(folder: str) -> dict[str, Any]:
    plain = fsdp()
    registry = fake_registry()
    single = SingleStrategy(make_config({"strategy": "single"}), spec=registry.spec("strategy", "single"), registry=registry)
    expected = five_steps(single)
    model, optimizer = plain.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(plain, model, optimizer, last=2)
    plain.save_ckpt(Path(folder) / "c", model=model, optimizer=optimizer)
    other, other_optimizer = plain.prepare_trainable(tiny_causal_lm(seed=4), optimizer=SETTINGS)
    plain.load_ckpt(Path(folder) / "c", model=other, optimizer=other_optimizer)
    for one, one_optimizer in ((model, optimizer), (other, other_optimizer)):
        train(plain, one, one_optimizer, first=2, last=3)
    found = five_steps(plain)
    half = fsdp(bf16=True)
    frozen = half.prepare_model(tiny_causal_lm())
    with torch.no_grad():
        logits = frozen(input_ids=torch.arange(9, device=half.world.device)[None]).logits
    return {
        "devices": {p.device.type for p in model.parameters()} | {b.device.type for b in model.buffers()},
        "to single": largest_difference(found, expected),
        "offloaded to not": largest_difference(five_steps(fsdp(fsdp_cpu_offload=True)), found),
        "resumed": largest_difference(full_parameters(plain, other), full_parameters(plain, model)),
        "bf16": logits.dtype,
        "gathered": plain.all_gather({"n": 3, "t": torch.ones(2)}),
    }


def test_one_gpu_gives_what_single_gives_there_and_resumes_bitwise(tmp_path: Path) -> None:
    (found,) = run_spmd(measure, 1, str(tmp_path), cuda=True)
    assert found["devices"] == {"cuda"}
    assert found["to single"] < 3e-5
    assert found["offloaded to not"] < 1e-6
    assert found["resumed"] < 1e-6
    assert found["bf16"] is torch.bfloat16
    assert found["gathered"]["n"] == [3] and found["gathered"]["t"].tolist() == [1.0, 1.0]


def test_offloading_frees_both_moments_into_pinned_memory() -> None:
    (found,) = run_spmd(offloading, 1, cuda=True)
    assert found["share freed"] > 0.95 and found["pinned"]
    assert found["back"] == pytest.approx(1, rel=0.01)
