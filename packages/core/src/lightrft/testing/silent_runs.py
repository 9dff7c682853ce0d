"""Small real runs (strategy `single`, engine `hf`) in each of which something keeps the model from learning what it should, in silence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.data.prompts import Prompt
from lightrft.models.critic import make_critic
from lightrft.observe.warnings_log import Warned
from lightrft.plugins.registry import Registry
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.small_trainer import ALPHABET, config_of, prompts
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.trainer import SPMDPPOTrainer
from lightrft.trainer.build import build_scheduler
from lightrft.types import Sample
from lightrft.weights.checksum import WeightChecksum, tensor_checksum

Reward = Callable[[Sequence[Sample]], list[float | None]]
Plant = Callable[[SPMDPPOTrainer], None]


@dataclass(frozen=True, kw_only=True)
class SilentRun:
    """One situation. `expected` is the name of the warning that is due, empty for a run in which nothing is wrong."""

    name: str
    expected: str
    settings: dict[str, Any]
    reward: Reward
    plant: Plant | None = None
    rows: tuple[Prompt, ...] = ()
    by: int = 8
    """The step by which it has to be said."""


def with_digits(samples: Sequence[Sample]) -> list[float | None]:
    """A reward that a model learns in some steps: the fraction of even digits."""
    return [sum(c in "02468" for c in s.completion) / max(s.num_tokens, 1) for s in samples]


def by_prompt(samples: Sequence[Sample]) -> list[float | None]:
    """A reward that sees the prompt only."""
    return [float(s.prompt[0]) / 10 for s in samples]


def by_length(samples: Sequence[Sample]) -> list[float | None]:
    """A reward that pays for length."""
    return [float(s.num_tokens) for s in samples]


def rarely(samples: Sequence[Sample]) -> list[float | None]:
    """A reward of the completion that is 1 now and then: no reward of the prompt."""
    return [float(s.completion[:1] in tuple("0123")) for s in samples]


def nan_loss(batch: PolicyLossInput) -> PolicyLoss:
    """A loss that is not a number."""
    return PolicyLoss(per_token=batch.logprobs * float("nan"), clipped=torch.zeros_like(batch.mask))


def detached_loss(batch: PolicyLossInput) -> PolicyLoss:
    """A loss that reaches no parameter."""
    return PolicyLoss(per_token=batch.logprobs * 0.0, clipped=torch.zeros_like(batch.mask))


def losing(loss: Callable[[PolicyLossInput], PolicyLoss]) -> Plant:
    """Puts a loss in place of the run's."""

    def plant(trainer: SPMDPPOTrainer) -> None:
        trainer.learner.policy.policy_loss = loss

    return plant


def anothers_optimizer(trainer: SPMDPPOTrainer) -> None:
    """The optimizer of another model than the actor: gradients are there, and nothing moves."""
    other = trainer.strategy.prepare_trainable(tiny_causal_lm(seed=3, vocab_size=VOCAB_SIZE), optimizer=AdamWSettings(learning_rate=1e-2))
    trainer.learner.policy.optimizer = other[1]


def sampling_otherwise(**changes: Any) -> Plant:
    """An engine that draws with other settings than those that it is asked for; its log-probs are right."""

    def plant(trainer: SPMDPPOTrainer) -> None:
        generate = trainer.strategy.gather_and_generate

        def otherwise(sampling_params: Any, **given: Any) -> Any:
            drawn = sampling_params.temperature > 0
            return generate(sampling_params=replace(sampling_params, **changes) if drawn else sampling_params, **given)

        vars(trainer.strategy)["gather_and_generate"] = otherwise

    return plant


