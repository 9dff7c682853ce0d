"""Requirements of options: a declared one is honoured, any other is refused before anything starts."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.errors import CapabilityError, LightRFTError, StrategyStateError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.bench import StrategyBench
from lightrft.testing.conformance.plain import NAMES, STEPS
from lightrft.testing.conformance.requirement import Refused, check
from lightrft.testing.conformance.update import PARITY, UPDATES, compare
from lightrft.testing.parity import BOUND, Distance
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

ASKED: dict[Capability, dict[str, Any]] = {
    Capability.ZERO_STAGES: {"zero_stage": 3},
    Capability.ADAM_OFFLOAD: {"adam_offload": True},
    Capability.OPTIMIZER_OFFLOAD: {"fsdp_cpu_offload": True},
    Capability.FROZEN_OFFLOAD: {"offload_frozen": True},
    Capability.RESHARD_POLICY: {"fsdp_reshard_after_forward": False},
    Capability.BF16: {"bf16": True},
    Capability.MIXED_PRECISION_OPTIMIZER: {"bf16": True, "use_mp_opt": True},
}
"""The settings that ask for each."""

BF16 = Distance(gradients=3e-2, norms=1e-2, parameters=6e-3)
"""bfloat16 has 8 bits; five steps of 1e-3 move a parameter by up to 5e-3."""


def refuses(bench: StrategyBench, capability: Capability) -> None:
    """Raises Refused where the strategy refuses what it does not declare, naming it; AssertionError where it does not."""
    if capability is Capability.SHARDED_FROZEN:
        _refuses_shards(bench)
    else:
        asked = ASKED[capability]
        _refused(lambda: bench.start(**asked), capability, asked)
    raise Refused(str(capability))


@check("prepare_trainable", needs=Capability.ZERO_STAGES, after=UPDATES)
def every_zero_stage_gives_the_same_update(bench: StrategyBench) -> None:
    """`zero_stage` 0 to 3 change memory, and not what is learnt"""
    for stage in range(4):
        _same(bench, "accumulation 3", zero_stage=stage)


@check("prepare_trainable", needs=Capability.ADAM_OFFLOAD, after=UPDATES)
def adam_in_host_memory_gives_the_same_update(bench: StrategyBench) -> None:
    """`adam_offload` changes memory, and not what is learnt"""
    _same(bench, "accumulation 3", adam_offload=True)


@check("prepare_trainable", needs=Capability.RESHARD_POLICY, after=UPDATES)
def keeping_parameters_gathered_gives_the_same_update(bench: StrategyBench) -> None:
    """`fsdp_reshard_after_forward` off changes memory, and not what is learnt"""
    _same(bench, "accumulation 3", fsdp_reshard_after_forward=False)


@check("prepare_trainable", needs=Capability.BF16, after=UPDATES)
def bf16_computes_in_bfloat16_over_float32_masters(bench: StrategyBench) -> None:
    """`bf16`: logits in bfloat16, an update near that of float32, and steps that bfloat16 would round away are kept"""
    strategy = bench.start(bf16=True)
    model, _ = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(20, device=strategy.world.device).reshape(1, 20)).logits
    assert logits.dtype is torch.bfloat16, f"bf16 computes logits in {logits.dtype}"
    compare(bench.measure(PARITY["accumulation 3"], bf16=True), bench.oracle["accumulation 3"], "bf16", BF16)


@check("prepare_trainable", needs=Capability.MIXED_PRECISION_OPTIMIZER, after=UPDATES)
def a_mixed_precision_optimizer_keeps_float32_masters(bench: StrategyBench) -> None:
    """`use_mp_opt` with `bf16`: parameters in bfloat16, an update near that of float32"""
    settings = ASKED[Capability.MIXED_PRECISION_OPTIMIZER]
    compare(bench.measure(PARITY["accumulation 3"], **settings), bench.oracle["accumulation 3"], "use_mp_opt", BF16)


@check("maybe_offload_optimizer", needs=Capability.OPTIMIZER_OFFLOAD, after=NAMES)
def optimizer_state_comes_back_with_the_same_bits(bench: StrategyBench) -> None:
    """`fsdp_cpu_offload`: state leaves after every step and comes back; parameters are those of a run without; calls are idempotent"""
    strategy, found = bench.start(fsdp_cpu_offload=True), []
    for offload in (False, True):
        model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
        for step in range(3):
            for _ in range(2):
                strategy.maybe_load_optimizer(optimizer)
            train(strategy, model, optimizer, first=step, last=step + 1)
            for _ in range(2 * offload):
                strategy.maybe_offload_optimizer(optimizer)
        found.append(full_parameters(strategy, model))
    far = largest_difference(found[1], found[0])
    assert far == 0, (
        f"with offloading, parameters differ by {far:.1e} after three steps: the optimizer's state did not come back as it left"
    )


@check("maybe_offload_optimizer", needs=Capability.OPTIMIZER_OFFLOAD, after=STEPS)
def optimizer_state_really_leaves(bench: StrategyBench) -> None:
    """While offloaded, every moment lies in host memory and in other storage than before; loading puts it back on the device"""
    strategy = bench.start(fsdp_cpu_offload=True)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    there = _moments(optimizer)  # kept alive: their memory must not be given out again
    before = {t.data_ptr() for t in there if t.numel()}
    strategy.maybe_offload_optimizer(optimizer)
    away = _moments(optimizer)
    assert away and all(t.device.type == "cpu" for t in away), "offloaded optimizer state is not in host memory"
    stayed = [t for t in away if t.numel() and t.data_ptr() in before]
    assert not stayed, f"{len(stayed)} of {len(away)} tensors of the optimizer's state did not move: the capability is declared and absent"
    strategy.maybe_load_optimizer(optimizer)
    train(strategy, model, optimizer, first=1, last=2)
    back = {t.device.type for t in _moments(optimizer)}
    assert back == {strategy.world.device.type}, f"after maybe_load_optimizer the state is on {back}"


@check("optimizer_step", needs=Capability.OPTIMIZER_OFFLOAD, after=STEPS)
def a_step_while_offloaded_is_refused(bench: StrategyBench) -> None:
    """A StrategyStateError that names `maybe_load_optimizer`, and no step"""
    strategy = bench.start(fsdp_cpu_offload=True)
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(layers=1), optimizer=SETTINGS)
    train(strategy, model, optimizer, last=1)
    strategy.maybe_offload_optimizer(optimizer)
    try:
        train(strategy, model, optimizer, first=1, last=2)
    except StrategyStateError as error:
        assert "maybe_load_optimizer" in str(error), f"the refusal does not say what to call: {str(error)!r}"
        return
    raise AssertionError("a step was taken while the optimizer's state was offloaded")


def _same(bench: StrategyBench, case: str, **settings: Any) -> None:
    compare(bench.measure(PARITY[case], **settings), bench.oracle[case], str(settings), BOUND)


def _refused(start: Any, capability: Capability, asked: dict[str, Any]) -> None:
    what = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    try:
        start()
    except LightRFTError as error:
        assert str(capability) in str(error), f"{what} is refused without naming the capability {str(capability)!r}: {str(error)!r}"
        return
    raise AssertionError(f"{what} was silently accepted by a strategy that does not declare {str(capability)!r}")


def _refuses_shards(bench: StrategyBench) -> None:
    """On one rank there is nothing to share, and nothing that could be refused but the number itself."""
    size = bench.world_size
    if size == 1:
        return
    try:
        bench.strategy.prepare_model(tiny_causal_lm(), shard_size=size)
    except CapabilityError as error:
        assert "sharded_frozen" in str(error), f"shard_size={size} is refused without naming the capability: {str(error)!r}"
        return
    raise AssertionError(f"shard_size={size} was silently accepted by a strategy that does not declare 'sharded_frozen'")


def _moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    from torch.distributed.tensor import DTensor

    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.dim() > 0]
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
