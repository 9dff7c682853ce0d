"""What does one training run do? The loop that every rank runs: rollout, reward, advantage, update, sync."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.data.sampler import PromptSampler
from lightrft.experience.advantages import AdvantageEstimator
from lightrft.experience.balance import balanced
from lightrft.experience.dynamic import DynamicSampling
from lightrft.experience.maker import ExperienceMaker
from lightrft.experience.metrics import rollout_metrics
from lightrft.experience.monitors import Finding, Monitors, leak
from lightrft.experience.probe import SyncProbe
from lightrft.experience.trajectory import Trajectory
from lightrft.experience.warnings import Warnings
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import AdvantageSpec
from lightrft.rewards.load import NamedReward
from lightrft.strategy import average
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase
from lightrft.trainer.checkpoint_folder import find
from lightrft.trainer.critic_update import CriticUpdate
from lightrft.trainer.evaluate import EvalSets, evaluate, write_rows
from lightrft.trainer.learner import Learner
from lightrft.trainer.phases import PHASES, PhaseClock, PhaseFunction, check_phase_names
from lightrft.trainer.refusals import refuse
from lightrft.trainer.report import RunReport
from lightrft.trainer.resume import PromptsDigest
from lightrft.trainer.reward_models import as_rewards
from lightrft.trainer.run_folder import log_folder
from lightrft.trainer.run_state import EngineState, RandomState, RunState, SkippedSteps
from lightrft.trainer.saving import EMA_MODEL, Saver, StopRun, Trained, latest_value
from lightrft.trainer.steps import due, num_rollouts
from lightrft.trainer.update import PolicyUpdate


class SPMDPPOTrainer:
    """Trains `actor` with the experience that a colocated engine samples from it. Every rank builds one and calls `fit`.

    `actor` and `actor_optim` are what `strategy.prepare_trainable` returned, and so are `critic` and `critic_optim` (needed where the
    estimator has a critic, such as gae; `models.critic.make_critic` makes the model). `initial_model` (needed where `kl_coef` > 0) is what
    `strategy.prepare_model` returned; `ema_model` (needed where `ema_beta` > 0), what `strategy.prepare_ema_model` did. `reward_model` is
    a reward function `(samples) -> list[float]`, a sequence classifier that `strategy.prepare_model` returned, a NamedReward, or a list of
    them. `config` defaults to the strategy's. Reports (metrics, plots, summary, the final model) go to `config.output_dir`. A subclass may
    override a phase; `phases` names functions that stand for phases: `{"reward": lambda trainer, experience: ...}`.

    Raises:
        ValueError: an argument that this trainer cannot honour; what to do instead is named.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        actor: torch.nn.Module,
        reward_model: Any,
        actor_optim: Optimizer,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        actor_scheduler: Scheduler | None = None,
        initial_model: torch.nn.Module | None = None,
        critic: torch.nn.Module | None = None,
        critic_optim: Optimizer | None = None,
        critic_scheduler: Scheduler | None = None,
        ema_model: torch.nn.Module | None = None,
        eval_prompts: Sequence[Prompt] | EvalSets = (),
        config: Config | None = None,
        phases: Mapping[str, PhaseFunction] | None = None,
    ) -> None:
        self.strategy = strategy
        self.config = config or strategy.config
        self.estimator: AdvantageSpec = strategy.registry.spec("advantage", self.config.advantage_estimator)
        refuse(
            self.config,
            initial_model,
            needs_critic=self.estimator.critic,
            critic=critic,
            critic_optim=critic_optim,
            critic_scheduler=critic_scheduler,
            ema_model=ema_model,
        )
        if ema_model is not None and (problem := average.problem(strategy, actor, ema_model)):
            raise ValueError(f"ema_model cannot follow the actor: {problem}")
        self.actor = actor
        self.initial_model = initial_model
        self.ema_model = ema_model
        self.critic, self.critic_optim, self.critic_scheduler = critic, critic_optim, critic_scheduler
        self.actor_optim = actor_optim
        self.actor_scheduler = actor_scheduler
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        sets = eval_prompts if isinstance(eval_prompts, Mapping) else {"eval": eval_prompts}
        self.eval_sets = {name: list(prompts) for name, prompts in sets.items() if prompts}
        self.eval_prompts = [prompt for prompts in self.eval_sets.values() for prompt in prompts]
        self.rewards: list[NamedReward] = as_rewards(reward_model, config=self.config, strategy=strategy)
        self.sampler = PromptSampler(
            len(self.prompts),
            batch_size=self.config.rollout_batch_size,
            rank=strategy.world.rank,
            world_size=strategy.world.world_size,
            seed=self.config.seed,
        )
        self.warnings = Warnings(strategy=strategy, folder=log_folder(self.config))
        self.monitors = Monitors(self.config)
        self.step, self.trained_step = 0, -1
        self.synced = False
        self.experience: list[Trajectory] = []
        self.clock = PhaseClock(strategy)
        self.experience_maker = self._make_experience_maker(strategy.registry)
        self.sampling = self._make_sampling()
        self.probe = self._make_probe()
        self.report = RunReport(strategy=strategy, config=self.config, total_steps=self.num_steps, warnings=self.warnings)
        self.learner = self._make_learner(strategy.registry)
        self.trained = self._trained()
        self.engine_state = EngineState(strategy)
        self.state = self._run_state()
        self.saver = Saver(strategy=strategy, config=self.config, state=self.state, trained=self.trained, ema_model=ema_model)
        self._measure_phases(phases or {})

    @property
    def num_steps(self) -> int:
        """Rollouts of the whole run."""
        return num_rollouts(self.config, num_prompts=len(self.prompts))

    def fit(self) -> dict[str, Any]:
        """Trains, and returns the run's summary (also in `summary.json`). Collective.

        An error ends it, after a checkpoint where the state allows one; SIGTERM ends it with a checkpoint and a summary.
        """
        with self.saver.requests.listening():
            try:
                self.begin()
                for step in range(self.step + 1, self.num_steps + 1):
                    self.begin_step(step)
                    self.make_experience()
                    self.metrics.update(self.ppo_train(step))
                    if self.evaluation_due:
                        self.evaluate()
                    self.end_step()
                return self.finish()
            except Exception as error:
                return self.stopped(error)

    def make_experience(self) -> dict[str, float]:
        """`self.experience` becomes this rank's share of the next rollout; returns what is known of the step so far. Collective."""
        self.experience = self.collect()
        self.logprob(self.experience)
        self.advantage(self.experience)
        self.metrics.update(rollout_metrics(self.experience, strategy=self.strategy))
        if self.config.balance_ranks:
            self.experience = balanced(self.experience, strategy=self.strategy)
        self.saver.stop_if_asked()
        return self.metrics

    def collect(self) -> list[Trajectory]:
        """Completions of the next prompts, with rewards; with `dynamic_sampling` of as many prompts as it takes. Collective."""
        if self.config.dynamic_sampling:
            experience = self.sampling.collect()
        else:
            experience = self.rollout(self.next_prompts())
            self.reward(experience)
        self.experience_maker.treat_overlong(experience)
        return experience

    def next_prompts(self) -> list[Prompt]:
        """This rank's share of the next `rollout_batch_size` prompts. Local; every rank has to ask as often."""
        return [self.prompts[index] for index in self.sampler.next_batch()]

    def ppo_train(self, global_steps: int = 0) -> dict[str, float]:
        """Updates the actor on `self.experience` and gives the engine its new weights; returns the metrics of both. Collective."""
        self.step = global_steps
        self.saver.changing()
        metrics = self.update(self.experience)
        metrics |= self.sync()
        self.trained_step = global_steps
        return metrics

    # ---- the phases: override one, or pass a function for it; `trainer/phases.py` measures each ------------------------------------------

    def rollout(self, prompts: Sequence[Prompt]) -> list[Trajectory]:
        """`n_samples_per_prompt` completions of each of this rank's prompts. Collective."""
        experience = self.experience_maker.generate(prompts)
        self.clock.count(sum(t.num_tokens for t in experience))
        return experience

    def reward(self, experience: list[Trajectory]) -> None:
        """Gives each completion its reward. Collective."""
        self.clock.count(sum(t.num_tokens for t in experience))
        self.experience_maker.reward(experience)

    def logprob(self, experience: list[Trajectory]) -> None:
        """Gives each token its log-probs under the actor and the initial model, and compares the engine's. Collective."""
        self.clock.count(sum(t.length for t in experience))
        self.experience_maker.add_logprobs(experience)

    def advantage(self, experience: list[Trajectory]) -> None:
        """Gives each token its advantage. Collective."""
        self.experience_maker.add_advantages(experience)

    def update(self, experience: list[Trajectory]) -> dict[str, float]:
        """The optimizer steps of one rollout; returns their metrics. Collective."""
        self.clock.count(sum(t.length for t in experience))
        return self.learner.run(experience, step=self.step, rollout=self.metrics)

    def sync(self) -> dict[str, float]:
        """Gives the engine the actor's weights and, where it is due, proves by fixed prompts that it has them. Collective.

        Raises:
            WeightSyncError: it does not, on all ranks.
        """
        probe = self.probe if self.probe is not None and self.probe.due(self.step if self.synced else 0) else None
        if probe is not None and (self.synced or not self.config.resume_from):  # a resumed run's engine is new: nothing is cached
            probe.before_sync()
        self.synced = True
        start = time.perf_counter()
        self.strategy.update_engine_weights(self.actor)
        metrics = {"time/sync_s": time.perf_counter() - start}
        return metrics | (probe.after_sync() if probe is not None else {})

    def warn(self, *findings: Finding | None) -> None:
        """Says what was found, on the console and in `warnings.jsonl`. Local; every rank finds the same."""
        for finding in findings:
            if finding is not None:
                self.warnings.say(*finding)

    def evaluate(self) -> dict[str, float]:
        """Evaluation on `eval_prompts`, empty without any; its samples go to `eval_samples-STEP.jsonl`. Collective."""
        if not self.eval_prompts:
            return {}
        found = evaluate(self.eval_sets, strategy=self.strategy, config=self.config, tokenizer=self.tokenizer, rewards=self.rewards)
        if self.strategy.is_rank_0:
            write_rows(log_folder(self.config) / f"eval_samples-{self.step}.jsonl", found.rows, step=self.step)
        return found.metrics

    # ---- before, between and after the steps ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first step: the engine gets the actor's weights, which are evaluated; or those of a checkpoint. Collective."""
        if self.config.resume_from:
            folder = find(self.config.resume_from, run=Path(self.config.output_dir).expanduser())
            self.step = self.saver.load(folder)
            self.strategy.print(f"resumed from {folder}, step {self.step} of {self.num_steps}")
        self.learner.start()  # masters are there before the first update
        self.clock.start()
        self.sync()
        self.engine_state.synced()
        if not self.config.resume_from:
            self.warn(leak(self.prompts, self.eval_prompts))
            self.evaluate()
            self.report.start({name: value for name, value in self.metrics.items() if name != "time/sync_s"})
        self.saver.mark(self.step)

    def begin_step(self, step: int) -> None:
        """Nothing is measured yet of this step but the checkpoint before it. Local."""
        self.step = self.warnings.step = step
        self.clock.start()
        self.metrics.update(self.saver.taken())

    def end_step(self) -> None:
        """What was measured goes to the loggers, and the run is saved where that is due. Collective."""
        self.metrics.update(self.clock.close())
        if "tokens/rollout" in self.metrics:
            self.metrics["rollout/tokens_per_s"] = self.metrics["tokens/rollout"] / self.metrics["time/rollout_s"]
        self.warn(*self.monitors.observe(self.metrics))
        self.report.step(self.step, self.metrics, self.experience)
        self.saver.mark(self.step, value=latest_value(self.metrics, self.config.best_metric))
        if due(self.step, every=self.config.save_every, last=self.num_steps):
            self.saver.save()
        self.saver.stop_if_asked()

    def finish(self) -> dict[str, Any]:
        """After the last step: the model's folder, the summary. Collective."""
        return self.report.finish(steps=self.num_steps, model=self.save_model(), ema_model=self.save_ema_model())

    def stopped(self, error: Exception) -> dict[str, Any]:
        """After an error: a checkpoint, where the state is that of a whole step. Returns the summary of a run that was told to stop."""
        if not self.saver.marked and self.trained_step == self.step:  # an evaluation failed: the step itself is done
            self.saver.mark(self.step)
        folder = self.saver.rescue(error)
        if not isinstance(error, StopRun):
            self.report.close()
            raise error
        return self.report.finish(steps=self.saver.marked_step, model=None, stopped=str(error), checkpoint=folder)

    def save_model(self) -> Path:
        """Writes the actor as a HF folder `model` in the run folder, and its adapters, if any, beside it as `adapter`. Collective."""
        if self.config.lora_rank:
            self.strategy.save_adapter(self.actor, Path(self.config.output_dir) / "adapter")
        return self.strategy.save_model(self.actor, Path(self.config.output_dir) / "model", tokenizer=self.tokenizer)

    def save_ema_model(self) -> Path | None:
        """Writes the moving average of the actor, where there is one, as a HF folder `ema_model` in the run folder. Collective."""
        if self.ema_model is None:
            return None
        return self.strategy.save_model(self.ema_model, Path(self.config.output_dir) / EMA_MODEL, tokenizer=self.tokenizer)

    @property
    def evaluation_due(self) -> bool:
        """Whether this step ends with an evaluation."""
        return bool(self.eval_prompts) and (self.step == self.num_steps or due(self.step, every=self.config.eval_every))

    @property
    def metrics(self) -> dict[str, float]:
        """What is known so far of the present step; the same on every rank."""
        return self.clock.metrics

    def _measure_phases(self, functions: Mapping[str, PhaseFunction]) -> None:
        check_phase_names(functions)
        for name in PHASES:
            method = partial(functions[name], self) if name in functions else getattr(self, name)
            setattr(self, name, self.clock.measured(name, method))

    def _trained(self) -> dict[str, Trained]:
        found = {"actor": Trained(model=self.actor, optimizer=self.actor_optim, scheduler=self.actor_scheduler)}
        if self.critic is not None and self.critic_optim is not None:
            found["critic"] = Trained(model=self.critic, optimizer=self.critic_optim, scheduler=self.critic_scheduler)
        return found

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
        state.register("sampling", self.sampling)
        state.register("dead_rewards", self.experience_maker.dead_rewards)
        state.register("kl_control", self.experience_maker.kl_control)
        state.register("reward_moments", self.experience_maker.advantage_maker.moments)
        state.register("report", self.report)
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
            metrics=self.metrics,
        )

    def _make_probe(self) -> SyncProbe | None:
        if not self.config.verify_sync_every or not self.prompts:
            return None
        prompts = [prompt.token_ids for prompt in self.prompts[:100]]
        return SyncProbe(strategy=self.strategy, actor=self.actor, config=self.config, prompts=prompts, tokenizer=self.tokenizer)

    def _make_learner(self, registry: Registry) -> Learner:
        policy = PolicyUpdate(
            strategy=self.strategy,
            config=self.config,
            actor=self.actor,
            optimizer=self.actor_optim,
            scheduler=self.actor_scheduler,
            policy_loss=registry.load("policy_loss", self.config.policy_loss),
            ema_model=self.ema_model,
        )
        critic = None
        if self.critic is not None and self.critic_optim is not None:
            critic = CriticUpdate(
                strategy=self.strategy,
                config=self.config,
                critic=self.critic,
                optimizer=self.critic_optim,
                scheduler=self.critic_scheduler,
            )
        return Learner(
            strategy=self.strategy, config=self.config, policy=policy, critic=critic, kl_control=self.experience_maker.kl_control
        )

    def _make_experience_maker(self, registry: Registry) -> ExperienceMaker:
        estimator: AdvantageEstimator = registry.load("advantage", self.config.advantage_estimator)
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
            metrics=self.metrics,
        )
