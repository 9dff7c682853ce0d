"""How long is a run?"""

from __future__ import annotations

from lightrft.config.schema import Config


def num_rollouts(config: Config, *, num_prompts: int) -> int:
    """Rollouts of the whole run: `num_episodes` passes over the prompts, or `max_steps` if that is less."""
    rollouts = config.num_episodes * -(-num_prompts // config.rollout_batch_size)
    return min(rollouts, config.max_steps) if config.max_steps else rollouts
