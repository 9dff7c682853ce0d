"""A mutant: a plugin with one fault in a line or two, the one test that must fail of it, and the words that help its author."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from lightrft.plugins.builtin import lightrft_plugins
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, EngineSpec, PluginSpec, StrategySpec
from lightrft.testing.fake_options import OPTIONED_ENGINE
from lightrft.testing.fake_strategy import FAKE_ENGINE, FAKE_STRATEGY, fake_registry
from lightrft.testing.sharded_strategy import SHARDED_STRATEGY

C = TypeVar("C", bound=type)
Base = Literal["fake engine", "optioned", "hf", "fake strategy", "single", "sharded"]

_SPECS = {(spec.kind, spec.name): spec for spec in (*lightrft_plugins(), FAKE_ENGINE, OPTIONED_ENGINE, FAKE_STRATEGY, SHARDED_STRATEGY)}
BASES: dict[Base, PluginSpec] = {
    "fake engine": _SPECS["engine", "fake"],
    "optioned": _SPECS["engine", "optioned"],
    "hf": _SPECS["engine", "hf"],
    "fake strategy": _SPECS["strategy", "fake"],
    "single": _SPECS["strategy", "single"],
    "sharded": _SPECS["strategy", "sharded"],
}


@dataclass(frozen=True)
class Mutant:
    """A broken variant of `base`, on `ranks` ranks; `test` must fail, and its message must hold `words`."""

    name: str
    base: Base
    fault: str
    test: str
    words: str
    ranks: int
    spec: PluginSpec

    @property
    def kind(self) -> str:
        return self.spec.kind


MUTANTS: dict[str, Mutant] = {}


def mutant(
    base: Base,
    fault: str,
    *,
    test: str,
    words: str,
    declares: Collection[Capability] = (),
    hides: Collection[Capability] = (),
    options: str = "",
) -> Callable[[C], C]:
    """Registers a class as a mutant under its own name. `declares` and `hides` are capabilities more and fewer than the base's;
    `options` is the name of another function that lists an engine's, in the module of the class.
    """

    def register(cls: C) -> C:
        plain: Any = BASES[base]
        assert not plain.capabilities & frozenset(declares), f"{cls.__name__} declares what {base!r} has by now: is the fault still one?"
        spec_class: type[StrategySpec | EngineSpec] = type(plain)
        spec = spec_class(
            name=cls.__name__,
            target=f"{cls.__module__}:{cls.__name__}",
            capabilities=(plain.capabilities | frozenset(declares)) - frozenset(hides),
            summary=fault,
        )
        if isinstance(spec, EngineSpec):
            spec = replace(spec, options=f"{cls.__module__}:{options}" if options else plain.options)
        assert cls.__name__ not in MUTANTS, f"two mutants named {cls.__name__}"
        ranks = 2 if base == "sharded" else 1
        MUTANTS[cls.__name__] = Mutant(cls.__name__, base, fault, f"test_{test}", words, ranks, spec)
        return cls

    return register


def mutant_registry() -> Registry:
    """What core brings, the fakes, and every mutant."""
    from kit_mutants import (  # noqa: F401  # registered by import
        engine_adapters,
        engine_draws,
        engine_ends,
        engine_experts,
        engine_images,
        engine_load,
        engine_options,
        engine_states,
        engine_turns,
        engine_uncommon,
        engine_weights,
        plain,
        ranks,
        strategy_models,
        strategy_options,
        strategy_saving,
        strategy_uncommon,
        strategy_update,
    )

    return fake_registry(*(mutant.spec for mutant in MUTANTS.values()))
