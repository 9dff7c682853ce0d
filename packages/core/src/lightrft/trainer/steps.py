"""How long is a run, and which of its steps are due for something?"""

from __future__ import annotations

from lightrft.config.schema import Config


def num_rollouts(config: Config, *, num_prompts: int) -> int:
    """Rollouts of the whole run: `num_episodes` passes over the prompts, or `max_steps` if that is less."""
    rollouts = config.num_episodes * -(-num_prompts // config.rollout_batch_size)
    return min(rollouts, config.max_steps) if config.max_steps else rollouts


def due(step: int, *, every: int, last: int = 0) -> bool:
    """Whether step `step`, counted from 1, is due for what happens every so many steps (0: never) and, with `last`, after the last one."""
    return every > 0 and (step % every == 0 or step == last)
