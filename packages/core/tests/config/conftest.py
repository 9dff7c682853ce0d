"""A configuration that passes every check, and its world. Two strategies and two engines: `able` can everything, `plain` nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightrft.config import Config, make_config
from lightrft.config.checks import check
from lightrft.errors import ConfigError
from lightrft.plugins import (
    AdvantageSpec,
    Capability,
    EngineSpec,
    LoggerSpec,
    PluginEntry,
    PolicyLossSpec,
    Registry,
    RewardSpec,
    StrategySpec,
)
from lightrft.plugins.registry import Provider

ALL = frozenset(Capability)
Make = Callable[..., Config]


def _entry(spec: Any, distribution: str = "lightrft", version: str = "0.1.0") -> PluginEntry:
    return PluginEntry(provider=Provider(distribution=distribution, version=version, entry_point="x"), spec=spec)


def _registry(*more: PluginEntry) -> Registry:
    """A world where `able` can everything and `plain` nothing."""
    return Registry(
        [
            _entry(StrategySpec(name="able", target="a:b", capabilities=ALL), "able-rft", "1.0"),
            _entry(StrategySpec(name="plain", target="a:b"), "plain-rft", "2.0"),
            _entry(EngineSpec(name="able", target="a:b", capabilities=ALL), "able-rft", "1.0"),
            _entry(EngineSpec(name="plain", target="a:b"), "plain-rft", "2.0"),
            _entry(RewardSpec(name="exact_match", target="a:b")),
            _entry(AdvantageSpec(name="grpo", target="a:b", min_samples=2)),
            _entry(PolicyLossSpec(name="ppo_clip", target="a:b")),
            _entry(LoggerSpec(name="console", target="a:b")),
            _entry(LoggerSpec(name="jsonl", target="a:b")),
            *more,
        ]
    )


def whole_folder(model: Path, *, tokenizer: bool = True) -> None:
    """Files of a model as far as names, JSON and headers tell: one number is all its weights."""
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    header = b'{"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    if tokenizer:
        (model / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model's folder without a tokenizer."""
    whole_folder(tmp_path / "bare", tokenizer=False)
    return tmp_path / "bare"


@pytest.fixture
def make(tmp_path) -> Make:
    """A configuration that passes every check, with changes."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1", "answer": "2"}\n', encoding="utf-8")
    model = tmp_path / "model"
    whole_folder(model)

    def do(**changes: Any) -> Config:
        good = {"strategy": "able", "engine_type": "able", "prompt_data": str(data), "model_name_or_path": str(model)}
        return make_config({**good, "output_dir": str(tmp_path / "run"), **changes})

    return do


def _problems(config: Config, *, world_size: int = 2, found: Registry | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config, registry=found or _registry(), world_size=world_size)
    return caught.value.problems


@pytest.fixture
def entry() -> Callable[..., PluginEntry]:
    """entry(spec, distribution, version): a plugin as if it were installed."""
    return _entry


@pytest.fixture
def registry() -> Callable[..., Registry]:
    """registry(*more): a world where `able` can everything and `plain` nothing."""
    return _registry


@pytest.fixture
def problems() -> Callable[..., list[str]]:
    """problems(config, world_size=2, found=None): what is wrong with it there; something has to be."""
    return _problems
