"""How long a run is, and which of its steps are due for something."""

from __future__ import annotations

from lightrft.config.schema import Config


def num_rollouts(config: Config, *, num_prompts: int) -> int:
    """Rollouts of the whole run: `max_steps` where it is set, else `num_episodes` passes over the prompts."""
    return config.max_steps or _of_episodes(config, num_prompts)


def bound_in_words(config: Config, *, num_prompts: int) -> str:
    """Which setting bounds the run, and what the other would have made of it."""
    episodes = _of_episodes(config, num_prompts)
    passes = f"num_episodes={config.num_episodes} over {num_prompts} prompts"
    if not config.max_steps:
        return f"{episodes} rollouts: {passes} (max_steps is not set)"
    return f"{config.max_steps} rollouts: max_steps={config.max_steps} decides ({passes} would be {episodes})"


def updates_per_rollout(config: Config) -> int:
    """Optimizer steps that one rollout is good for."""
    return config.rollout_batch_size * config.n_samples_per_prompt // config.train_batch_size * config.max_epochs


def count_updates(config: Config, *, num_prompts: int, first_rollouts_without: int = 0) -> int:
    """Optimizer steps of the whole run, over which a schedule goes; `first_rollouts_without`: rollouts in which the model stands still.

    Example::

        >>> import lightrft
        >>> settings = {"rollout_batch_size": 4, "n_samples_per_prompt": 8, "train_batch_size": 16, "num_episodes": 3}
        >>> lightrft.count_updates(lightrft.make_config(settings), num_prompts=8)  # 3 x 2 rollouts, 2 updates of each
        12
    """
    return max(num_rollouts(config, num_prompts=num_prompts) - first_rollouts_without, 0) * updates_per_rollout(config)


def _of_episodes(config: Config, num_prompts: int) -> int:
    return config.num_episodes * -(-num_prompts // config.rollout_batch_size)


def is_scheduled(step: int, *, every: int, last: int = 0) -> bool:
    """Whether step `step`, counted from 1, is due for what happens every so many steps (0: never) and, with `last`, after the last one."""
    return every > 0 and (step % every == 0 or step == last)
