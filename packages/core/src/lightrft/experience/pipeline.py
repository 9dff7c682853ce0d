"""From prompts to a trainable batch: generate, reward, score, advantages; each step takes a stage and gives the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightrft.algorithms.kl_control import KLController
from lightrft.batch.collect import sequences_of
from lightrft.batch.stages import Rewarded, Sampled, Scored, Trainable
from lightrft.config.data_sources import prompt_sources
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.engine.rounding import bound_for
from lightrft.experience.advantages import AdvantageEstimator, AdvantageMaker
from lightrft.experience.applicable import add_not_applicable
from lightrft.experience.baselines import greedy_answers, greedy_rewards
from lightrft.experience.early import EarlyRewards
from lightrft.experience.episodes import Episodes
from lightrft.experience.gap import act_on_gap, add_gap, add_lag_weights, corrections
from lightrft.experience.images import PromptImages, ReadPrompts
from lightrft.experience.overlong import treat_overlong
from lightrft.experience.partial import PartialRollouts
from lightrft.experience.prompt_only_reward import sees_prompt_only
from lightrft.experience.reward_signal import DeadRewardMonitor
from lightrft.experience.samples import samples_of
from lightrft.experience.sampling import sampling_params
from lightrft.experience.sampling_check import SamplingCheck
from lightrft.experience.scored import of_functions, score_everywhere
from lightrft.experience.scorer import Scorer
from lightrft.experience.tags import METRIC, TagWatch
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings
from lightrft.rewards.load import NamedReward
from lightrft.rewards.models.classifier import RewardModel
from lightrft.rewards.score import Scores, score
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import RequestOutput, Sample


class ExperienceMaker:
    """Makes this rank's experience from this rank's prompts: `generate`, `reward`, `score`, `advantages`, in this order, then `conclude`.

    Every method but `conclude` is collective. What they count goes into `metrics` (the caller's, if given), to be reduced by the caller.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        tokenizer: Any,
        actor: torch.nn.Module,
        initial_model: torch.nn.Module | None,
        rewards: Sequence[NamedReward],
        advantage_estimator: AdvantageEstimator,
        critic: torch.nn.Module | None = None,
        greedy: bool = False,
        compares_groups: bool = False,
        warnings: Warnings | None = None,
        metrics: StepMetrics | None = None,
        episodes: Episodes | None = None,
        images: PromptImages | None = None,
        partial: PartialRollouts[Any] | None = None,
    ) -> None:
        """With `episodes`, a rollout is made of episodes of several turns; with `partial`, of the answers, or episodes, that are finished;
        `images` reads those of prompts.
        """
        self.strategy = strategy
        self.config = config
        self.tokenizer = tokenizer
        self.images = images or PromptImages(None, world=strategy.world)
        self.scorer = Scorer(strategy=strategy, config=config, actor=actor, reference=initial_model, critic=critic, blank=self.images.blank)
        self.greedy = greedy
        self._says_alone = compares_groups
        self.rewards = list(rewards)
        self.metrics = metrics or StepMetrics()
        self.advantage_maker = AdvantageMaker(
            strategy=strategy, config=config, estimator=advantage_estimator, metrics=self.metrics, critic=critic is not None, greedy=greedy
        )
        self.kl_control = KLController(coef=config.kl_coef, target=config.kl_target, horizon=config.kl_horizon)
        self.prompt_max_len = config.prompt_max_len
        self.sampling_check = SamplingCheck(config)
        stops = strategy.stop_tokens
        self.tags = TagWatch(tokenizer, ends=[*(stops.ids if stops is not None else ()), *config.stop_token_ids])
        self.dead_rewards = DeadRewardMonitor(patience=config.dead_reward_steps)
        self.warnings = warnings or Warnings(world=strategy.world)
        self.keep_awake = False
        """Whether more prompts follow in this step; an engine that drops its weights asleep could not take them."""
        self.episodes = episodes
        self.partial = partial
        self._early: EarlyRewards | None = None

    def generate(self, prompts: Sequence[Prompt]) -> Sampled:
        """Samples completions. The first `logprob_gap_prompts` prompts are asked for log-probs, for the gap; all, where it is corrected.

        With `reward_while_generating` the rewards of prompts that have ended begin here. Where the estimator asks for it, a greedy
        completion of each prompt comes first. With episodes, everything up to the end of each of them.
        """
        number = len(prompts) if self._corrects else self.config.logprob_gap_prompts
        if self.partial is not None:
            return self.partial.sampled(prompts, metrics=self.metrics)
        if self.episodes is not None:
            params, sleeps = sampling_params(self.config), not self.keep_awake
            return self.episodes.sampled(prompts, params, logprobs=number, sleep_engine=sleeps, metrics=self.metrics)
        read = self.images.read(prompts)
        greedy = greedy_answers(read, strategy=self.strategy, config=self.config, tokenizer=self.tokenizer) if self.greedy else None
        self._early = self._start_rewards(read) if self.config.reward_while_generating else None
        drawn = self.strategy.gather_and_generate(
            sampling_params=sampling_params(self.config),
            **read.asked,
            sleep_engine=not self.keep_awake,
            logprobs=[index < number for index in range(len(prompts))],
            on_finished=self._early.finished if self._early else None,
        )
        outputs = self._without_reserved(drawn)
        owners = [index for index, output in enumerate(outputs) for _ in output.completions]
        whole = read.whole()
        return sequences_of(
            [(whole[index][0], c) for index, output in enumerate(outputs) for c in output.completions],
            group_ids=[outputs[index].id for index in owners],
            samples=samples_of(prompts, outputs, tokenizer=self.tokenizer, pictures=read.pictures),
            greedy=[greedy[index] if greedy else None for index in owners],
            images=[whole[index][1] for index in owners],
        )

    def reward(self, batch: Sampled) -> Rewarded:
        """Runs the reward functions and reports a reward that teaches nothing. A reward that fails on one rank fails on all."""
        early = self._early
        scores = self._score_everywhere(batch.samples, (lambda: early.scores(batch)) if early else None)
        baselines = greedy_rewards(batch, score=self._score_everywhere) if self.greedy else torch.zeros(len(batch), dtype=torch.float64)
        rewarded = batch.as_stage(
            Rewarded,
            rewards=torch.tensor(scores.total, dtype=torch.float64),
            baselines=baselines,
            trains=~batch.env_failed,
        )
        for reward in self.rewards:
            if isinstance(reward.function, RewardModel):
                reward.function.tell(self.warnings)
        if self.tags.has_tags:
            self.metrics.mean(METRIC, float(self.tags.count(batch.samples)), float(len(batch)))
        for name, values in scores.parts.items():
            known = [value for value in values if value is not None]
            self.metrics.mean(f"reward/{name}", float(sum(known)), float(len(known)))
        self._count_sources(rewarded)
        add_not_applicable(self.metrics, scores, batch.samples, reward_key=self.config.reward_key)
        everyone = self.strategy.all_gather({"reward": rewarded.rewards, "group": rewarded.group_ids})
        sentence = self.dead_rewards.update(everyone["reward"].tolist(), everyone["group"].tolist())
        if sentence or self.dead_rewards.alone_for_long:
            self._say_dead(sentence, rewarded)
        return rewarded

    def treat_overlong(self, batch: Rewarded) -> Rewarded:
        """Punishes, or leaves out of the loss, completions that are too long, where the settings say so."""
        batch, punishments = treat_overlong(batch, config=self.config)
        if self.config.overlong_buffer:
            self.metrics.mean("reward/overlong", float(punishments.sum()), float(len(batch)))
        if self.config.overlong_filter:
            self.metrics.mean("rollout/left_out", float((~batch.trains).sum()), float(len(batch)))
        return batch

    def score(self, batch: Rewarded, *, seed: int) -> Scored:
        """The actor's and the reference model's log-probs, the gap to the engine's and, for a correction, the weights that follow from it;
        and the critic's values, where there is one. `seed` is that of the update which follows.
        """
        found = self.scorer.run(batch, seed=seed)
        if self._looks_at_gap:
            level, cap, copies = self.config.mismatch_level, self.config.mismatch_cap, self.strategy.mesh.sequence.size
            checked = batch if self.partial is None else self.partial.fresh(batch)
            add_gap(self.metrics, checked, found.untempered, cap=cap, level=level, copies=copies)
            if self.partial is not None:
                add_lag_weights(self.metrics, batch, found.untempered, cap=cap, level=level, copies=copies)
            self.sampling_check.add(self.metrics, checked, self.scorer.actor, strategy=self.strategy, blank=self.images.blank)
        return batch.as_stage(
            Scored,
            old_logprobs=found.old,
            reference_logprobs=found.reference,
            values=found.values,
            corrections=self._corrections(batch, found.untempered),
        )

    def advantages(self, batch: Scored) -> Trainable:
        """The completions of one prompt are on one rank."""
        return self.advantage_maker.run(batch, kl_coef=self.kl_control.coef)

    def conclude(self, metrics: dict[str, float]) -> None:
        """Acts on the reduced metrics of a rollout, the same on every rank. Local.

        Raises:
            MismatchError: the gap is beyond its limit and the settings say to stop.
        """
        if "rollout/logprob_gap" in metrics:
            act_on_gap(
                metrics["rollout/logprob_gap"],
                threshold=self.config.logprob_gap_threshold,
                rounding=bound_for(self.strategy.engine_dtype, device_type=self.strategy.world.device.type).mean,
                action="correct" if self._corrects and self.config.logprob_gap_action != "stop" else self.config.logprob_gap_action,
                warnings=self.warnings,
            )
        self.sampling_check.act(metrics, self.warnings)
        if metrics.get("rollout/unrewarded") and "unrewarded" not in self.warnings.names:
            self.warnings.say(
                "unrewarded",
                f"every reward said None (not applicable) for {metrics['rollout/unrewarded']:.0%} of this rollout's completions, which "
                "count as 0; give them a reward, or leave such rows out",
            )
        if metrics.get("episode/env_error") and "env_error" not in self.warnings.names and self.episodes is not None:
            self.warnings.say(
                "env_error",
                f"the environment failed in {metrics['episode/env_error']:.0%} of this rollout's episodes, which the loss leaves out; "
                f"the first: {self.episodes.first_error}",
            )
        if metrics.get("episode/close_error") and "env_close_error" not in self.warnings.names and self.episodes is not None:
            self.warnings.say(
                "env_close_error",
                f"close() of the environment failed in {metrics['episode/close_error']:.0%} of this rollout's episodes, which count all "
                f"the same; the first: {self.episodes.first_close_error}",
            )
        if metrics.get("episode/no_room", 0.0) >= 0.5 and "env_no_room" not in self.warnings.names:
            self.warnings.say(
                "env_no_room",
                f"{metrics['episode/no_room']:.0%} of this rollout's episodes were cut off, since no whole turn fits into generate_max_len="
                f"{self.config.generate_max_len} behind what the environment said; raise it, lower turn_max_len, or let it say less",
            )
        if (sentence := self.tags.sentence(metrics)) and "special_tokens_unseen" not in self.warnings.names:
            self.warnings.say("special_tokens_unseen", sentence)
        alone = metrics.get("rollout/groups_of_one", 0.0)
        if alone and self._says_alone:
            self._says_alone = False
            self.warnings.say(
                "groups_of_one",
                f"{alone:.0%} of this rollout's prompts have a single completion, which advantage_estimator="
                f"{self.config.advantage_estimator!r} has nothing to compare with: its advantage is 0, and it teaches nothing",
            )

    def close(self) -> None:
        """The environments of unfinished episodes are closed, and what runs them. Idempotent. Local."""
        if self.partial is not None:
            self.partial.close()
        if self.episodes is not None:
            self.episodes.close()

    def tokenize_fn(self, texts: Sequence[str], max_length: int, padding: bool = True) -> dict[str, Any]:
        """Token ids of texts, truncated at `max_length`: lists without padding, [B, P] tensors with it. Local."""
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"} if padding else {}
        return dict(self.tokenizer(list(texts), max_length=max_length, truncation=True, add_special_tokens=False, **options))

    @property
    def vllm_mp_group(self) -> Any:
        """The process group of the ranks that share an engine, whichever engine it is; None where there is no process group."""
        return self.strategy.engine_group

    @property
    def _corrects(self) -> bool:
        return self.config.corrects

    @property
    def _looks_at_gap(self) -> bool:
        return self._corrects or self.config.logprob_gap_prompts > 0

    def _corrections(self, batch: Sampled, untempered: torch.Tensor) -> torch.Tensor:
        if not self._corrects:
            return batch.loss_mask.float()
        level, cap = self.config.mismatch_level, self.config.mismatch_cap
        return corrections(batch, untempered, level=level, cap=cap, beyond=self.config.mismatch_beyond, floor=self.config.mismatch_floor)

    def _score_everywhere(self, samples: Sequence[Sample], functions: Callable[[], Scores] | None = None) -> Scores:
        key = self.config.reward_key
        return score_everywhere(samples, rewards=self.rewards, strategy=self.strategy, reward_key=key, functions=functions)

    def _score_here(self, samples: Sequence[Sample]) -> Scores:
        names = [reward.name for reward in self.rewards]
        return score(samples, rewards=of_functions(self.rewards), reward_key=self.config.reward_key, names=names)

    def _without_reserved(self, outputs: Sequence[RequestOutput]) -> Sequence[RequestOutput]:
        """Counts the completions that are truncated."""
        if self.images.blank is None:
            return outputs
        kept, number = self.images.without_reserved(outputs)
        self.metrics.mean("rollout/image_tokens", float(number), float(sum(len(output.completions) for output in outputs)))
        return kept

    def _count_sources(self, batch: Rewarded) -> None:
        """The fraction and the mean reward of each source, where `prompt_data` names several."""
        names = list(prompt_sources(self.config.prompt_data))
        for name in names if len(names) > 1 else ():
            own = torch.tensor([sample.source == name for sample in batch.samples], dtype=torch.bool)
            self.metrics.mean(f"source/{name}/fraction", float(own.sum()), float(len(batch)))
            self.metrics.mean(f"source/{name}/reward", float(batch.rewards[own].sum()), float(own.sum()))

    def _start_rewards(self, read: ReadPrompts) -> EarlyRewards:
        def samples(index: int, output: RequestOutput) -> list[Sample]:
            return samples_of([read.prompts[index]], [output], tokenizer=self.tokenizer, pictures=[read.pictures[index]])

        return EarlyRewards(read=samples, score=self._score_here)

    def _say_dead(self, sentence: str | None, batch: Rewarded) -> None:
        """A reward without a signal; where prompts have a single completion each, only one that sees nothing but the prompt. Collective."""
        if sentence is None or self.dead_rewards.fault == "zero_variance":
            swapped = sees_prompt_only(batch, rewards=self.rewards, strategy=self.strategy, reward_key=self.config.reward_key)
            if swapped:
                self.warnings.say(
                    "prompt_only_reward",
                    f"reward sees the prompt only: it is one number for all completions of a prompt, and stayed the same for {swapped} of "
                    f"{swapped} samples that were given the completion of another prompt; let the function read sample.completion",
                )
                return
        if sentence is not None:
            self.warnings.say(self.dead_rewards.fault, sentence)
