"""What the parts of the engines' kit have in common: the engine on its bench, states by name, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import pytest

from lightrft.config.checks import check_engine
from lightrft.config.load import make_config
from lightrft.errors import EngineStateError, LightRFTError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.base import Conformance
from lightrft.testing.conformance.integrity import complaint, replaced
from lightrft.testing.engine_bench import EngineBench
from lightrft.testing.judge import Judge, TransformersJudge
from lightrft.testing.limits import within
from lightrft.testing.tiny import Family
from lightrft.types import EngineStatus, RequestOutput, SamplingParams

Record = Callable[[str, object], None]

SETTINGS_THAT_ASK: Mapping[Capability, dict[str, Any]] = {
    Capability.TENSOR_PARALLEL: {"engine_tp_size": 2},
    Capability.MEM_UTIL: {"engine_mem_util": 0.5},
    Capability.MULTIMODAL: {"mixed_mm_data": True},
    Capability.DETERMINISTIC: {"deterministic_rollout": True},
    Capability.ADAPTERS: {"lora_rank": 4, "lora_sync": "adapters"},
}
SAMPLING_THAT_ASKS: Mapping[Capability, dict[str, Any]] = {
    Capability.LOGPROBS: {},
    Capability.MIN_P: {"min_p": 0.1},
    Capability.MIN_NEW_TOKENS: {"min_new_tokens": 2},
    Capability.STOP_STRINGS: {"stop": ("x",)},
}


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(c.token_ids) for c in output.completions] for output in outputs]


class EngineKit(Conformance, kit=True):
    """One engine in this process, alone, and the questions that several parts ask of it."""

    kind = "engine"
    WIRING = frozenset({"engine_name", "family", "tie", "registry", "judge", "timeout_s"})
    engine_name: ClassVar[str]
    family: ClassVar[Family] = "qwen3"
    tie: ClassVar[bool] = False
    judge: ClassVar[Judge] = TransformersJudge()
    timeout_s: ClassVar[float] = 300.0
    """Of one test, the start of an engine included."""

    @pytest.fixture(scope="class")
    @classmethod
    def shared_bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBench]:
        folder = tmp_path_factory.mktemp("engine")
        bench = EngineBench(cls.plugin_name(), folder, family=cls.family, tie=cls.tie, judge=cls.judge, registry=cls.registry())
        yield bench
        with within(cls.timeout_s, f"engine {cls.plugin_name()!r}, told to shut down,", then=bench.abandon):
            bench.close()
        names = replaced()  # by now the engine's own modules are loaded
        if names:
            pytest.fail(complaint(names), pytrace=False)

    @pytest.fixture
    def bench(self, shared_bench: EngineBench, request: pytest.FixtureRequest, record_property: Record) -> Iterator[EngineBench]:
        """Awake, with the weights of some model (`bench.model`). The time is that of the test, too.

        After an engine that hangs, does not start or takes no weights nothing more is asked.
        """
        if shared_bench.blocked:
            record_property("blocked", shared_bench.blocked)
            pytest.skip(f"blocked by {shared_bench.blocked}")
        shared_bench.asking = request.node.name
        with within(self.timeout_s, f"engine {self.plugin_name()!r}", then=shared_bench.abandon):
            shared_bench.ready()
            yield shared_bench

    def _is(self, bench: EngineBench, status: EngineStatus, after: str) -> None:
        found = bench.engine_as_it_is.status
        if found is not status:
            bench.close()
        assert found is status, f"after {after} the status is {str(found)!r}, expected {str(status)!r}"

    def _state_error(self, bench: EngineBench, name: str, call: Callable[[], object], when: str) -> None:
        try:
            call()
        except EngineStateError:
            return
        except Exception as error:
            bench.close()
            raise AssertionError(
                f"{name} while the engine is {when} raised {type(error).__name__}: {error}; expected EngineStateError"
            ) from error
        bench.close()
        raise AssertionError(f"{name} while the engine is {when} was accepted without a word; expected EngineStateError")

    def _declared(self, bench: EngineBench, capability: Capability, record: Record) -> bool:
        """Whether it is; where not, that it is refused is asked here."""
        if bench.can(capability):
            return True
        self._refused(bench, capability)
        record("refused", str(capability))
        return False

    def _refused(self, bench: EngineBench, capability: Capability) -> None:
        settings, sampling = SETTINGS_THAT_ASK.get(capability), SAMPLING_THAT_ASKS.get(capability, {})
        try:
            if settings is not None:
                if capability in bench.spec.capabilities:
                    pytest.skip(
                        f"engine {bench.spec.name!r} has {str(capability)!r} on CUDA only; elsewhere a note says that it has no effect"
                    )
                config = make_config({"engine_type": bench.spec.name, **settings})
                check_engine(config, registry=bench.registry, world_size=2)
            else:
                params = SamplingParams(max_new_tokens=4, **sampling)
                bench.through_controller(params, logprobs=capability is Capability.LOGPROBS)
        except LightRFTError as error:
            assert str(capability) in str(error), f"the refusal does not name the capability {str(capability)!r}: {str(error)!r}"
            return
        raise AssertionError(f"{settings or sampling or 'logprobs'} was accepted by an engine that does not declare {str(capability)!r}")
