"""Blocks that torch compiles: the same numbers, few graphs, recomputed around, and refused where they cannot be."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from lightrft.config.checks import check
from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.observe import compiler
from lightrft.observe.compiler import graphs_made
from lightrft.strategy import compiled
from lightrft.strategy.compiled import compile_blocks, compile_where_asked, compiles
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.architectures import make_model
from lightrft.testing.fake_strategy import fake_registry


@pytest.fixture(autouse=True)
def _count_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_made", [])  # it belongs to the process: later tests compile nothing and count nothing


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = hidden.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        out: torch.Tensor = hidden + torch.tanh(self.inner(hidden * scale))
        return out


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack()


def values_and_gradients(model: nn.Module, *, rows: int, length: int) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    out = model(torch.randn(rows, length, 8, generator=torch.Generator().manual_seed(length)))
    out.pow(3).sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers_from_few_graphs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.CACHE_VARIABLE, str(tmp_path))
    plain, model = stack(), stack()
    compile_blocks(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    before = graphs_made()
    assert before is not None
    for rows, length in ((2, 5), (3, 9), (5, 4), (2, 31)):
        for mine, theirs in zip(
            values_and_gradients(model, rows=rows, length=length), values_and_gradients(plain, rows=rows, length=length), strict=True
        ):
            assert (mine - theirs).norm() < 1e-5 * theirs.norm(), (rows, length)
    made = graphs_made()
    assert made is not None and 1 <= made - before <= 2, (
        "one for all blocks and lengths; the first input of the first block has no gradient"
    )


def test_recomputation_is_laid_around_compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def compile_(function: Any, **_options: Any) -> Any:
        def call(*args: Any) -> Any:
            called.append("compiled")
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiled, "compiles", lambda config, device_type: True)
    strategy = get_strategy(make_config({"strategy": "single", "gradient_checkpointing": True, "compile": "yes"}), registry=fake_registry())
    model, _ = strategy.prepare_trainable(stack(), optimizer=AdamWSettings(learning_rate=1e-3))
    model(torch.ones(1, 2, 8)).sum().backward()
    assert called == ["compiled"] * 6, "three blocks forward, and again in the backward pass"
    frozen = strategy.prepare_model(stack())
    frozen(torch.ones(1, 2, 8))
    assert len(called) == 9


@pytest.mark.parametrize(
    ("settings", "device_type", "expected"),
    [
        ({}, "cpu", False),
        ({"fsdp": True}, "cuda", True),
        ({"zero_stage": 2}, "cuda", True),
        ({"zero_stage": 3}, "cuda", False),
        ({"fsdp": True, "sp_size": 2}, "cuda", False),
        ({"fsdp": True, "compile": "no"}, "cuda", False),
        ({"fsdp": True, "compile": "yes"}, "cpu", True),
    ],
)
def test_what_is_compiled_by_itself(settings: dict[str, Any], device_type: str, expected: bool) -> None:
    assert compiles(make_config(settings), device_type) is expected


def test_experts_are_compiled_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(compiled, "compile_blocks", asked.append)
    monkeypatch.setattr(compiled, "_is_on", lambda: True)
    monkeypatch.setattr(compiled, "SMALL", 0)
    dense, experts = make_model("qwen3"), make_model("qwen3-moe")
    for model in (dense, experts):
        compile_where_asked(model, make_config({"fsdp": True}), device_type="cuda")
    assert asked == [dense]
    compile_where_asked(experts, make_config({"compile": "yes"}), device_type="cpu")
    assert asked == [dense, experts]


def test_a_model_below_ten_million_parameters_is_compiled_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(compiled, "compile_blocks", asked.append)
    monkeypatch.setattr(compiled, "_is_on", lambda: True)
    with torch.device("meta"):
        below, at = nn.Linear(999, 9_999), nn.Linear(1000, 10_000, bias=False)
    for model in (below, at):
        compile_where_asked(model, make_config({"fsdp": True}), device_type="cuda")
    assert asked == [at]
    compile_where_asked(below, make_config({"compile": "yes"}), device_type="cpu")
    assert asked == [at, below]


def test_what_cannot_be_compiled_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="compile='yes': zero_stage=3 gathers parameters by hooks inside .* leave compile out"):
        check(make_config({"compile": "yes", "zero_stage": 3}), registry=fake_registry(), world_size=1)
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    with pytest.raises(ConfigError, match="torch's compiler is off in this process"):
        compiles(make_config({"compile": "yes"}), "cpu")
    assert not compiles(make_config({"fsdp": True}), "cuda")


def test_kernels_are_kept_between_runs_where_the_user_names_no_place(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_blocks(stack())
    assert os.environ[compiled.CACHE_VARIABLE] == str(tmp_path / "lightrft" / "inductor")
