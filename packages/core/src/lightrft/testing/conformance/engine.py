"""Does an inference engine keep every promise of `InferenceEngine`? A class to inherit: name the engine, and each promise is a test.

    class TestMine(EngineConformance):
        engine_name = "mine"

The process holds one engine at a time, alone. A judge says what is right: transformers, on the same weights.
"""

from __future__ import annotations

import pytest

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import Draws
from lightrft.testing.conformance.engine_ends import Ends
from lightrft.testing.conformance.engine_kit import SAMPLING_THAT_ASKS, SETTINGS_THAT_ASK, Record
from lightrft.testing.conformance.engine_states import States
from lightrft.testing.conformance.engine_syncs import Syncs
from lightrft.testing.conformance.promise import promise
from lightrft.testing.engine_bench import EngineBench


class EngineConformance(Draws, Ends, Syncs, States, kit=True):
    """Set `engine_name`; subclass once more with another `family` and `tie` for other architectures."""

    @promise("capabilities")
    @pytest.mark.parametrize("capability", sorted({**SETTINGS_THAT_ASK, **SAMPLING_THAT_ASKS}))
    def test_what_is_not_declared_is_refused(self, bench: EngineBench, record_property: Record, capability: Capability) -> None:
        """Before an engine is started where a setting asks for it, before it is called where a request does"""
        if bench.can(capability):
            return
        self._refused(bench, capability)
        record_property("refused", str(capability))
