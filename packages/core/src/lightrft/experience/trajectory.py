"""What is one completion with everything that the update needs to know about it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightrft.models.logprobs import TokenBatch, token_batch
from lightrft.types import Completion, Sample


@dataclass(kw_only=True)
class Trajectory:
    """One completion. Tensors are float32 [T] on the CPU, T its own length.

    `group_id` is equal for the completions of one prompt. `reward` is the weighted sum of the reward functions. `old_logprobs` are the
    actor's before the update, at the rollout's temperature; `initial_logprobs` the initial model's, or None. `correction` weighs each
    token's policy loss for what the engine that sampled differs from the trainer, or None. `values` are the critic's before the update and
    `returns` what it is to learn, where there is one. `greedy` is the greedy completion of the prompt and `baseline` its reward, or None.
    Where `trains` is False, the loss leaves it out.
    """

    prompt_ids: list[int]
    completion: Completion
    sample: Sample
    group_id: int
    reward: float = 0.0
    old_logprobs: torch.Tensor | None = None
    initial_logprobs: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    correction: torch.Tensor | None = None
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    greedy: Trajectory | None = None
    baseline: float | None = None
    trains: bool = True

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.completion.token_ids)

    @property
    def length(self) -> int:
        """P + T."""
        return len(self.prompt_ids) + self.num_tokens


def as_token_batch(trajectories: list[Trajectory], *, device: torch.device) -> TokenBatch:
    """Right-padded rows in the order given; no trajectories give the dummy row."""
    return token_batch([(t.prompt_ids, list(t.completion.token_ids)) for t in trajectories], device=device)


def padded(trajectories: list[Trajectory], field: str, *, like: torch.Tensor) -> torch.Tensor:
    """A per-token field of all trajectories as [N, T], zeros beyond each one's end; device and shape of `like`."""
    out = torch.zeros(like.shape, dtype=torch.float32)
    for row, trajectory in enumerate(trajectories):
        values: Any = getattr(trajectory, field)
        out[row, : trajectory.num_tokens] = values
    return out.to(like.device)
