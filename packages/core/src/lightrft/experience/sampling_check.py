"""Whether the engine samples as it was asked: the mean of -log p of sampled tokens against the exact entropy of the distribution asked for.

Of tokens x_t that are drawn from p_t, -log p_t(x_t) - H(p_t) has mean 0 whatever the model is, and the variance of -log p_t under
p_t. An engine with another temperature, top_k or top_p is off by tenths of nats, though its log-probs (of the plain distribution)
are right to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightrft.batch.images import BlankPrompt
from lightrft.batch.micro_batch import MicroBatch
from lightrft.batch.stages import Sampled, columns_of
from lightrft.config.schema import Config
from lightrft.engine.filters import filter_logits
from lightrft.experience.batching import update_batching
from lightrft.experience.sampling import sampling_params
from lightrft.experience.scoring import score_columns
from lightrft.models.score import label_logits
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.strategy_base import StrategyBase

EXCESS = "rollout/surprise_excess"
OUTSIDE = "rollout/sampled_outside"
MOST_SIGMAS, LEAST_NATS = 6.0, 0.05
"""Both have to be exceeded: noise has no more of the first, rounding in bfloat16 no more of the second."""
MOST_OUTSIDE = 0.05
"""Fraction of tokens outside of what top_k, top_p and min_p keep: those at their edge fall on either side by rounding."""
MEMORY = 0.9
"""Weight of the rollouts before, for each further one."""
ROWS = 64
"""Positions whose whole distribution is looked at at a time."""
MOST_LOGITS = 2**27
"""Bound on positions x vocabulary of one pass: what a completion has beyond is not looked at (half a GiB in float32)."""


class SamplingCheck:
    """Looks at one completion of each of the gate's prompts (`logprob_gap_prompts` of each rank), in every rollout."""

    def __init__(self, config: Config) -> None:
        self.sampling = sampling_params(config)
        # Without a stop token at first it is another distribution; of partial rollouts, the short answers are trained first.
        self.number = 0 if self.sampling.min_new_tokens or config.max_version_lag else config.logprob_gap_prompts
        self._difference = self._variance = self._tokens = 0.0
        self._told = False

    def add(self, metrics: StepMetrics, batch: Sampled, actor: Any, *, strategy: StrategyBase, blank: BlankPrompt | None = None) -> None:
        """Adds what the actor says of those completions: one forward pass for each. Collective."""
        if not self.number:
            return
        known = [index for index in range(len(batch)) if bool(batch.has_logprobs[index])]
        groups = batch.group_ids.tolist()
        firsts = list({groups[index]: index for index in reversed(known)}.values())[::-1][: self.number]
        vocabulary = strategy.unwrap(actor).config.get_text_config().vocab_size
        part = beginnings(batch.select(torch.tensor(sorted(firsts), dtype=torch.int64)), longest=max(MOST_LOGITS // vocabulary, 1))
        alone = [torch.tensor([index]) for index in range(len(part))]
        batching = update_batching(strategy.config, strategy, model=actor, training=False, blank=blank)
        columns = score_columns(lambda micro: self._facts(actor, micro), part, alone, number=3, strategy=strategy, batching=batching)
        difference, variance, outside = (float(part.sampled(column).double().sum()) for column in columns)
        sums = {"tokens": float(part.loss_mask.sum()), "difference": difference, "variance": variance, "outside": outside}
        metrics.add("sampling_check", sums, self._finish, copies=strategy.mesh.sequence.size)

    def act(self, metrics: Mapping[str, float], warnings: Warnings) -> None:
        """Says it once for each stretch when the rollouts so far cannot be draws from what was asked. Local; the same on every rank."""
        if EXCESS not in metrics:
            return
        mean = self._difference / max(self._tokens, 1.0)
        sigmas = abs(self._difference) / math.sqrt(max(self._variance, 1e-12))
        outside = metrics[OUTSIDE]
        wrong = (sigmas > MOST_SIGMAS and abs(mean) > LEAST_NATS) or outside > MOST_OUTSIDE
        if wrong and not self._told:
            warnings.say("sampling", self._sentence(mean, sigmas, outside))
        self._told = wrong

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        names = ("_difference", "_variance", "_tokens", "_told")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        vars(self).update(state)

    def _finish(self, total: Mapping[str, float]) -> dict[str, float]:
        if not total["tokens"]:
            return {}
        self._difference = MEMORY * self._difference + total["difference"]
        self._variance = MEMORY**2 * self._variance + total["variance"]
        self._tokens = MEMORY * self._tokens + total["tokens"]
        return {EXCESS: total["difference"] / total["tokens"], OUTSIDE: total["outside"] / total["tokens"]}

    def _facts(self, actor: Any, micro: MicroBatch) -> Sequence[torch.Tensor]:
        """Of each label, float32 [M]: -log p - H, the variance of -log p, and 1 where p is 0."""
        logits = label_logits(actor, micro)
        parts = [self._of(rows, labels) for rows, labels in zip(torch.split(logits, ROWS), torch.split(micro.labels, ROWS), strict=True)]
        return micro.parts.whole([torch.cat(column) for column in zip(*parts, strict=True)] if parts else [logits.new_zeros(0)] * 3)

    def _of(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        surprise = -filter_logits(logits / self.sampling.temperature, self.sampling).log_softmax(-1)
        weights = (-surprise).exp()
        finite = surprise.masked_fill(surprise == torch.inf, 0.0)
        entropy = (weights * finite).sum(-1)
        variance = (weights * finite**2).sum(-1) - entropy**2
        found = surprise.gather(-1, labels[:, None]).squeeze(-1)
        outside = found == torch.inf
        return torch.where(outside, 0.0, found - entropy), torch.where(outside, 0.0, variance), outside.float()

    def _sentence(self, mean: float, sigmas: float, outside: float) -> str:
        asked = self.sampling
        settings = f"temperature={asked.temperature:g}, top_p={asked.top_p:g}, top_k={asked.top_k}, min_p={asked.min_p:g}"
        if outside > MOST_OUTSIDE:
            found = f"{outside:.0%} of the tokens looked at are none that these settings leave"
        else:
            side, cause = ("below", "a lower temperature or a filter") if mean < 0 else ("above", "a higher temperature")
            distance = f"{abs(mean):.2f} nats per token {side} the exact entropy ({sigmas:.0f} standard errors)"
            found = f"the mean of -log p is {distance}, as with {cause}"
        return f"the engine does not sample as it was asked ({settings}): {found}; look at what the engine makes of these settings"


def beginnings(batch: Sampled, *, longest: int) -> Sampled:
    """The first `longest` tokens of each sequence: which they are does not depend on what was drawn."""
    starts, lengths = batch.offsets[:-1], batch.lengths.clamp(max=longest)
    ranges = [torch.arange(start, start + length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *ranges])
    kept = {name: getattr(batch, name)[tokens] for name, per in columns_of(Sampled).items() if per == "token"}
    return replace(batch, offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), **kept)
