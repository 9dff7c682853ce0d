"""Known faults of syncs and rollouts, each caught on an engine by its name. A class to inherit: name the engine.

    class TestPlanted(PlantedFaults):
        engine_name = "mine"

Each is planted between the real engine and core, on one engine that is good again afterwards; a sync without a fault says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

import pytest

from lightrft.errors import EngineError, EngineStateError, WeightSyncError
from lightrft.testing.planted_bench import (
    DOWN,
    EMBEDDING,
    GATE,
    LOWER_DOWN,
    NORM,
    UP,
    K,
    PlantedBench,
    Q,
    V,
    exchanging,
    from_on,
    keeping,
    rounded,
    the_other_way_round,
    unchanged,
    under_one_name,
    without,
)
from lightrft.types import EngineStatus, RequestOutput
from lightrft.weights.buckets import WeightBucket

Fault = Callable[[PlantedBench], AbstractContextManager[None]]


def never_updates(bench: PlantedBench) -> AbstractContextManager[None]:
    """Reads every bucket, takes the version, and keeps its weights."""

    def update_weights(buckets: Iterable[WeightBucket], *, version: int) -> None:
        for _ in buckets:
            pass
        bench.engine._version = version

    return bench.instead(update_weights=update_weights)


SYNC_FAULTS: dict[str, tuple[Fault, str]] = {
    "the caches are not reset": (lambda b: b.instead(reset_cache=lambda: None), "it answers from a cache of older weights"),
    "half of q, k, v": (lambda b: b.spoilt(keeping(K)), f"the checksum differs of {Q} + {K} + {V};"),
    "half of gate, up": (lambda b: b.spoilt(keeping(UP)), f"the checksum differs of {GATE} + {UP};"),
    "a norm": (lambda b: b.spoilt(keeping(NORM)), f"the checksum differs of {NORM};"),
    "a tensor that never comes": (lambda b: b.spoilt(without(K)), f"weights are incomplete: {K} (1 in all) never came"),
    "the second bucket lost in silence": (lambda b: b.spoilt(from_on(DOWN)), f"the checksum differs of {DOWN}, "),
    "two buckets exchanged": (lambda b: b.spoilt(exchanging(LOWER_DOWN, DOWN)), f"the checksum differs of {LOWER_DOWN}, {DOWN};"),
    "two parts of one tensor exchanged": (lambda b: b.spoilt(exchanging(GATE, UP)), "look at the order of the parts of a fused tensor"),
    "cast to bfloat16 on the way": (lambda b: b.spoilt(rounded), f"the checksum differs of {EMBEDDING}, "),
    "the weights before": (lambda b: b.spoilt(unchanged), f"the checksum differs of {EMBEDDING}, "),
    "weights that are read and not used": (never_updates, f"the checksum differs of {EMBEDDING}, "),
}


def one_less(outputs: list[RequestOutput]) -> list[RequestOutput]:
    """Completion of each request."""
    return [replace(o, completions=o.completions[:-1]) for o in outputs]


ANSWER_FAULTS: dict[str, tuple[Callable[[list[RequestOutput]], list[RequestOutput]], str]] = {
    "a completion too few": (one_less, "returned 1 completions for request 0, asked were 2"),
    "an output too few": (lambda outputs: outputs[:-1], "was given 2 requests and returned 1 outputs"),
    "another order": (lambda outputs: outputs[::-1], "returned 2 outputs, or in another order"),
}


class PlantedFaults:
    """Set `engine_name`. The model is tied, as an output layer that is forgotten shows there alone."""

    engine_name: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlantedBench]:
        bench = PlantedBench(cls.engine_name, tmp_path_factory.mktemp("planted") / "model", tie=True)
        yield bench
        bench.close()

    def test_without_a_fault_every_tensor_is_proved(self, bench: PlantedBench) -> None:
        for _ in range(2):
            bench.sync()
            assert bench.unverified == []

    @pytest.mark.parametrize("change", [the_other_way_round, under_one_name])
    def test_what_is_no_fault_passes(self, bench: PlantedBench, change: Callable[..., list[object]]) -> None:
        """Buckets in another order; a tied tensor under its first name alone: no engine may keep a copy of its own for the output layer"""
        with bench.spoilt(change):  # type: ignore[arg-type]  # a Spoil
            bench.sync()

    @pytest.mark.parametrize("fault", SYNC_FAULTS)
    def test_a_sync_that_went_wrong_is_named(self, bench: PlantedBench, fault: str) -> None:
        plant, words = SYNC_FAULTS[fault]
        with plant(bench), pytest.raises(WeightSyncError, match=re.escape(words)):
            bench.sync()
        bench.heal()

    def test_an_update_while_asleep_is_refused_and_moves_nothing(self, bench: PlantedBench) -> None:
        before = bench.strategy.differing_engine_weights(bench.actor)
        bench.engine._status = EngineStatus.ASLEEP
        with pytest.raises(EngineStateError, match="update_weights while the engine is asleep"):
            bench.strategy.update_engine_weights(bench.actor)
        bench.engine._status = EngineStatus.AWAKE
        assert before == bench.strategy.differing_engine_weights(bench.actor) == []
        bench.heal()

    @pytest.mark.parametrize("fault", ANSWER_FAULTS)
    def test_an_answer_that_is_not_what_was_asked_is_named(self, bench: PlantedBench, fault: str) -> None:
        change, words = ANSWER_FAULTS[fault]
        with bench.answering(change), pytest.raises(EngineError, match=re.escape(words)):
            bench.ask()
        assert [len(output.completions) for output in bench.ask()] == [2, 2]
