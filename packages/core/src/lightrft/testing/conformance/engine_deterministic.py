"""Requirements of an engine that declares `deterministic`: a completion is the same to the last bit, whatever else is in its batch."""

from __future__ import annotations

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit, Record
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import EngineBench, requests_of
from lightrft.types import SamplingParams


class Deterministic(EngineKit, kit=True):
    """`EngineSetup.deterministic`."""

    @requirement("generate", needs=Capability.DETERMINISTIC)
    def test_a_completion_depends_on_nothing_else_in_its_batch(self, bench: EngineBench, record_property: Record) -> None:
        """Built with `deterministic`: tokens and log-probs, greedy and sampled, are bitwise the same alone, among others and in another
        order
        """
        if not self._declared(bench, Capability.DETERMINISTIC, record_property):
            return
        bench.restart(deterministic=True)
        logprobs = bench.can(Capability.LOGPROBS)
        requests = requests_of([*bench.prompts, *(bench.filling(length) for length in (7, 90, 151))], logprobs=logprobs)
        for sampling in (SamplingParams(temperature=0.0, max_new_tokens=16), SamplingParams(n=2, max_new_tokens=16)):
            together = {o.id: o.completions for o in bench.engine.generate(requests, sampling)}
            turned = {o.id: o.completions for o in bench.engine.generate(requests[::-1], sampling)}
            alone = {r.id: bench.engine.generate([r], sampling)[0].completions for r in requests}
            for how, found in (("in another order", turned), ("alone", alone)):
                other = [r.id for r in requests if found[r.id] != together[r.id]]
                assert not other, f"at temperature {sampling.temperature} requests {other} are answered otherwise {how} than in a batch"
