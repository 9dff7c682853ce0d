"""An engine whose library has options: `FakeEngine`, which does nothing with them but to say what it was built with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightrft.plugins.engine_options import EngineOptions
from lightrft.plugins.registry import Registry
from lightrft.testing.fake_engine import FakeEngine
from lightrft.testing.fake_strategy import FAKE_ENGINE, fake_registry

TYPES = {"model": "str", "seed": "int", "eager": "bool", "max_num_seqs": "int | None", "cache": "Literal['auto', 'fp8']"}
OURS = {"model": "model_name_or_path", "seed": "seed"}


def options() -> EngineOptions:
    """Of this engine."""
    return EngineOptions(types=TYPES, ours=OURS, example={"max_num_seqs": 96})


class OptionedEngine(FakeEngine):
    """Its own choices, and over them what the user set."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """By the names of `TYPES`."""
        return {"model": self.setup.model_path, "seed": self.setup.seed, "eager": False, "max_num_seqs": None, **self.setup.options}


OPTIONED_ENGINE = replace(
    FAKE_ENGINE, name="optioned", target=f"{__name__}:OptionedEngine", options=f"{__name__}:options", summary="the same, and takes options"
)


def optioned_registry() -> Registry:
    """What `fake_registry` has, and the engine `optioned`."""
    return fake_registry(OPTIONED_ENGINE)
