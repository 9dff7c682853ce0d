"""The plainest questions to a strategy: whether its hooks run at all, and under which names parameters leave. Others build on these."""

from __future__ import annotations

import torch

from lightrft.strategy.strategy_base import StepResult
from lightrft.testing.conformance.bench import StrategyBench
from lightrft.testing.conformance.requirement import check
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, train

STEPS = ("a_model_is_prepared_steps_and_is_exported",)
FROZEN = ("a_frozen_model_goes_forward",)
NAMES = ("parameters_leave_under_the_names_of_the_model",)
VALUES = ("every_parameter_leaves_once_and_bitwise",)


@check("prepare_trainable")
def a_model_is_prepared_steps_and_is_exported(bench: StrategyBench) -> None:
    """A model and an optimizer of torch's kinds, a forward, a backward, a step, an export: each hook comes back"""
    model, optimizer = bench.strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    assert isinstance(model, torch.nn.Module), f"_prepare_trainable returned a {type(model).__name__} in the place of the model"
    assert isinstance(optimizer, torch.optim.Optimizer), (
        f"_prepare_trainable returned a {type(optimizer).__name__} in the place of the optimizer"
    )
    [result] = train(bench.strategy, model, optimizer, last=1)
    assert isinstance(result, StepResult), f"_step returned a {type(result).__name__}, not a StepResult"
    assert any(bucket for bucket in bench.strategy.export_weights(model)), "_export_weights yielded nothing"


@check("prepare_model")
def a_frozen_model_goes_forward(bench: StrategyBench) -> None:
    """A model is prepared without an optimizer and computes logits of the right shape"""
    model = bench.strategy.prepare_model(tiny_causal_lm())
    logits = model(input_ids=torch.zeros(1, 5, dtype=torch.long, device=bench.strategy.world.device)).logits
    assert tuple(logits.shape) == (1, 5, 64), f"logits of 5 tokens over a vocabulary of 64 have the shape {tuple(logits.shape)}"


@check("export_weights", after=STEPS)
def parameters_leave_under_the_names_of_the_model(bench: StrategyBench) -> None:
    """Every parameter leaves under its name in the HF model, without what a wrapper puts before it"""
    plain = tiny_causal_lm()
    expected = [name for name, _ in plain.named_parameters()]
    model, _ = bench.strategy.prepare_trainable(plain, optimizer=SETTINGS)
    found = [name for bucket in bench.strategy.export_weights(model) for weight in bucket for name in weight.names]
    missing, unknown = [n for n in expected if n not in found], [n for n in found if n not in expected]
    before = next((u[: -len(n)] for u in unknown for n in expected if u.endswith(f".{n}")), "")
    assert not before, (
        f"{len(unknown)} of {len(found)} parameters leave with {before!r} before their names ({unknown[0]}): take them from the model "
        "inside the wrapper"
    )
    assert not missing, f"{len(missing)} of {len(expected)} parameters do not leave: {', '.join(missing[:3])}"
    assert not unknown, f"{len(unknown)} names leave that the model does not have: {', '.join(unknown[:3])}"
