"""One training run. The loop that every rank runs: rollout, reward, advantage, update, sync."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightrft.batch.exchange import gathered
from lightrft.batch.stages import Rewarded
from lightrft.config.hang_limits import hang_limits
from lightrft.config.loss_settings import loss_in_words
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.label_leak import labels_in_prompts
from lightrft.diagnostics.monitors import differing_ends, leak
from lightrft.distributed.consensus import together
from lightrft.distributed.watchdog import watching
from lightrft.engine.image_reader import ImageReader
from lightrft.errors import StoppedByWarning
from lightrft.experience.metrics import add_rollout_metrics
from lightrft.observe.phase_clock import PhaseFunction
from lightrft.run.checkpoint_folder import LATEST, find
from lightrft.run.run_folder import hold_folders, release_folders
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase
from lightrft.trainer.early_stop import Callback, call_back
from lightrft.trainer.evaluate import EvalSets
from lightrft.trainer.reward_models import unseen_images
from lightrft.trainer.saver import EMA_MODEL, StopRun, latest_value
from lightrft.trainer.steps import bound_in_words, is_scheduled
from lightrft.trainer.trainer_parts import RunModels, TrainerParts

OF_A_SYNC = ("time/sync_s", "sync/mib")
"""What the sync before the first step is no part of: there is a row of step 0 where something was evaluated."""


class SPMDPPOTrainer(TrainerParts):
    """Trains `actor` with the experience that a colocated engine samples from it. Every rank builds one and calls `fit`.

    `actor` and `actor_optim` are what `strategy.prepare_trainable` returned, and so are `critic` and `critic_optim` (needed where the
    estimator has a critic, such as gae; `models.critic.make_critic` makes the model). `initial_model` (needed where `kl_coef` > 0) is what
    `strategy.prepare_model` returned; `ema_model` (needed where `ema_beta` > 0), what `strategy.prepare_ema_model` did. `reward_model` is
    a reward function `(samples) -> list[float]`, a sequence classifier that `strategy.prepare_model` returned, a NamedReward, or a list of
    them. `config` defaults to the strategy's. Reports (metrics, plots, summary, the final model) go to `config.output_dir`. A subclass may
    override a phase; `phases` names functions that stand for phases: `{"reward": lambda trainer, experience: ...}`. `callbacks` are called
    with the trainer at the end of each rollout, on every rank; a text that one returns ends the run, with that as its reason.
    `image_reader` is the model's processor; by default, where prompts have images, that of `config.model_name_or_path`.

    Raises:
        ValueError: an argument that this trainer cannot honour; what to do instead is named.

    Example::

        import lightrft


        class Mine(lightrft.SPMDPPOTrainer):
            def update(self, experience):
                return super().update(experience) | {"mine/advantage": float(experience.advantages.abs().max())}
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
        callbacks: Sequence[Callback] = (),
        image_reader: ImageReader | None = None,
    ) -> None:
        super().__init__(
            strategy=strategy,
            config=config or strategy.config,
            models=RunModels(
                actor=actor,
                actor_optim=actor_optim,
                actor_scheduler=actor_scheduler,
                initial_model=initial_model,
                critic=critic,
                critic_optim=critic_optim,
                critic_scheduler=critic_scheduler,
                ema_model=ema_model,
            ),
            reward_model=reward_model,
            tokenizer=tokenizer,
            prompts=prompts,
            eval_sets=eval_prompts if isinstance(eval_prompts, Mapping) else {"eval": eval_prompts},
            phases=phases or {},
            image_reader=image_reader,
        )
        self.callbacks = list(callbacks)

    def fit(self) -> dict[str, Any]:
        """Trains, and returns the run's summary (also in `summary.json`). Collective.

        An error ends it, after a checkpoint where the state allows one; SIGTERM ends it with a checkpoint and a summary.
        """
        with watching(self.strategy.world, hang_limits(self.config)), self.saver.requests.listening():
            try:
                self.begin()
                for step in range(self.step + 1, self.num_steps + 1):
                    if self.early_stop.reason:
                        break
                    self.begin_step(step)
                    self.make_experience()
                    self.metrics.update(self.ppo_train(step))
                    if self.evaluation_due:
                        self.evaluate()
                    self.end_step()
                return self.finish()
            except Exception as error:
                return self.stopped(error)
            finally:
                self.experience_maker.close()
                release_folders(self.config)

    def make_experience(self) -> dict[str, float]:
        """`self.experience` becomes this rank's slice of the next rollout; returns what is known of the step so far. Collective."""
        scored = self.logprob(self.collect())
        self.experience = self.advantage(scored)
        add_rollout_metrics(self.sums, scored, copies=self.strategy.mesh.sequence.size)
        self.metrics.update(self.sums.reduce(self.strategy.world.group))
        self.experience_maker.conclude(self.metrics)
        self.saver.stop_if_asked()
        return self.metrics

    def collect(self) -> Rewarded:
        """Completions of the next prompts, with rewards; with `dynamic_sampling` of as many prompts as it takes. Collective."""
        rewarded = self.sampling.collect() if self.config.dynamic_sampling else self.reward(self.rollout(self.next_prompts()))
        # Each rank samples and rewards its own prompts; the ranks that share sequences go on with those of all of them.
        return gathered(self.experience_maker.treat_overlong(rewarded), group=self.strategy.mesh.sequence.group)

    def ppo_train(self, global_steps: int = 0) -> dict[str, float]:
        """Updates the actor on `self.experience` and gives the engine its new weights; returns the metrics of both. Collective."""
        self.step = global_steps
        self.saver.changing()
        metrics = self.update(self.experience)
        metrics |= self.sync()
        self.learning.after_sync(self.strategy.sent_fingerprint, self.sums, updated="train/grad_norm" in metrics)
        self.trained_step = global_steps
        return metrics

    # ---- before, between and after the steps ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first step: the engine gets the actor's weights, which are evaluated; or those of a checkpoint. Collective."""
        together(self.strategy.world, "taking the run folder", self._hold_folders, rank_0_only=True)
        if self.config.resume_from:
            latest = self.config.resume_from == LATEST
            folder = self.saver.newest_whole() if latest else find(self.config.resume_from, run=Path(self.config.output_dir))
            with self.strategy.world.stamp.entering("load"):
                self.step = self.saver.load(folder)
            self.strategy.print(f"resumed from {folder}, rollout {self.step} of {self.num_steps}")
        self.learner.start()  # masters are there before the first update
        self.clock.start()
        self.sync()
        self.learning.begin(self.strategy.sent_fingerprint, self.sums)
        self.engine_state.synced()
        if not self.config.resume_from:
            self.strategy.print(bound_in_words(self.config, num_prompts=self.mixture.epoch_rows))
            if said := loss_in_words(self.config, self.policy_loss_spec):
                self.strategy.print(said)
            if self.config.prompt_data_weights:
                self.strategy.print(self.mixture.in_words())
            self.warn(leak(self.prompts, self.eval_prompts), differing_ends(self.strategy.stop_tokens), labels_in_prompts(self.prompts))
            self.warn(unseen_images(self.rewards, [*self.prompts, *self.eval_prompts]))
            self.warn(self.learning.plan(self.actor_scheduler, number=self.num_updates))
            self.evaluate()
            self.early_stop.observe(0, self.metrics)
            self.report.start({name: value for name, value in self.metrics.items() if name not in OF_A_SYNC})
        self.saver.mark(self.step)
        self.warnings.stop_if_asked()

    def _hold_folders(self) -> None:
        hold_folders(self.config, log=self.strategy.print)

    def begin_step(self, step: int) -> None:
        """Nothing is measured yet of this step but the checkpoint before it. Local."""
        self.step = self.warnings.step = self.strategy.world.stamp.step = step
        self.clock.start()
        self.metrics.update(self.saver.taken())

    def end_step(self) -> None:
        """What was measured goes to the loggers, and the run is saved where that is due. Collective."""
        self.metrics.update(self.clock.close())
        if "tokens/rollout" in self.metrics:
            self.metrics["rollout/tokens_per_s"] = self.metrics["tokens/rollout"] / self.metrics["time/rollout_s"]
        self.warn(*self.monitors.observe(self.metrics), *self.learning.observe(self.metrics, told=self.warnings.names))
        self.report.step(self.step, self.metrics, self.experience)
        self.report.phases(self.step, self.clock.ranks)
        self.early_stop.observe(self.step, self.metrics)
        self.early_stop.asked = call_back(self.callbacks, self, self.strategy)
        self.saver.mark(self.step, value=latest_value(self.metrics, self.config.best_metric))
        last = self.step if self.early_stop.reason else self.num_steps
        if is_scheduled(self.step, every=self.config.save_every, last=last) or self.saver.is_late():
            self.saver.save()
        self.saver.stop_if_asked()
        self.warnings.stop_if_asked()

    def finish(self) -> dict[str, Any]:
        """After the last step: the model's folder, the summary. Collective."""
        self.saver.settle()
        self.warn(*self.learning.conclude(self.metrics, told=self.warnings.names))
        self.warnings.stop_if_asked()
        reason = self.early_stop.reason
        if reason:
            self.strategy.print(f"the run ends at rollout {self.step} of {self.num_steps}: {reason}")
        with self.strategy.world.stamp.entering("finish"):
            return self.report.finish(steps=self.step, model=self.save_model(), ema_model=self.save_ema_model(), ended_early=reason)

    def stopped(self, error: Exception) -> dict[str, Any]:
        """After an error: a checkpoint, where the state is that of a whole step. Returns the summary of a run that was told to stop."""
        if not self.saver.marked and self.trained_step == self.step:  # an evaluation failed: the step itself is done
            self.saver.mark(self.step)
        folder = self.saver.rescue(error)
        if not isinstance(error, (StopRun, StoppedByWarning)):
            self.report.close()
            raise error
        summary = self.report.finish(steps=self.saver.marked_step, model=None, stopped=str(error), checkpoint=folder)
        if isinstance(error, StoppedByWarning):
            raise error
        return summary

    def save_model(self) -> Path:
        """Writes the actor as a HF folder `model` in the run folder, and its adapters, if any, beside it as `adapter`. Collective."""
        if self.config.lora_rank:
            self.strategy.save_adapter(self.actor, Path(self.config.output_dir) / "adapter")
        return self._save_folder(self.actor, "model")

    def save_ema_model(self) -> Path | None:
        """Writes the moving average of the actor, where there is one, as a HF folder `ema_model` in the run folder. Collective."""
        if self.ema_model is None:
            return None
        return self._save_folder(self.ema_model, EMA_MODEL)

    def _save_folder(self, model: torch.nn.Module, name: str) -> Path:
        folder, source = Path(self.config.output_dir) / name, self.config.model_name_or_path or None
        return self.strategy.save_model(model, folder, tokenizer=self.tokenizer, source=source)

    @property
    def evaluation_due(self) -> bool:
        """Whether this step ends with an evaluation."""
        return bool(self.eval_prompts) and (self.step == self.num_steps or is_scheduled(self.step, every=self.config.eval_every))