def stale_behind_its_checksums(trainer: SPMDPPOTrainer) -> None:
    """An engine that from the third sync on answers with older weights, and gives checksums of those that it was sent."""
    engine = trainer.strategy._engine().engine
    assert engine is not None
    update, checksums = engine.update_weights, engine.weight_checksums
    held: dict[tuple[str, ...], WeightChecksum] = {}

    def update_weights(buckets: Any, *, version: int) -> None:
        if version <= 2:
            update(buckets, version=version)
            return
        held.update({w.names: WeightChecksum(*tensor_checksum(w.tensor)) for bucket in buckets for w in bucket})
        vars(engine)["_version"] = version

    vars(engine).update(update_weights=update_weights, weight_checksums=lambda: held or checksums())


def scored_elsewhere(trainer: SPMDPPOTrainer) -> None:
    """Old log-probs that are a little off those of the update, as other batches round in bfloat16."""
    maker = trainer.experience_maker
    score = maker.score

    def off(batch: Any, *, seed: int) -> Any:
        found = score(batch, seed=seed)
        return replace(found, old_logprobs=found.old_logprobs * 1.001)

    vars(maker)["score"] = off


ALONE = {"n_samples_per_prompt": 1, "train_batch_size": 4, "micro_train_batch_size": 4}
WITH_ANSWERS = tuple(replace(prompt, text=f"{prompt.text} {prompt.answer}") for prompt in prompts())
SILENT_RUNS = (
    SilentRun(name="nothing is wrong", expected="", settings={}, reward=with_digits),
    SilentRun(
        name="nothing is wrong, one sample each", expected="", settings={"advantage_estimator": "reinforce_pp", **ALONE}, reward=rarely
    ),
    SilentRun(
        name="all cut off and filtered", expected="all_left_out", settings={"ignore_eos": True, "overlong_filter": True}, reward=with_digits
    ),
    SilentRun(name="all cut off", expected="all_truncated", settings={"ignore_eos": True}, reward=with_digits),
    SilentRun(
        name="remax, prompt-only reward", expected="no_gradient", settings={"advantage_estimator": "remax", **ALONE}, reward=by_prompt
    ),
    SilentRun(
        name="reinforce_pp, prompt-only reward",
        expected="prompt_only_reward",
        settings={"advantage_estimator": "reinforce_pp", **ALONE},
        reward=by_prompt,
    ),
    SilentRun(
        name="gae, prompt-only reward", expected="prompt_only_reward", settings={"advantage_estimator": "gae", **ALONE}, reward=by_prompt
    ),
    SilentRun(name="grpo, prompt-only reward", expected="prompt_only_reward", settings={}, reward=by_prompt),
    SilentRun(name="constant reward", expected="constant_reward", settings={}, reward=lambda samples: [0.0] * len(samples)),
    SilentRun(name="every reward None", expected="unrewarded", settings={}, reward=lambda samples: [None] * len(samples), by=1),
    SilentRun(name="loss NaN", expected="steps_skipped", settings={}, reward=with_digits, plant=losing(nan_loss)),
    SilentRun(name="loss without gradient", expected="no_gradient", settings={}, reward=with_digits, plant=losing(detached_loss)),
    SilentRun(name="another's optimizer", expected="weights_unmoved", settings={}, reward=with_digits, plant=anothers_optimizer),
    SilentRun(
        name="one step, one step of warm-up",
        expected="learning_rate",
        settings={"lr_warmup_steps": 1, "max_steps": 1, "train_batch_size": 16},
        reward=with_digits,
        by=0,
    ),
    SilentRun(name="warm-up longer than the run", expected="learning_rate", settings={"lr_warmup_steps": 10000}, reward=with_digits, by=0),
    SilentRun(
        name="a short run without gradient",
        expected="no_gradient",
        settings={"max_steps": 2},
        reward=with_digits,
        plant=losing(detached_loss),
        by=2,
    ),
    SilentRun(
        name="a critic that stands still",
        expected="critic_constant",
        settings={"advantage_estimator": "gae", "critic_learning_rate": 1e-12, "max_steps": 12, **ALONE},
        reward=with_digits,
        by=10,
    ),
    SilentRun(
        name="length grows to its ceiling",
        expected="length_ceiling",
        settings={"max_steps": 30, "generate_max_len": 24},
        reward=by_length,
        by=30,
    ),
    SilentRun(
        name="sampled at 0.4 in place of 1.0",
        expected="sampling",
        settings={"max_steps": 3, "generate_max_len": 24},
        reward=with_digits,
        plant=sampling_otherwise(temperature=0.4),
        by=3,
    ),
    SilentRun(
        name="sampled with top_k 3 in place of none",
        expected="sampling",
        settings={"max_steps": 3, "generate_max_len": 24},
        reward=with_digits,
        plant=sampling_otherwise(top_k=3),
        by=3,
    ),
    SilentRun(
        name="top_k 5 is not heard",
        expected="sampling",
        settings={"max_steps": 3, "top_k": 5},
        reward=with_digits,
        plant=sampling_otherwise(top_k=0),
        by=1,
    ),
    SilentRun(
        name="older weights, checksums of the new",
        expected="logprob_gap",
        settings={"max_steps": 4},
        reward=with_digits,
        plant=stale_behind_its_checksums,
        by=3,
    ),
    SilentRun(
        name="GSPO, old log-probs of other micro-batches",
        expected="first_ratio",
        settings={"max_steps": 2, "policy_loss": "gspo"},
        reward=with_digits,
        plant=scored_elsewhere,
        by=1,
    ),
    SilentRun(name="nothing is wrong, GSPO", expected="", settings={"policy_loss": "gspo"}, reward=with_digits),
    SilentRun(
        name="nothing is wrong, filters and temperature",
        expected="",
        settings={"temperature": 0.8, "top_p": 0.97, "top_k": 14, "max_steps": 12, "learning_rate": 1e-4},
        reward=with_digits,
    ),
    SilentRun(
        name="answers in the prompts", expected="label_in_prompt", settings={"max_steps": 1}, reward=with_digits, rows=WITH_ANSWERS, by=0
    ),
)


