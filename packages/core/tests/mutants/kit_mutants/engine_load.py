"""Faults of an engine that show under load, with other seeds or with long prompts only. One for each class here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from kit_mutants.engine_draws import each
from kit_mutants.mutant import mutant
from lightrft.engine.base import EngineSetup, WakeTag
from lightrft.engine.hf import HFEngine
from lightrft.plugins.specs import Capability
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import Completion, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket

Outputs = list[RequestOutput]

STALE = "nothing_computed_with_older_weights_is_used_again"
ASLEEP = "no_cache_outlives_a_sync_that_comes_while_it_sleeps"
NEW = "other_seeds_draw_otherwise"
LOAD = "under_load_every_completion_is_the_models"


class BlockCache(FakeEngine):
    """Answers a prompt of `blocks` whole blocks and more with the weights that it first met them under, for as long as it keeps them."""

    block, blocks = 256, 1

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._met: dict[tuple[int, ...], int | None] = {}

    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        now, cached = self._weights, request.prompt_token_ids[: self.block * self.blocks]
        if len(request.prompt_token_ids) > self.block * self.blocks:
            self._weights = self._met.setdefault(tuple(cached), now)
        completion = super()._complete(request, sampling, sample)
        self._weights = now
        return completion


@mutant("fake engine", "a prefix cache with blocks of 256 tokens outlives a sync", test=STALE, words="a prompt of 2000 tokens")
class StaleBlockOf256(BlockCache):
    pass


@mutant("fake engine", "a prefix cache with blocks of 1,500 tokens outlives a sync", test=STALE, words="a prompt of 2000 tokens")
class StaleBlockOf1500(BlockCache):
    block = 1500


@mutant("fake engine", "of a prefix cache the second block of 1,100 tokens outlives a sync", test=STALE, words="a prompt of 2201 tokens")
class StaleSecondBlock(BlockCache):
    block, blocks = 1100, 2

    @property
    def cache_block(self) -> int:
        return self.block


@mutant("fake engine", "a prefix cache outlives a sync that comes while the engine sleeps", test=ASLEEP, words="after sleep(1) and a sync")
class StaleAfterSleep(BlockCache):
    def reset_cache(self) -> None:
        super().reset_cache()
        if self.status == "awake":
            self._met.clear()


@mutant(
    "fake engine", "it says that a block of its cache is longer than any context", test="a_block_of_its_cache_is_a_number_of_tokens",
    words="two of them do not fit",
)  # fmt: skip
class BlockOfAMillion(FakeEngine):
    @property
    def cache_block(self) -> int:
        return 2**20


@mutant("fake engine", "every call has the same seed", test=NEW, words="is the same each time", hides=[Capability.SEED])
class ConstantSeed(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(replace(request, seed=0), sampling, sample, tokens)


@mutant(
    "fake engine", "a seed is the place in the batch", test=NEW, words="the next call, request 0, sample 0 drew", hides=[Capability.SEED]
)
class SeedOfThePlace(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(replace(request, seed=request.id), sampling, sample, tokens)


@mutant(
    "fake engine", "neighbouring requests have the same noise", test=NEW, words="one call, request 1, sample 0 drew",
    hides=[Capability.SEED],
)  # fmt: skip
class NeighboursShareTheirNoise(FakeEngine):
    call = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        self.call += 1
        return super().generate([replace(r, seed=self.call) for r in requests], sampling)


class CountedSeeds(FakeEngine):
    """Draws with numbers of its own, counted up."""

    counted = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        self.counted += len(requests)
        return super().generate([replace(r, seed=self.counted + r.id) for r in requests], sampling)


@mutant("fake engine", "a sync sets the generator back", test=NEW, words="a call after a sync, request", hides=[Capability.SEED])
class ReseededByASync(CountedSeeds):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=version)
        self.counted = 0


@mutant("fake engine", "waking up sets the generator back", test=NEW, words="a call after a sleep, request", hides=[Capability.SEED])
class ReseededBySleep(CountedSeeds):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self.counted = 0 if self.status == "asleep" else self.counted
        super().wake_up(tags)


@mutant(
    "fake engine", "one number is drawn for all positions of a completion", test="each_token_is_a_draw_of_its_own",
    words="serves all positions",
)  # fmt: skip
class OneDrawForAllPositions(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        repeated = sampling.temperature > 0 and sampling.ignore_eos and tokens
        return tokens[-1] if repeated else super()._next(request, sampling, sample, tokens)


def full(requests: Sequence[Request], sampling: SamplingParams) -> bool:
    """Whether so much is asked that the fault shows."""
    return len(requests) * sampling.n > 64


@mutant("hf", "it scores while it still generates", test=LOAD, words="log-probs differ by")
class ScoresWhileItGenerates(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        def early(c: Completion) -> Completion:
            return replace(c, logprobs=[p - 0.1 for p in c.logprobs]) if c.logprobs and len(c.logprobs) < 3 else c

        outputs = super().generate(requests, sampling)
        return each(outputs, early) if full(requests, sampling) else outputs


@mutant("hf", "log-probs of the neighbouring sample where many are scored at once", test=LOAD, words="under load, request")
class LogprobsOfTheNeighbour(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if not full(requests, sampling):
            return outputs
        swapped = outputs[-1].completions[1::-1] + outputs[-1].completions[2:]
        mixed = [replace(c, logprobs=other.logprobs) for c, other in zip(outputs[-1].completions, swapped, strict=True)]
        return [*outputs[:-1], replace(outputs[-1], completions=tuple(mixed))]


@mutant("hf", "no log-probs for what did not fit into the first batches", test=LOAD, words="has no log-probs")
class LogprobsOfTheFirstBatches(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate([replace(r, logprobs=r.logprobs and i < 16) for i, r in enumerate(requests)], sampling)


@mutant("fake engine", "more than a batch is answered in the order of the ends", test=LOAD, words="another order")
class OrderOfTheEnds(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return sorted(outputs, key=lambda o: max(len(c.token_ids) for c in o.completions)) if len(requests) > 12 else outputs


@mutant("fake engine", "the last prompt of many has the tokens of its neighbour", test=LOAD, words="under load a greedy completion")
class TokensOfTheNeighbour(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if sampling.temperature > 0 or len(requests) < 17:
            return outputs
        return [*outputs[:-1], replace(outputs[-1], completions=outputs[-2].completions)]


@mutant("fake engine", "the last ones of many carry the version before", test=LOAD, words="carries the versions")
class LateVersion(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if len(requests) < 17:
            return outputs
        old = tuple(replace(c, weight_version=c.weight_version - 1) for c in outputs[-1].completions)
        return [*outputs[:-1], replace(outputs[-1], completions=old)]


@mutant("fake engine", "beyond a batch the samples of a prompt are copies", test=LOAD, words="one draw, copied")
class CopiesUnderLoad(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if len(requests) < 17:
            return outputs
        return [replace(o, completions=o.completions[:1] * sampling.n) for o in outputs]
