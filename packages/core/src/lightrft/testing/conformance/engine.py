"""Every requirement of `InferenceEngine` as a test. A class to inherit: name the engine.

    class TestMine(EngineConformance):
        engine_name = "mine"

The process holds one engine at a time, alone. A judge says what is right: transformers, on the same weights.
"""

from __future__ import annotations

from lightrft.testing.conformance.engine_adapters import Adapters
from lightrft.testing.conformance.engine_cache import Caches
from lightrft.testing.conformance.engine_deterministic import Deterministic
from lightrft.testing.conformance.engine_draws import Draws
from lightrft.testing.conformance.engine_ends import Ends
from lightrft.testing.conformance.engine_experts import Experts
from lightrft.testing.conformance.engine_images import Images
from lightrft.testing.conformance.engine_later import Later
from lightrft.testing.conformance.engine_limits import Limits
from lightrft.testing.conformance.engine_load import Load
from lightrft.testing.conformance.engine_options import Options
from lightrft.testing.conformance.engine_plain import Starts
from lightrft.testing.conformance.engine_ranks import Groups
from lightrft.testing.conformance.engine_seeds import Seeds
from lightrft.testing.conformance.engine_states import States
from lightrft.testing.conformance.engine_stepping import Stepping
from lightrft.testing.conformance.engine_syncs import Syncs
from lightrft.testing.conformance.engine_turns import Turns


class EngineConformance(
    Groups,
    States,
    Deterministic,
    Adapters,
    Options,
    Images,
    Experts,
    Syncs,
    Load,
    Turns,
    Stepping,
    Caches,
    Limits,
    Ends,
    Later,
    Seeds,
    Draws,
    Starts,
    kit=True,
):
    """Set `engine_name`; subclass once more with another `family` and `tie` for other architectures.

    pytest runs the parts from the last to the first: version 0 is asked for while the engine is new, and the shutdown comes at the end,
    before what needs no engine here, so that an engine that takes a minute to start is started once.
    """