def run(case: SilentRun, folder: Path) -> list[Warned]:
    """The warnings of the run, in order."""
    config = config_of(folder, **({"strategy": "single", "engine_type": "hf", "max_steps": 8, **CHECKED} | case.settings))
    strategy = get_strategy(config, registry=Registry.discover())
    path = tiny_model_folder(folder / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=str(path))
    actor, optimizer = _trainable(strategy, tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE), config.learning_rate)
    critic = critic_optimizer = None
    if config.advantage_estimator == "gae":
        model = make_critic(tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE))
        critic, critic_optimizer = _trainable(strategy, model, config.critic_learning_rate)
    trainer = SPMDPPOTrainer(
        strategy=strategy,
        actor=actor,
        actor_optim=optimizer,
        actor_scheduler=build_scheduler(config, optimizer, num_steps=1000),
        critic=critic,
        critic_optim=critic_optimizer,
        reward_model=case.reward,
        tokenizer=tiny_tokenizer(ALPHABET),
        prompts=case.rows or prompts(),
    )
    if case.plant is not None:
        case.plant(trainer)
    try:
        trainer.fit()
    finally:
        strategy.shutdown()
    return trainer.warnings.rows


CHECKED = {"logprob_gap_prompts": 2, "verify_sync_every": 10}


def table(cases: Sequence[SilentRun] = SILENT_RUNS) -> list[dict[str, Any]]:
    """For each case what was expected and said: the sentence and its step, and whether that is right."""
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="lightrft-silent-") as folder:
            said = run(case, Path(folder))
        found = next((row for row in said if row.name == case.expected), None)
        right = not said if not case.expected else found is not None and found.step <= case.by
        shown = found or (said[0] if said else None)
        rows.append(
            {
                "case": case.name,
                "expected": case.expected,
                "right": right,
                "step": shown.step if shown else None,
                "said": shown.text if shown else "",
                "all": [f"{row.step} {row.name}" for row in said],
            }
        )
    return rows


def _trainable(strategy: Any, model: torch.nn.Module, rate: float) -> Any:
    return strategy.prepare_trainable(model, optimizer=AdamWSettings(learning_rate=rate))
