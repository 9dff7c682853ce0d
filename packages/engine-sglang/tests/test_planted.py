"""Every published fault is caught on SGLang itself, and by its name."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.errors import WeightSyncError
from lightrft.testing.planted import PlantedFaults
from lightrft.testing.planted_bench import PlantedBench


class TestPlanted(PlantedFaults):
    engine_name = "sglang"

    @pytest.mark.parametrize(
        ("forgotten", "words"), [("begin_weight_update", "update_weights_from_tensor"), ("end_weight_update", "begin")]
    )
    def test_an_update_outside_of_begin_and_end_is_refused_by_sglang(self, bench: PlantedBench, forgotten: str, words: str) -> None:
        engine, asked = bench.engine, []

        def call(name: str, **arguments: Any) -> None:
            asked.append(name)
            if name != forgotten:
                type(engine)._accepted(engine, name, **arguments)

        with bench.instead(_accepted=call), pytest.raises(WeightSyncError, match=f"SGLang refused {words}"):
            bench.sync()
        assert forgotten in asked
        if forgotten == "end_weight_update":
            engine._accepted("end_weight_update")
        bench.heal()
