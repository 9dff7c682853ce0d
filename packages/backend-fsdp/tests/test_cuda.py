"""The backend does on a GPU what it does on the CPU; offloading frees the device's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightrft.config.load import make_config
from lightrft.plugins import PluginEntry, Registry
from lightrft.plugins.registry import Provider
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference, train
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
    return {"fraction freed": freed / moments, "pinned": pinned, "back": torch.cuda.memory_allocated() / before}


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
    assert found["fraction freed"] > 0.95 and found["pinned"]
    assert found["back"] == pytest.approx(1, rel=0.01)


@torch.no_grad()
def resting() -> dict[str, Any]:
    """A reference model with and without `offload_frozen`: its logits, and what it holds of the card between its passes and in them."""
    ids, found = torch.arange(48).reshape(4, 12), dict[str, Any]()
    for name, rests in (("plain", False), ("rests", True)):
        strategy = fsdp(bf16=True, offload_frozen=rests, compile="no")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        model = strategy.prepare_model(tiny_causal_lm(hidden=512, layers=4))
        size = 2 * sum(p.numel() for p in model.parameters())
        held = (torch.cuda.memory_allocated() - before) / size
        with strategy.on_device(model):
            within = (torch.cuda.memory_allocated() - before) / size
            logits = [model(input_ids=ids.to(strategy.world.device)).logits.float().cpu() for _ in range(2)]
        logits.append(model(input_ids=ids.to(strategy.world.device)).logits.float().cpu())
        torch.cuda.synchronize()
        after = (torch.cuda.memory_allocated() - before) / size
        pinned = all(p.to_local().is_pinned() for p in model.parameters()) if rests else None  # type: ignore[attr-defined]
        found[name] = {"held": held, "within": within, "after": after, "logits": logits, "pinned": pinned}
        del model
    return found


def test_a_frozen_model_at_rest_holds_nothing_of_the_card_and_gives_the_same_bits() -> None:
    (found,) = run_spmd(resting, 1, cuda=True)
    plain, rests = found["plain"], found["rests"]
    assert all(torch.equal(logits, plain["logits"][0]) for logits in plain["logits"] + rests["logits"])
    assert plain["held"] > 0.95 and rests["within"] > 0.95
    assert rests["held"] < 0.05 and rests["after"] < 0.05 and rests["pinned"]


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if v.dim() > 0]


def bits(how: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters and state after three steps, the optimizer loaded right before, or long before, each step."""
    strategy = fsdp(**how)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(hidden=256, layers=4), optimizer=SETTINGS)
    for step in range(3):
        if step == 1:
            strategy.maybe_load_optimizer(optimizer)
        accumulate(strategy, model, optimizer, step)
        strategy.maybe_load_optimizer(optimizer)
        strategy.optimizer_step(optimizer, model, None)
        strategy.maybe_offload_optimizer(optimizer)
        strategy.maybe_offload_optimizer(optimizer)
    found = full_parameters(strategy, model)
    strategy.maybe_load_optimizer(optimizer)
    strategy.maybe_load_optimizer(optimizer)
    torch.cuda.synchronize()
    return found | {str(i): t.to_local().cpu() for i, t in enumerate(states(optimizer))}  # type: ignore[attr-defined]


def same_bits() -> dict[str, float]:
    out = {}
    with sdpa_kernel(SDPBackend.MATH):  # its backward adds up in one order
        for name, how in (("float32", {}), ("masters", {"bf16": True, "use_mp_opt": True})):
            out[name] = largest_difference(bits(how | {"fsdp_cpu_offload": True}), bits(how))
    return out


def moving() -> dict[str, Any]:
    strategy = fsdp(fsdp_cpu_offload=True, bf16=True, use_mp_opt=True)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(hidden=1024, layers=8), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    size = sum(p.numel() for p in model.parameters())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    expected = [t.to_local().cpu() for t in states(optimizer)]  # type: ignore[attr-defined]
    strategy.maybe_offload_optimizer(optimizer)
    hosts, after = states(optimizer), torch.cuda.memory_allocated()
    strategy.maybe_offload_optimizer(optimizer)
    still = all(a is b for a, b in zip(hosts, states(optimizer), strict=True))
    torch.cuda._sleep(1_000_000_000)  # some 0.5 s of work that the copies come after
    strategy.maybe_load_optimizer(optimizer)
    arrival = strategy._arriving[optimizer]  # type: ignore[attr-defined]
    assert arrival._done is not None
    early = not arrival._done.query()
    here = states(optimizer)
    strategy.maybe_load_optimizer(optimizer)
    once = all(a is b for a, b in zip(here, states(optimizer), strict=True))
    strategy._arrived(optimizer)  # type: ignore[attr-defined]
    # On the current stream, which waits for the copies; no synchronize before.
    equal = all(torch.equal(a, b.to_local().cpu()) for a, b in zip(expected, here, strict=True))  # type: ignore[attr-defined]
    return {"freed bytes": (before - after) / size, "early": early, "no-ops": still and once, "equal": equal}


def failing() -> dict[str, Any]:
    strategy = fsdp(fsdp_cpu_offload=True)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    before, empty, calls = states(optimizer), torch.empty, iter(range(1000))

    def scarce(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("pin_memory") and next(calls) == 2:
            raise RuntimeError("out of pinned memory")
        return empty(*args, **kwargs)

    with mock.patch("torch.empty", scarce), pytest.raises(RuntimeError, match="out of pinned memory"):
        strategy.maybe_offload_optimizer(optimizer)
    unchanged = all(a is b for a, b in zip(before, states(optimizer), strict=True))
    skipped = train(strategy, model, optimizer, first=1, last=2)[0].skipped  # would raise, were it marked as offloaded
    strategy.maybe_offload_optimizer(optimizer)
    return {"unchanged": unchanged, "skipped": skipped, "then": all(not t.is_cuda for t in states(optimizer))}


def test_offloading_changes_no_bit() -> None:
    (found,) = run_spmd(same_bits, 1, cuda=True)
    assert found == {"float32": 0.0, "masters": 0.0}


def test_a_load_returns_before_its_copies_are_done_and_the_next_reader_waits() -> None:
    """Masters and two moments: 12 bytes of each parameter."""
    (found,) = run_spmd(moving, 1, cuda=True)
    assert found["freed bytes"] > 0.98 * 12
    assert found["early"] and found["no-ops"] and found["equal"]


def test_a_failure_half_way_leaves_everything_on_the_device() -> None:
    (found,) = run_spmd(failing, 1, cuda=True)
    assert found == {"unchanged": True, "skipped": False, "then": True}
