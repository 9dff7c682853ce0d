"""How good is the model on held-out prompts? Greedy completions over all ranks, each prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.experience.maker import completions_of
from lightrft.experience.scored import scored_everywhere
from lightrft.rewards.load import NamedReward
from lightrft.rewards.score import score
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import SamplingParams


def evaluate(
    prompts: Sequence[Prompt], *, strategy: StrategyBase, config: Config, tokenizer: Any, rewards: Sequence[NamedReward]
) -> dict[str, float]:
    """Means over all prompts: `eval/reward` (weighted sum), `eval/NAME` for each reward function, `eval/length_mean`. Collective.

    `prompts` are all of them, on every rank; each rank takes every world-size-th.
    """
    mine = list(prompts[strategy.world.rank :: strategy.world.world_size])
    sampling = SamplingParams(temperature=0.0, max_new_tokens=config.generate_max_len)
    # The engine stays awake for the rollout that follows a sync: at sleep level 2 it would lose the weights that it has just got.
    outputs = strategy.gather_and_generate(
        sampling_params=sampling, all_prompt_token_ids=[list(p.token_ids) for p in mine], sleep_engine=False
    )
    trajectories = completions_of(mine, outputs, tokenizer=tokenizer)
    scores = scored_everywhere(lambda: score([t.sample for t in trajectories], rewards=rewards), strategy=strategy)
    sums = {"reward": sum(scores.total), "length_mean": sum(t.num_tokens for t in trajectories)}
    sums |= {f"part/{reward.name}": sum(scores.parts.get(reward.name, [])) for reward in rewards}
    totals = strategy.all_reduce({name: float(value) for name, value in sums.items()}, "sum")
    return {f"eval/{name.removeprefix('part/')}": total / max(len(prompts), 1) for name, total in totals.items()}
