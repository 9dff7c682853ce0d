"""Whether the engine samples from the actor: fixed prompts before and after a sync, its log-probs against the trainer's."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

import torch

from lightrft.batch.collect import answers_of
from lightrft.batch.planning import Batching
from lightrft.config.schema import Config
from lightrft.diagnostics.logprob_agreement import Gap, ask, gap_between
from lightrft.engine.rounding import bound_for
from lightrft.errors import ModelError, WeightSyncError
from lightrft.experience.scoring import score_logprobs
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import EngineStatus, SamplingParams

NUM_OF_DATA = 2
NEAR, FAR = 160, 2000
"""Tokens of the drawn prompts, where the context has room: more than a usual block of a prefix cache, and far more than any, so that a
cache that was not reset is met."""
NEW_TOKENS = 4


class SyncProbe:
    """Every rank asks its engine the same prompts, so each engine group is verified. Making one, and its methods, are collective."""

    def __init__(
        self, *, strategy: StrategyBase, actor: torch.nn.Module, config: Config, prompts: Sequence[Sequence[int]], tokenizer: Any
    ) -> None:
        self.strategy = strategy
        self.actor = actor
        self.config = config
        self.sampling = SamplingParams(temperature=0.0, max_new_tokens=min(NEW_TOKENS, config.generate_max_len), ignore_eos=True)
        engine = strategy.inference_engine
        self.prompts = probe_prompts(
            prompts,
            special_ids=tokenizer.all_special_ids,
            block=int(strategy.all_reduce(engine.cache_block if engine is not None else 0, "max")),
            longest=config.prompt_max_len + config.generate_max_len - self.sampling.max_new_tokens,
            seed=config.seed,
        )
        self.bound = bound_for(strategy.engine_dtype, device_type=strategy.world.device.type)
        self._seconds = 0.0

    def is_scheduled(self, step: int) -> bool:
        """At the first sync (step 0), at the first with weights that were trained, and every `verify_sync_every` steps."""
        return step <= 1 or step % self.config.verify_sync_every == 0

    def before_sync(self) -> None:
        """Asks once, so that a cache which outlives the sync holds these prompts. An engine that dropped its weights has no cache."""
        start = time.perf_counter()
        if not (self.strategy.inference_engine_status is EngineStatus.ASLEEP and self.config.engine_sleep_level == 2):
            ask(self.strategy, self.prompts, self.sampling)
        self._seconds = time.perf_counter() - start

    def after_sync(self) -> dict[str, float]:
        """Asks again and compares; leaves the engine awake, as the next rollout needs it. Returns metrics.

        Raises:
            WeightSyncError: the gap is beyond what the dtype explains; on all ranks.
            ModelError: the actor itself gives no numbers; on all ranks.
        """
        start = time.perf_counter()
        gap = self._gap(self.prompts)
        if gap.trainer_lost:
            raise ModelError(self._no_numbers())
        if not gap.within(self.bound):
            raise WeightSyncError(self._message(gap))
        self._seconds += time.perf_counter() - start
        return {"verify/gap": gap.mean, "verify/gap_max": gap.largest, "time/verify_s": self._seconds}

    def _gap(self, prompts: Sequence[Sequence[int]]) -> Gap:
        answers = answers_of(ask(self.strategy, prompts, self.sampling))
        batching = Batching(train_batch_size=1, micro_batch_size=self.config.micro_rollout_batch_size)
        parts = batching.micro_batches(answers, torch.arange(len(answers)))
        [mine] = score_logprobs(self.actor, answers, parts, strategy=self.strategy, batching=batching, temperatures=(1.0,))
        return gap_between(answers, mine, strategy=self.strategy)

    def _no_numbers(self) -> str:
        lost, largest = [], 0.0
        for weight in (w for bucket in self.strategy.export_weights(self.actor) for w in bucket if w.tensor.is_floating_point()):
            lost += [weight.names[0]] if _lost(weight.tensor) else []
            largest = max(largest, float(weight.tensor.abs().max())) if weight.tensor.numel() else largest
        trained = ", and at learning_rate, with which it was trained" if self.strategy.weight_version > 1 else ""
        cause = (
            f"its weights hold NaN or infinity, first in {lost[0]} ({len(lost)} in all)"
            if lost
            else f"its weights are numbers, the largest {largest:.3g}, so look at config.json (rotary scaling, epsilons){trained}"
        )
        return f"the model's own log-probs of fixed prompts are NaN, whatever the engine answers: {cause}"

    def _message(self, gap: Gap) -> str:
        return (
            f"engine {self.config.engine_type!r} does not answer as the actor does after sync {self.strategy.weight_version}: log-probs of "
            f"{len(self.prompts)} fixed prompts differ by {gap.mean:.3g} nats in the mean, {gap.largest:.3g} at most (rounding explains "
            f"{self.bound.mean:g} and {self.bound.largest:g}); {self._reason()}; `lightrft bisect-mismatch` with the same settings looks "
            "for the cause"
        )

    def _reason(self) -> str:
        fresh = self._gap(rotated(self.prompts))
        self.strategy.reset_engine_cache()
        if self._gap(self.prompts).within(self.bound):
            return "once its caches are reset, the same prompts agree, so it answered from a cache of older weights"
        if fresh.within(self.bound):
            return (
                f"prompts that it was never asked agree (mean {fresh.mean:.2g}) and the same ones do not, even after a reset of its "
                "caches, so it answers from a cache of older weights that a reset leaves"
            )
        differing = self.strategy.differing_engine_weights(self.actor)
        if differing is None:
            return "it gives no checksums of its weights, so no layer can be named"
        if differing:
            return f"the first tensor that differs is {differing[0]} ({len(differing)} in all)"
        return (
            "the checksums of its weights are the actor's, so look at the order of the parts of a fused tensor, which they do not see, "
            "at positions, padding and the convention of its log-probs"
        )


def _lost(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def probe_prompts(
    prompts: Sequence[Sequence[int]], *, special_ids: Collection[int], block: int, longest: int, seed: int
) -> list[list[int]]:
    """The first prompts of the data, and long ones drawn from the tokens of the first hundred: tokens that the model takes as text.

    One of `NEAR` tokens and one of `FAR`, or of more than two blocks of the engine's prefix cache where that is more (`block`, 0: not
    known); none of more than `longest`, what the context holds.
    """
    special = set(special_ids)
    known = sorted({token for prompt in prompts[:100] for token in prompt} - special) or sorted({t for p in prompts[:1] for t in p})
    generator = torch.Generator().manual_seed(seed)
    lengths = (min(NEAR, longest), min(max(FAR, 2 * block + 1), longest))
    drawn = [torch.randint(len(known), (length,), generator=generator).tolist() for length in lengths]
    return [*(list(prompt) for prompt in prompts[:NUM_OF_DATA]), *([known[index] for index in row] for row in drawn)]


def rotated(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Other prompts of the same tokens and lengths: each begins with another token (or is left out), so no cache of the given ones fits.

    Where a few tokens make up all prompts, another one may begin with the same tokens: of all turns the one that shares least with any of
    them is taken, as some engines find a single token in their cache.
    """
    turned = []
    for prompt in prompts:
        turns = ([*prompt[at:], *prompt[:at]] for at, token in enumerate(prompt) if token != prompt[0])  # one at a time: n of n tokens
        least = min(turns, key=lambda turn: max(_shared_prefix(turn, given) for given in prompts), default=None)
        if least is not None:
            turned.append(least)
    return turned


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
