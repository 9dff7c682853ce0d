"""Numbers of a run that say that learning goes wrong: watches the metrics of each step and says so in words, once for each stretch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.engine.stop_tokens import StopTokens
from lightrft.observe.warning_names import Finding, WarningName

CONSTANT = -0.05
"""Explained variance of a critic that is as good as a constant, as it is at its start: it comes out a little below zero, by noise."""
NOTHING_EXPLAINED = 0.001
"""Explained variance, of either sign, up to which a critic moves no more than rounding does; one that learns slowly strays further."""
ENDED_AT_FIRST = 0.5
"""Fraction of completions that ended by themselves in the first rollouts, below which a ceiling on length is no news."""
BASELINE_STEPS = 3
"""The first steps of a run, whose mean later ones are compared with."""


@dataclass
class Watch:
    """One metric. `bad(value, baseline)` gives a sentence or None; said after `patience` bad steps in a row, once until a good one."""

    name: WarningName
    metric: str
    patience: int
    bad: Callable[[float, float], str | None]
    baseline_of: int = BASELINE_STEPS

    def __post_init__(self) -> None:
        self._first: list[float] = []
        self._streak = 0

    def update(self, metrics: Mapping[str, float]) -> str | None:
        """Takes one step. A sentence when there is something to say; steps without the metric, or with NaN for it, do not count."""
        value = metrics.get(self.metric)
        if value is None or math.isnan(value):
            return None
        if len(self._first) < self.baseline_of:
            self._first.append(value)
            return None
        baseline = sum(self._first) / len(self._first) if self._first else math.nan
        sentence = self.bad(value, baseline)
        self._streak = self._streak + 1 if sentence else 0
        return sentence if self._streak == self.patience else None


class Monitors:
    """All watches of a run. Not collective: metrics are global, so every rank finds the same."""

    def __init__(self, config: Config, *, first_ratio_limit: float) -> None:
        self.watches = [*(watch(config) for watch in WATCHES), _first_ratio(first_ratio_limit)]

    def observe(self, metrics: Mapping[str, float]) -> list[Finding]:
        """What one step's metrics give rise to."""
        found = [(watch.name, watch.update(metrics)) for watch in self.watches]
        return [(name, sentence) for name, sentence in found if sentence]

    def state_dict(self) -> dict[str, Any]:
        """What the watches have seen, as plain values."""
        return {watch.name: {"first": list(watch._first), "streak": watch._streak} for watch in self.watches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; a watch that was not there before begins."""
        for watch in self.watches:
            if watch.name in state:
                watch._first, watch._streak = list(state[watch.name]["first"]), state[watch.name]["streak"]


def _first_ratio(limit: float) -> Watch:
    def off(value: float, _: float) -> str | None:
        if value <= limit:
            return None
        return (
            f"the first step of an update is not on its own policy: a token's log-ratio is {value:.3g} nats before anything has moved "
            f"(limit {limit:.3g}, a tenth of the narrower clip), so old log-probs are not those of the update, and clips bite on noise; "
            "look for dropout, for kernels that round otherwise from call to call, and for a score phase of one's own"
        )

    return Watch("first_ratio", "train/first_ratio_error", 1, off, baseline_of=0)


def _length_ceiling(config: Config) -> Watch:
    def at_the_ceiling(value: float, first: float) -> str | None:
        if 1.0 - first < ENDED_AT_FIRST or (1.0 - value) * config.length_factor >= 1.0 - first:
            return None
        return (
            f"length at its ceiling: {value:.0%} of the completions are cut off at generate_max_len={config.generate_max_len}, {first:.0%} "
            f"were in the first {BASELINE_STEPS} rollouts: lengths grow, and cannot be seen to; see whether the reward pays for length, "
            "or raise generate_max_len"
        )

    return Watch("length_ceiling", "rollout/truncated", 3, at_the_ceiling)


def _critic_constant(config: Config) -> Watch:
    def constant(value: float, _: float) -> str | None:
        if abs(value) > NOTHING_EXPLAINED:
            return None
        return (
            f"critic explains nothing: explained variance {value:.3f}, about 0 for {2 * config.monitor_steps} rollouts, is that of one "
            "number for all tokens; look at critic/grad_norm and critic_learning_rate, and whether returns differ at all"
        )

    return Watch("critic_constant", "critic/explained_variance", 2 * config.monitor_steps, constant, baseline_of=0)


def _length_explosion(config: Config) -> Watch:
    def longer(value: float, first: float) -> str | None:
        if value <= config.length_factor * first or not first:
            return None
        return (
            f"length explosion: completions have {value:.0f} tokens in the mean, {value / first:.1f} times the {first:.0f} of the first "
            f"{BASELINE_STEPS} rollouts (length_factor={config.length_factor:g}); see whether the reward pays for length, and look at some "
            "of the longest"
        )

    return Watch("length_explosion", "rollout/length_mean", 1, longer)


def _length_collapse(config: Config) -> Watch:
    def shorter(value: float, first: float) -> str | None:
        if value * config.length_factor >= first:
            return None
        return (
            f"length collapse: completions have {value:.1f} tokens in the mean, the first {BASELINE_STEPS} rollouts had {first:.1f} "
            f"(length_factor={config.length_factor:g}); see whether the reward can be had without an answer"
        )

    return Watch("length_collapse", "rollout/length_mean", 1, shorter)


def _entropy_collapse(config: Config) -> Watch:
    def certain(value: float, first: float) -> str | None:
        if value >= config.entropy_fraction * first or first <= 0:
            return None
        return (
            f"entropy collapse: {value:.4f} nats per token, {value / first:.1%} of the first {BASELINE_STEPS} rollouts' {first:.4f} "
            f"(entropy_fraction={config.entropy_fraction:g}), so samples hardly differ and little more is learned; lower the learning "
            "rate, or set an entropy bonus, a KL or a higher upper clip"
        )

    return Watch("entropy_collapse", "rollout/entropy", config.monitor_steps, certain)


def _kl_blow_up(config: Config) -> Watch:
    def far(value: float, _: float) -> str | None:
        if value <= config.kl_limit:
            return None
        return (
            f"KL blow-up: the actor is {value:.3g} nats per token from the initial model (kl_limit={config.kl_limit:g}); raise kl_coef, "
            "lower the learning rate, and look at samples: the reward may be exploited"
        )

    return Watch("kl_blow_up", "train/kl", 1, far, baseline_of=0)


def _critic_useless(config: Config) -> Watch:
    def useless(value: float, _: float) -> str | None:
        if value >= CONSTANT:
            return None
        return (
            f"critic explains nothing: explained variance {value:.2f}, below zero for {config.monitor_steps} rollouts, is worse than a "
            "constant; warm the critic up for longer, raise its learning rate, or look whether returns are of its scale"
        )

    return Watch("critic_useless", "critic/explained_variance", config.monitor_steps, useless, baseline_of=0)


WATCHES = (_length_ceiling, _critic_constant, _length_explosion, _length_collapse, _entropy_collapse, _kl_blow_up, _critic_useless)


def differing_ends(stops: StopTokens | None) -> Finding | None:
    """Model files that disagree on the token that ends a text. Local."""
    sentence = stops.conflict() if stops is not None else None
    return ("stop_tokens", sentence) if sentence else None


def leak(prompts: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> Finding | None:
    """Evaluation prompts that are training prompts too, with the same images, spaces aside. Local."""
    trained = {(" ".join(prompt.text.split()), prompt.images) for prompt in prompts}
    both = [prompt.text for prompt in eval_prompts if (" ".join(prompt.text.split()), prompt.images) in trained]
    if not both:
        return None
    return (
        "evaluation_leak",
        f"evaluation leaks into training: {len(both)} of {len(eval_prompts)} evaluation prompts are also training prompts, the first is "
        f"{both[0][:60]!r}; the evaluation then measures memory; take them out of prompt_data or eval_data",
    )
