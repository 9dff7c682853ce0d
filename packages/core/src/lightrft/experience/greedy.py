"""What does the greedy completion of each prompt earn? The baseline of estimators whose spec says `greedy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.experience.trajectory import Trajectory
from lightrft.rewards.score import Scores
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import RequestOutput, SamplingParams


def greedy_completions(prompts: Sequence[Prompt], *, strategy: StrategyBase, config: Config) -> list[RequestOutput]:
    """One for each prompt, in order. The engine stays awake for the samples that are drawn next. Collective."""
    return strategy.gather_and_generate(
        sampling_params=SamplingParams(temperature=0.0, max_new_tokens=config.generate_max_len),
        all_prompt_token_ids=[list(prompt.token_ids) for prompt in prompts],
        sleep_engine=False,
    )


def add_baselines(trajectories: Sequence[Trajectory], *, score: Callable[[Sequence[Trajectory]], Scores]) -> None:
    """Sets `baseline` from each one's `greedy`, which the completions of a prompt share: it is scored once. As collective as `score` is."""
    greedy = {id(t.greedy): t.greedy for t in trajectories if t.greedy is not None}
    rewards = dict(zip(greedy, score(list(greedy.values())).total, strict=True))
    for trajectory in trajectories:
        trajectory.baseline = rewards[id(trajectory.greedy)]
