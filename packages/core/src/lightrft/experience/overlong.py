"""What becomes of completions that are too long? A soft punishment near the limit, and cut-off ones left out of the loss."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.config.schema import Config
from lightrft.experience.trajectory import Trajectory


def soft_punishment(num_tokens: int, *, longest: int, buffer: int) -> float:
    """From 0 down to -1 over the last `buffer` tokens before `longest` (Yu et al. 2025, "DAPO", equation 13)."""
    free = longest - buffer
    if num_tokens <= free:
        return 0.0
    return (free - num_tokens) / buffer if num_tokens <= longest else -1.0


def treat_overlong(trajectories: Sequence[Trajectory], *, config: Config) -> list[float]:
    """Adds the punishment to each reward, and says which completions the loss leaves out. Returns the punishments. Local.

    The reward of a greedy baseline is punished alike. A completion that is left out still counts in its group's mean, as in the paper.
    """
    punishments = [_punishment(t, config) for t in trajectories]
    for trajectory, punishment in zip(trajectories, punishments, strict=True):
        trajectory.reward += punishment
        if trajectory.baseline is not None and trajectory.greedy is not None:
            trajectory.baseline += _punishment(trajectory.greedy, config)
        trajectory.trains = not (config.overlong_filter and trajectory.completion.finish_reason == "length")
    return punishments


def _punishment(trajectory: Trajectory, config: Config) -> float:
    if not config.overlong_buffer:
        return 0.0
    found = soft_punishment(trajectory.num_tokens, longest=config.generate_max_len, buffer=config.overlong_buffer)
    return config.overlong_penalty * found
