"""The parts of a trainer: the models that it gets, and the parts that it makes from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lightrft.batch.stages import Trainable
from lightrft.config.checks import check_trainer
from lightrft.config.loss_settings import first_ratio_limit
from lightrft.config.schema import Config
from lightrft.data.mixture import mixture_of
from lightrft.data.prompts import Prompt
from lightrft.data.sampler import PromptSampler
from lightrft.diagnostics.image_check import ImageCheck
from lightrft.diagnostics.learning_watch import LearningWatch
from lightrft.diagnostics.monitors import Monitors
from lightrft.diagnostics.sync_probe import SyncProbe
from lightrft.engine.image_reader import ImageReader
from lightrft.experience.advantages import AdvantageEstimator
from lightrft.experience.dynamic import DynamicSampling
from lightrft.experience.episodes import chosen_episodes
from lightrft.experience.images import PromptImages, text_of_prompts
from lightrft.experience.partial_episodes import chosen_partial
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.phase_clock import PHASES, PhaseClock, PhaseFunction, check_phase_names
from lightrft.observe.warning_names import Finding
from lightrft.observe.warnings_log import Warnings
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import AdvantageSpec, PolicyLossSpec
from lightrft.run.report import RunReport
from lightrft.run.run_folder import log_folder
from lightrft.strategy import ema
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase
from lightrft.trainer.critic_update import CriticUpdate
from lightrft.trainer.early_stop import EarlyStop
from lightrft.trainer.evaluate import EvalSets
from lightrft.trainer.learner import Learner
from lightrft.trainer.out_of_memory import telling
from lightrft.trainer.prompts import image_reader as reader_for
from lightrft.trainer.refusals import refuse
from lightrft.trainer.resume import PromptsDigest
from lightrft.trainer.reward_models import as_rewards
from lightrft.trainer.rows import beyond_budget, check_image_rows, ready_for_rows
from lightrft.trainer.run_state import EngineState, RandomState, RunState, SkippedSteps
from lightrft.trainer.saver import Saver, Trained
from lightrft.trainer.steps import count_updates, num_rollouts, updates_per_rollout
from lightrft.trainer.trainer_phases import TrainerPhases
from lightrft.trainer.update import PolicyUpdate


@dataclass(frozen=True, kw_only=True)
class RunModels:
    """The models of a run, as the strategy prepared them, with their optimizers and schedules."""

    actor: torch.nn.Module
    actor_optim: Optimizer
    actor_scheduler: Scheduler | None
    initial_model: torch.nn.Module | None
    critic: torch.nn.Module | None
    critic_optim: Optimizer | None
    critic_scheduler: Scheduler | None
    ema_model: torch.nn.Module | None

    def refuse(self, config: Config, *, strategy: StrategyBase, needs_critic: bool) -> None:
        """Raises ValueError for a model that nothing would use, one that is missing, and an average that cannot follow the actor."""
        refuse(
            config,
            self.initial_model,
            needs_critic=needs_critic,
            critic=self.critic,
            critic_optim=self.critic_optim,
            critic_scheduler=self.critic_scheduler,
            ema_model=self.ema_model,
        )
        if self.ema_model is not None and (problem := ema.problem(self.ema_model, shapes=strategy._exported_shapes(self.actor))):
            raise ValueError(f"ema_model cannot follow the actor: {problem}")

    @property
    def trained(self) -> dict[str, Trained]:
        """What has an optimizer, by name."""
        found = {"actor": Trained(model=self.actor, optimizer=self.actor_optim, scheduler=self.actor_scheduler)}
        if self.critic is not None and self.critic_optim is not None:
            found["critic"] = Trained(model=self.critic, optimizer=self.critic_optim, scheduler=self.critic_scheduler)
        return found


class TrainerParts(TrainerPhases):
    """The parts as attributes, under the names of the trainer's documentation."""

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        models: RunModels,
        reward_model: Any,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        eval_sets: EvalSets,
        phases: Mapping[str, PhaseFunction],
        image_reader: ImageReader | None,
    ) -> None:
        self.strategy, self.config = strategy, config
        self.estimator: AdvantageSpec = strategy.registry.spec("advantage", config.advantage_estimator)
        self.policy_loss_spec: PolicyLossSpec = strategy.registry.spec("policy_loss", config.policy_loss)
        models.refuse(config, strategy=strategy, needs_critic=self.estimator.critic)
        check_trainer(config, registry=strategy.registry, world_size=strategy.world.world_size)
        self.actor, self.actor_optim, self.actor_scheduler = models.actor, models.actor_optim, models.actor_scheduler
        self.critic, self.critic_optim, self.critic_scheduler = models.critic, models.critic_optim, models.critic_scheduler
        self.initial_model, self.ema_model = models.initial_model, models.ema_model
        self.trained = models.trained
        self.rewards = as_rewards(reward_model, config=config, strategy=strategy)
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.eval_sets = {name: list(prompts) for name, prompts in eval_sets.items() if prompts}
        self.eval_prompts = [prompt for prompts in self.eval_sets.values() for prompt in prompts]
        reader = image_reader or reader_for(config, [*self.prompts, *self.eval_prompts], model_path=config.model_name_or_path)
        self.images = PromptImages(reader, world=strategy.world, max_pixels=config.max_image_pixels, longest=config.prompt_max_len)
        self._make_rows_ready()
        self.step, self.trained_step = 0, -1
        self.synced = False
        self.experience: Trainable
        self.sums = StepMetrics()
        self._make_parts()
        self._measure_phases(phases)

    def _make_rows_ready(self) -> None:
        if words := beyond_budget(self.config):
            self.strategy.print(f"note: {words}")
        for model in (self.actor, self.critic, self.initial_model):
            if model is not None:
                ready_for_rows(model, config=self.config, strategy=self.strategy)
                if self.images.blank is not None:
                    check_image_rows(model, config=self.config, strategy=self.strategy, blank=self.images.blank)

    def _make_parts(self) -> None:
        strategy, config = self.strategy, self.config
        self.mixture = mixture_of(self.prompts, config.prompt_data_weights)
        self.sampler = PromptSampler(
            len(self.prompts),
            batch_size=config.rollout_batch_size,
            rank=strategy.world.rank,
            world_size=strategy.world.world_size,
            seed=config.seed,
            mixture=self.mixture,
        )
        self.warnings = Warnings(world=strategy.world, folder=log_folder(config), stops=config.on_warning == "stop")
        self.monitors = Monitors(config, first_ratio_limit=first_ratio_limit(config, self.policy_loss_spec))
        self.early_stop = EarlyStop(config)
        self.learning = LearningWatch(config, updates_per_rollout=updates_per_rollout(config))
        self.clock = PhaseClock(strategy.world)
        self.experience_maker = self._make_experience_maker(strategy.registry)
        self.sampling = self._make_sampling()
        self.probe = self._make_probe()
        self.image_check = self._make_image_check()
        names = tuple(reward.name for reward in self.rewards)
        self.report = RunReport(
            strategy=strategy, config=config, total_steps=self.num_steps, warnings=self.warnings, rewards=names,
            text_of=self._text_of,
        )  # fmt: skip
        self.learner = self._make_learner(strategy.registry)
        self.engine_state = EngineState(strategy)
        self.state = self._run_state()
        self.saver = Saver(strategy=strategy, config=config, state=self.state, trained=self.trained, ema_model=self.ema_model)

    def _text_of(self, token: int) -> str:
        """A token's own text, special ones as they are."""
        tokenizer: Any = self.tokenizer
        return str(tokenizer.decode([token], skip_special_tokens=False))

    @property
    def num_steps(self) -> int:
        """Rollouts of the whole run."""
        return num_rollouts(self.config, num_prompts=self.mixture.epoch_rows)

    @property
    def num_updates(self) -> int:
        """The actor's optimizer steps of the whole run."""
        warmup = self.config.critic_warmup_steps if self.critic is not None else 0
        return count_updates(self.config, num_prompts=self.mixture.epoch_rows, first_rollouts_without=warmup)

    def next_prompts(self) -> list[Prompt]:
        """This rank's slice of the next `rollout_batch_size` prompts, or of those that partial rollouts begin. Local; every rank has to ask
        as often.
        """
        partial = self.experience_maker.partial
        rows = self.sampler.next_batch() if partial is None else self.sampler.next_rows(partial.wanted())
        return [self.prompts[index] for index in rows]

    def warn(self, *findings: Finding | None) -> None:
        """Says what was found, on the console and in `warnings.jsonl`. Local; every rank finds the same."""
        for finding in findings:
            if finding is not None:
                self.warnings.say(*finding)

    def _measure_phases(self, functions: Mapping[str, PhaseFunction]) -> None:
        check_phase_names(functions)
        for name in PHASES:
            method = partial(functions[name], self) if name in functions else getattr(self, name)
            setattr(self, name, telling(name, self.clock.measured(name, method), config=self.config, world=self.strategy.world))

    def _run_state(self) -> RunState:
        """Everything that a resumed run needs to be the same run; register more on `trainer.state`."""
        state = RunState(self.strategy)
        state.register("prompts", PromptsDigest(self.prompts))
        state.register("sampler", self.sampler)
        state.register("engine", self.engine_state)
        state.register("random", RandomState(self.strategy.world.device), per_rank=True)
        state.register("skipped_steps", SkippedSteps(self.strategy))
        state.register("warnings", self.warnings)
        state.register("monitors", self.monitors)
        state.register("learning", self.learning)
        state.register("early_stop", self.early_stop)
        state.register("sampling", self.sampling)
        state.register("sampling_check", self.experience_maker.sampling_check)
        state.register("dead_rewards", self.experience_maker.dead_rewards)
        state.register("kl_control", self.experience_maker.kl_control)
        state.register("reward_moments", self.experience_maker.advantage_maker.moments)
        state.register("report", self.report)
        if self.experience_maker.partial is not None:
            state.register("partial", self.experience_maker.partial, per_rank=True)
        return state

    def _make_sampling(self) -> DynamicSampling:
        self.experience_maker.keep_awake = self.config.dynamic_sampling
        return DynamicSampling(
            strategy=self.strategy,
            config=self.config,
            next_prompts=self.next_prompts,
            rollout=lambda prompts: self.rollout(prompts),  # the phase as it is then: measured, or a user's
            reward=lambda experience: self.reward(experience),
            warnings=self.warnings,
            metrics=self.sums,
        )

    def _make_probe(self) -> SyncProbe | None:
        tokenizer: Any = self.tokenizer
        if not self.config.verify_sync_every or not self.prompts:
            return None
        prompts = text_of_prompts(self.prompts[:100], special=tokenizer.all_special_ids)
        return SyncProbe(strategy=self.strategy, actor=self.actor, config=self.config, prompts=prompts, tokenizer=self.tokenizer)

    def _make_image_check(self) -> ImageCheck | None:
        if self.probe is None or not any(prompt.images for prompt in self.prompts):
            return None
        return ImageCheck(strategy=self.strategy, actor=self.actor, config=self.config, images=self.images, prompts=self.prompts)

    def _make_learner(self, registry: Registry) -> Learner:
        policy = PolicyUpdate(
            strategy=self.strategy,
            config=self.config,
            actor=self.actor,
            optimizer=self.actor_optim,
            scheduler=self.actor_scheduler,
            policy_loss=registry.load("policy_loss", self.config.policy_loss),
            ema_model=self.ema_model,
            blank=self.images.blank,
        )
        critic = None
        if self.critic is not None and self.critic_optim is not None:
            critic = CriticUpdate(
                strategy=self.strategy,
                config=self.config,
                critic=self.critic,
                optimizer=self.critic_optim,
                scheduler=self.critic_scheduler,
                blank=self.images.blank,
            )
        return Learner(
            strategy=self.strategy, config=self.config, policy=policy, critic=critic, kl_control=self.experience_maker.kl_control
        )

    def _make_experience_maker(self, registry: Registry) -> ExperienceMaker:
        estimator: AdvantageEstimator = registry.load("advantage", self.config.advantage_estimator)
        episodes = chosen_episodes(self.config, strategy=self.strategy, tokenizer=self.tokenizer)
        partial = chosen_partial(self.config, strategy=self.strategy, tokenizer=self.tokenizer, prompts=self.prompts, episodes=episodes)
        return ExperienceMaker(
            strategy=self.strategy,
            config=self.config,
            tokenizer=self.tokenizer,
            actor=self.actor,
            initial_model=self.initial_model,
            rewards=self.rewards,
            advantage_estimator=estimator,
            critic=self.critic,
            greedy=self.estimator.greedy,
            compares_groups=self.estimator.min_samples > 1,
            warnings=self.warnings,
            metrics=self.sums,
            episodes=episodes,
            images=self.images,
            partial=partial,
        )
