"""Requirements of models of experts: each expert arrives, in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.errors import ModelError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit, Record, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, ExpertBench, requests_of, weights_of
from lightrft.weights.experts import checksums_of

STACKS = tuple(f"model.layers.1.mlp.experts.{name}_proj" for name in ("gate_up", "down"))

_passed: set[type] = set()
"""Engines, in this process: the model of experts is the same beside every family."""


class Experts(EngineKit, kit=True):
    """A model of experts, where the engine loads one."""

    @requirement("update_weights")
    def test_every_expert_arrives_in_its_place(self, bench: EngineBench, tmp_path: Path, record_property: Record) -> None:
        """Of a model of experts: all new, two exchanged, one alone new; tokens, log-probs and checksums are the model's after each sync"""
        engine = bench.registry.load("engine", bench.spec.name)
        if (self.family, self.tie) != (EngineKit.family, EngineKit.tie) and engine in _passed:
            pytest.skip("asked before in this process: the model of experts is the same beside every family")
        bench.close()  # one engine at a time
        routed = ExpertBench(self.plugin_name(), tmp_path, judge=self.judge, registry=bench.registry)
        try:
            if not self._starts(routed, record_property):
                return
            self._is_the_models(routed, "with the folder's weights")
            for what, model in _steps(routed.models):
                routed.sync(model)
                self._is_the_models(routed, f"after a sync with {what}")
        finally:
            routed.close()
        _passed.add(engine)

    def _starts(self, bench: ExpertBench, record: Record) -> bool:
        try:
            bench.restart()
        except AssertionError as error:
            if not isinstance(error.__cause__, ModelError):
                raise
            record("refused", f"a model of experts: {error.__cause__}")  # as it refuses any model that it does not load
            return False
        return True

    def _is_the_models(self, bench: ExpertBench, when: str) -> None:
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=bench.can(Capability.LOGPROBS)), GREEDY)
        found, expected = tokens(outputs), [[bench.greedy(prompt)] for prompt in bench.prompts]
        assert found == expected, f"{when} greedy tokens are {found}, the model's {expected}: experts that stayed, or of another place"
        for output in outputs if bench.can(Capability.LOGPROBS) else ():
            bench.judge_group(output, GREEDY, bound=FP32_ERROR, where=f"{when}, experts that stayed, or of another place")
        if bench.can(Capability.WEIGHT_CHECKSUMS):
            held = bench.engine.weight_checksums()
            right = checksums_of({w.names: w.tensor for bucket in weights_of(bench.model) for w in bucket})
            wrong = [names[0] for names, value in right.items() if names in held and not held[names].same_as(value)]
            assert not wrong, f"{when} the checksums of {', '.join(wrong[:3])} are not those of what was synced"


@torch.no_grad()
def _steps(models: list[Any]) -> list[tuple[str, Any]]:
    """What is synced in turn, in words, and the model that it makes."""

    def changed(model: Any, change: Callable[[torch.Tensor], None]) -> Any:
        other = copy.deepcopy(model)
        for name in STACKS:
            change(other.get_parameter(name))
        return other

    def exchange(stack: torch.Tensor) -> None:
        stack[[0, 1]] = stack[[1, 0]]

    def renew(stack: torch.Tensor) -> None:
        stack[2].mul_(-1.5)

    exchanged = changed(models[1], exchange)
    return [
        ("all of them new", models[1]),
        ("two of them exchanged", exchanged),
        ("one of them new", changed(exchanged, renew)),
    ]
