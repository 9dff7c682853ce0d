"""The phases of a step: methods to override, or to replace by a function; `observe/phase_clock.py` measures them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from lightrft.batch.stages import Rewarded, Sampled, Scored, Trainable
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.image_check import ImageCheck
from lightrft.diagnostics.sync_probe import SyncProbe
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.observe.phase_clock import PhaseClock
from lightrft.rewards.load import NamedReward
from lightrft.run.run_folder import log_folder
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.evaluate import EvalSets, evaluate, write_rows
from lightrft.trainer.learner import Learner


class TrainerPhases:
    """What a phase works with, and the phases in their order."""

    strategy: StrategyBase
    config: Config
    actor: torch.nn.Module
    tokenizer: object
    rewards: list[NamedReward]
    eval_sets: EvalSets
    eval_prompts: list[Prompt]
    experience_maker: ExperienceMaker
    learner: Learner
    probe: SyncProbe | None
    image_check: ImageCheck | None
    clock: PhaseClock
    step: int
    synced: bool

    @property
    def metrics(self) -> dict[str, float]:
        """What is known so far of the present step; the same on every rank."""
        return self.clock.metrics

    @property
    def update_seed(self) -> int:
        """Of this step's update, which shuffles its mini-batches."""
        return self.config.seed + self.step

    def rollout(self, prompts: Sequence[Prompt]) -> Sampled:
        """`n_samples_per_prompt` completions of each of this rank's prompts. Collective."""
        experience = self.experience_maker.generate(prompts)
        self.clock.count(int(experience.num_sampled.sum()))
        return experience

    def reward(self, experience: Sampled) -> Rewarded:
        """Gives each completion its reward. Collective."""
        self.clock.count(int(experience.num_sampled.sum()))
        return self.experience_maker.reward(experience)

    def logprob(self, experience: Rewarded) -> Scored:
        """Gives each token its log-probs under the actor and the reference model, and compares the engine's. Collective."""
        self.clock.count(int(experience.offsets[-1]))
        return self.experience_maker.score(experience, seed=self.update_seed)

    def advantage(self, experience: Scored) -> Trainable:
        """Gives each token its advantage. Collective."""
        return self.experience_maker.advantages(experience)

    def update(self, experience: Trainable) -> dict[str, float]:
        """The optimizer steps of one rollout; returns their metrics. Collective."""
        self.clock.count(int(experience.offsets[-1]))
        return self.learner.run(experience, step=self.step, seed=self.update_seed, rollout=self.metrics)

    def sync(self) -> dict[str, float]:
        """Gives the engine the actor's weights and, where that is scheduled, verifies by fixed prompts that it has them. Collective.

        Raises:
            WeightSyncError: it does not, on all ranks.
            ImageError: images do not reach the trainer or the engine, on all ranks.
        """
        probe = self.probe if self.probe is not None and self.probe.is_scheduled(self.step if self.synced else 0) else None
        if probe is not None and (self.synced or not self.config.resume_from):  # a resumed run's engine is new: nothing is cached
            probe.before_sync()
        self.synced = True
        start = time.perf_counter()
        self.strategy.update_engine_weights(self.actor)
        metrics = {"time/sync_s": time.perf_counter() - start, "sync/mib": self.strategy.synced_bytes / 2**20}
        if probe is not None:
            metrics |= probe.after_sync() | (self.image_check.run() if self.image_check is not None else {})
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Evaluation on `eval_prompts`, empty without any; its samples go to `eval_samples-STEP.jsonl`. Collective."""
        if not self.eval_prompts:
            return {}
        found = evaluate(
            self.eval_sets,
            strategy=self.strategy,
            config=self.config,
            tokenizer=self.tokenizer,
            rewards=self.rewards,
            episodes=self.experience_maker.episodes,
            images=self.experience_maker.images,
        )
        if self.strategy.is_rank_0:
            write_rows(log_folder(self.config) / f"eval_samples-{self.step}.jsonl", found.rows, step=self.step)
        return found.metrics
