"""Checks that estimator, loss and their settings go together. Asked of the specs: no plugin's code is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightrft.config.ignored import is_given
from lightrft.config.model_folder import model_path_problem
from lightrft.config.schema import Config
from lightrft.errors import PluginError
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import ADVANTAGE_SETTINGS, CRITIC_SETTINGS, LOSS_SETTINGS, AdvantageSpec, PolicyLossSpec


def algorithm_problems(config: Config, registry: Registry) -> Iterator[str]:
    """One line for each pair that does not go together. Unknown names are told elsewhere."""
    yield from _kl(config)
    yield from _rollout(config)
    if config.dual_clip and config.dual_clip <= 1:
        yield f"dual_clip={config.dual_clip} is not above 1, where it would bound ordinary losses; use about 3, or 0 for none"
    estimator: AdvantageSpec | None = _known(registry, "advantage", config.advantage_estimator)
    if estimator is not None:
        yield from _estimator(config, estimator)
        yield from _critic(config, estimator)
        yield from _unread(config, "advantage_estimator", estimator.name, estimator.reads, ADVANTAGE_SETTINGS, registry, "advantage")
    loss: PolicyLossSpec | None = _known(registry, "policy_loss", config.policy_loss)
    if loss is not None:
        yield from _loss(config, loss)
        yield from _unread(config, "policy_loss", loss.name, loss.reads, LOSS_SETTINGS, registry, "policy_loss")


def compares_with_greedy(config: Config, registry: Registry) -> bool:
    """Whether the estimator needs a greedy completion for each prompt; False for one that is not known, which is told by itself."""
    estimator: AdvantageSpec | None = _known(registry, "advantage", config.advantage_estimator)
    return estimator is not None and estimator.greedy


def _known(registry: Registry, kind: str, name: str) -> Any:
    """The specification of that name; None for an unknown name or a plugin that does not load, which `check` tells."""
    try:
        return registry.spec(kind, name)
    except PluginError:
        return None


def _rollout(config: Config) -> Iterator[str]:
    if config.dynamic_sampling and config.n_samples_per_prompt < 2:
        yield (
            "dynamic_sampling=True compares the samples of one prompt, and n_samples_per_prompt=1 gives it nothing; "
            "use at least 2, or leave dynamic_sampling out"
        )
    if config.router_balance_coef and config.sp_size > 1:
        yield (
            f"router_balance_coef={config.router_balance_coef} counts the tokens of whole sequences, and sp_size={config.sp_size} divides "
            "them among ranks; leave one of the two out"
        )
    if config.overlong_buffer > config.generate_max_len:
        yield f"overlong_buffer={config.overlong_buffer} is more than generate_max_len={config.generate_max_len}; use a part of it"


def _kl(config: Config) -> Iterator[str]:
    if config.kl_coef > 0 and config.kl_estimator == "k1" and config.kl_in == "loss":
        yield "kl_estimator='k1' with kl_in='loss' has a gradient of zero mean; use kl_in='reward', or kl_estimator k2 or k3"


def _estimator(config: Config, spec: AdvantageSpec) -> Iterator[str]:
    number = config.n_samples_per_prompt
    if number < spec.min_samples:
        yield (
            f"advantage_estimator={spec.name!r} compares the samples of one prompt: n_samples_per_prompt={number} gives it nothing; "
            f"use at least {spec.min_samples}, or an estimator that compares with something else (gae, reinforce_pp, remax)"
        )


def _critic(config: Config, spec: AdvantageSpec) -> Iterator[str]:
    if not spec.critic:
        for name in CRITIC_SETTINGS:
            if is_given(config, name):
                value = getattr(config, name)
                yield f"{name}={value!r} has no effect: advantage_estimator={spec.name!r} has no critic; leave it out, or use gae"
    elif config.critic_model_name_or_path:
        path = config.critic_model_name_or_path
        if problem := model_path_problem("critic_model_name_or_path", path, trust_remote_code=config.trust_remote_code):
            yield problem


def _loss(config: Config, spec: PolicyLossSpec) -> Iterator[str]:
    if spec.sequence_ratio and config.corrects and config.mismatch_level == "token":
        yield (
            f"policy_loss={spec.name!r} has one ratio for a whole completion; with {correction_in_words(config)} set "
            "mismatch_level to sequence, or use a loss of single tokens (ppo_clip)"
        )


def correction_in_words(config: Config) -> str:
    """What asks for a correction."""
    return "logprob_gap_action='correct'" if config.logprob_gap_action == "correct" else f"max_version_lag={config.max_version_lag}"


def _unread(
    config: Config, field: str, name: str, reads: frozenset[str] | None, settings: tuple[str, ...], registry: Registry, kind: str
) -> Iterator[str]:
    """Settings that reach this kind of plugin, and that the chosen one does not read."""
    if reads is None:
        return
    for setting in settings:
        if setting not in reads and is_given(config, setting):
            readers = [entry.name for entry in registry.entries(kind) if setting in (getattr(entry.spec, "reads", None) or ())]
            remedy = f"{', '.join(readers)} would read it" if readers else "no installed one reads it"
            yield f"{setting}={getattr(config, setting)!r} has no effect with {field}={name!r}; leave it out ({remedy})"
