"""How do prompts become scored experience? Generate, reward, log-probs, advantages: the data path of one rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightrft.algorithms.kl_control import KLController
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.experience.advantages import AdvantageEstimator, AdvantageMaker
from lightrft.experience.early import EarlyRewards
from lightrft.experience.gap import act_on_gap, add_corrections, logprob_gap
from lightrft.experience.greedy import add_baselines, greedy_completions
from lightrft.experience.overlong import treat_overlong
from lightrft.experience.prompt_only_reward import sees_prompt_only
from lightrft.experience.reward_signal import DeadRewardMonitor
from lightrft.experience.scored import of_functions, score_everywhere
from lightrft.experience.scoring import score_logprobs, score_values
from lightrft.experience.trajectory import Trajectory
from lightrft.observe.warnings_log import Warnings
from lightrft.rewards.load import NamedReward
from lightrft.rewards.models.classifier import RewardModel
from lightrft.rewards.score import Scores, score
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import RequestOutput, Sample, SamplingParams


class ExperienceMaker:
    """Makes this rank's experience from this rank's prompts: `generate`, `reward`, `add_logprobs`, `add_advantages`, in this order.

    Every method that talks to models or ranks is collective. What they find, global and alike on every rank, goes into `metrics`
    (the caller's, if given).
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
        metrics: dict[str, float] | None = None,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.tokenizer = tokenizer
        self.actor = actor
        self.initial_model = initial_model
        self.critic = critic
        self.greedy = greedy
        self._says_alone = compares_groups
        self.rewards = list(rewards)
        self.advantage_maker = AdvantageMaker(strategy=strategy, config=config, estimator=advantage_estimator)
        self.kl_control = KLController(coef=config.kl_coef, target=config.kl_target, horizon=config.kl_horizon)
        self.prompt_max_len = config.prompt_max_len
        self.dead_rewards = DeadRewardMonitor(patience=config.dead_reward_steps)
        self.warnings = warnings or Warnings(world=strategy.world)
        self.metrics: dict[str, float] = {} if metrics is None else metrics
        self.keep_awake = False
        """Whether more prompts follow in this step; an engine that drops its weights asleep could not take them."""
        self._early: EarlyRewards | None = None

    def generate(self, prompts: Sequence[Prompt]) -> list[Trajectory]:
        """Samples completions. The first `logprob_gap_prompts` prompts are asked for log-probs, for the gap; all, where it is corrected.

        With `reward_while_generating` the rewards of prompts that have ended begin here. Where the estimator asks for it, a greedy
        completion of each prompt comes first.
        """
        greedy = greedy_completions(prompts, strategy=self.strategy, config=self.config) if self.greedy else []
        self._early = self._start_rewards(prompts) if self.config.reward_while_generating else None
        number = len(prompts) if self._corrects else self.config.logprob_gap_prompts
        asked = [index < number for index in range(len(prompts))]
        outputs = self.strategy.gather_and_generate(
            sampling_params=sampling_params(self.config),
            all_prompt_token_ids=[list(p.token_ids) for p in prompts],
            sleep_engine=not self.keep_awake,
            logprobs=asked,
            on_finished=self._early.finished if self._early else None,
        )
        trajectories = completions_of(prompts, outputs, tokenizer=self.tokenizer)
        if self.greedy:
            by_prompt = dict(zip((o.id for o in outputs), completions_of(prompts, greedy, tokenizer=self.tokenizer), strict=True))
            for trajectory in trajectories:
                trajectory.greedy = by_prompt[trajectory.group_id]
        return trajectories

    def reward(self, trajectories: list[Trajectory]) -> None:
        """Runs the reward functions and reports a reward that teaches nothing. A reward that fails on one rank fails on all."""
        early = self._early
        scores = self._score_everywhere(trajectories, (lambda: early.scores(trajectories)) if early else None)
        for trajectory, total in zip(trajectories, scores.total, strict=True):
            trajectory.reward = total
        if self.greedy:
            add_baselines(trajectories, score=self._score_everywhere)
        for reward in self.rewards:
            if isinstance(reward.function, RewardModel):
                reward.function.tell(self.warnings)
        for name, values in scores.parts.items():
            self.metrics[f"reward/{name}"] = self._mean([value for value in values if value is not None])
        everyone = self.strategy.all_gather(
            {
                "reward": torch.tensor(scores.total, dtype=torch.float64),
                "group": torch.tensor([t.group_id for t in trajectories], dtype=torch.int64),
            }
        )
        sentence = self.dead_rewards.update(everyone["reward"].tolist(), everyone["group"].tolist())
        if sentence:
            self._say_dead(sentence, trajectories)

    def treat_overlong(self, trajectories: list[Trajectory]) -> None:
        """Punishes, or leaves out of the loss, completions that are too long, where the settings say so. Collective."""
        punishments = treat_overlong(trajectories, config=self.config)
        if self.config.overlong_buffer:
            self.metrics["reward/overlong"] = self._mean(punishments)
        if self.config.overlong_filter:
            self.metrics["rollout/left_out"] = self._mean([float(not t.trains) for t in trajectories])

    def add_logprobs(self, trajectories: list[Trajectory]) -> None:
        """The actor's and the initial model's log-probs, the gap to the engine's and, for a correction, the weights that follow from it;
        and the critic's values, where there is one.
        """
        for trajectory, logprobs in zip(trajectories, self._logprobs(self.actor, trajectories), strict=True):
            trajectory.old_logprobs = logprobs
        self._check_gap(trajectories)
        if self.initial_model is not None:
            for trajectory, logprobs in zip(trajectories, self._logprobs(self.initial_model, trajectories), strict=True):
                trajectory.initial_logprobs = logprobs
        if self.critic is not None:
            size = self.config.micro_rollout_batch_size
            found = score_values(self.critic, trajectories, strategy=self.strategy, micro_batch_size=size)
            for trajectory, values in zip(trajectories, found, strict=True):
                trajectory.values = values

    def add_advantages(self, trajectories: list[Trajectory]) -> None:
        """The completions of one prompt are on one rank. Collective."""
        self.metrics |= self.advantage_maker.run(trajectories, kl_coef=self.kl_control.coef)
        alone = self.metrics["rollout/groups_of_one"]
        if alone and self._says_alone:
            self._says_alone = False
            self.warnings.say(
                "groups_of_one",
                f"{alone:.0%} of this rollout's prompts have a single completion, which advantage_estimator="
                f"{self.config.advantage_estimator!r} has nothing to compare with: its advantage is 0, and it teaches nothing",
            )

    def tokenize_fn(self, texts: Sequence[str], max_length: int, padding: bool = True) -> dict[str, Any]:
        """Token ids of texts, cut at `max_length`: lists without padding, [B, P] tensors with it. Local."""
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"} if padding else {}
        return dict(self.tokenizer(list(texts), max_length=max_length, truncation=True, add_special_tokens=False, **options))

    @property
    def vllm_mp_group(self) -> Any:
        """The process group of the ranks that share an engine, whichever engine it is; None where there is no process group."""
        return self.strategy.engine_group

    def _logprobs(self, model: Any, trajectories: list[Trajectory], *, temperature: float | None = None) -> list[torch.Tensor]:
        return score_logprobs(
            model,
            trajectories,
            strategy=self.strategy,
            micro_batch_size=self.config.micro_rollout_batch_size,
            temperature=self.config.temperature if temperature is None else temperature,
        )

    def _score_everywhere(self, trajectories: Sequence[Trajectory], functions: Callable[[], Scores] | None = None) -> Scores:
        samples = [t.sample for t in trajectories]
        key = self.config.reward_key
        return score_everywhere(samples, rewards=self.rewards, strategy=self.strategy, reward_key=key, functions=functions)

    def _score_here(self, trajectories: Sequence[Trajectory]) -> Scores:
        names = [reward.name for reward in self.rewards]
        samples = [t.sample for t in trajectories]
        return score(samples, rewards=of_functions(self.rewards), reward_key=self.config.reward_key, names=names)

    def _start_rewards(self, prompts: Sequence[Prompt]) -> EarlyRewards:
        def complete(index: int, output: RequestOutput) -> list[Trajectory]:
            return completions_of([prompts[index]], [output], tokenizer=self.tokenizer)

        return EarlyRewards(complete=complete, score=self._score_here)

    @property
    def _corrects(self) -> bool:
        return self.config.logprob_gap_action == "correct"

    def _check_gap(self, trajectories: list[Trajectory]) -> None:
        if not (self._corrects or self.config.logprob_gap_prompts):
            return
        asked = trajectories if self._corrects else [t for t in trajectories if t.completion.logprobs is not None]
        if self.config.temperature == 1.0:
            mine = [t.old_logprobs for t in asked if t.old_logprobs is not None]
        else:
            mine = self._logprobs(self.actor, asked, temperature=1.0)
        level, cap = self.config.mismatch_level, self.config.mismatch_cap
        gap = logprob_gap(asked, mine, strategy=self.strategy, cap=cap, level=level)
        self.metrics |= gap
        if gap:
            threshold, action = self.config.logprob_gap_threshold, self.config.logprob_gap_action
            act_on_gap(gap["rollout/logprob_gap"], threshold=threshold, action=action, warnings=self.warnings)
        if self._corrects:
            beyond, floor = self.config.mismatch_beyond, self.config.mismatch_floor
            add_corrections(asked, mine, level=level, cap=cap, beyond=beyond, floor=floor)

    def _say_dead(self, sentence: str, trajectories: list[Trajectory]) -> None:
        if self.dead_rewards.fault == "zero_variance":
            swapped = sees_prompt_only(trajectories, rewards=self.rewards, strategy=self.strategy, reward_key=self.config.reward_key)
            if swapped:
                self.warnings.say(
                    "prompt_only_reward",
                    f"reward sees the prompt only: it is one number for all completions of a prompt, and stayed the same for {swapped} of "
                    f"{swapped} samples that were given the completion of another prompt; let the function read sample.completion",
                )
                return
        self.warnings.say(self.dead_rewards.fault, sentence)

    def _mean(self, values: Sequence[float]) -> float:
        totals = self.strategy.all_reduce({"count": float(len(values)), "sum": float(sum(values))}, "sum")
        return float(totals["sum"] / max(totals["count"], 1.0))


def sampling_params(config: Config) -> SamplingParams:
    """How a rollout is sampled."""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        n=config.n_samples_per_prompt,
        max_new_tokens=config.generate_max_len,
    )


def completions_of(prompts: Sequence[Prompt], outputs: Sequence[RequestOutput], *, tokenizer: Any) -> list[Trajectory]:
    """One trajectory per completion, prompt-major; texts are decoded here, in one batch, without special tokens."""
    pairs = [(prompt, output, completion) for prompt, output in zip(prompts, outputs, strict=True) for completion in output.completions]
    texts = tokenizer.batch_decode([list(c.token_ids) for _, _, c in pairs], skip_special_tokens=True)
    return [
        Trajectory(
            prompt_ids=list(prompt.token_ids),
            completion=completion,
            sample=Sample(
                prompt=prompt.text,
                completion=text,
                answer=prompt.answer,
                row=prompt.row,
                finish_reason=completion.finish_reason,
                num_tokens=len(completion.token_ids),
            ),
            group_id=output.id,
        )
        for (prompt, output, completion), text in zip(pairs, texts, strict=True)
    ]
