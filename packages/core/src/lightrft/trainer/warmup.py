"""Teaches a model a task's form before reinforcement learning. Supervised steps on target texts, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from lightrft.batch.collect import sequences_of
from lightrft.batch.images import ImageInputs
from lightrft.batch.micro_batch import padded
from lightrft.models.score import score_tokens
from lightrft.types import Completion

BETAS = (0.9, 0.95)
MAX_NORM = 1.0
PRINT_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids to read (with the prompt's images) and token ids to imitate; the end-of-sequence token is part of the target."""

    prompt: Sequence[int]
    target: Sequence[int]
    images: ImageInputs | None = None


@dataclass(frozen=True, kw_only=True)
class WarmupSettings:
    """At most `steps` AdamW steps of `batch_size` examples; `target_reward` above 0 ends them early, checked every `check_every` steps."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    target_reward: float = 0.0
    check_every: int = 10


@dataclass(frozen=True, kw_only=True)
class WarmupResult:
    """Steps taken, the last step's loss in nats per target token, and the last greedy reward, None if it was never measured."""

    steps: int
    loss: float
    greedy_reward: float | None


def warm_up(
    model: Any, examples: Sequence[Example], *, settings: WarmupSettings, greedy_reward: Callable[[], float], log: Callable[[str], None]
) -> WarmupResult:
    """Trains `model` in place, in the order that `settings.seed` shuffles, and leaves it in eval mode.

    `greedy_reward` measures the model as it is; it is called only where `target_reward` is above 0. `log` gets a line at a time.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("a warm-up needs at least one example")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=0.0)
    loss, reward = float("nan"), None
    for step, rows in enumerate(islice(shuffled_batches(len(examples), settings.batch_size, seed=settings.seed), settings.steps), 1):
        loss = _step(model.train(), [examples[row] for row in rows], optimizer)
        checked = settings.target_reward > 0 and (step % settings.check_every == 0 or step == settings.steps)
        if checked:
            model.eval()
            reward = greedy_reward()
        reached = checked and reward is not None and reward >= settings.target_reward
        if step % PRINT_EVERY == 0 or step == settings.steps or reached:
            log(f"warm-up step {step}: loss {loss:.3f}" + ("" if reward is None else f", greedy reward {reward:.3f}"))
        if reached:
            break
    model.eval()
    return WarmupResult(steps=step, loss=loss, greedy_reward=reward)


def target_loss(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-probability, in nats, over all target tokens of the examples together; prompt tokens do not count."""
    targets = [(e.prompt, Completion(token_ids=e.target, finish_reason="stop", weight_version=0)) for e in examples]
    batch = sequences_of(targets, group_ids=range(len(examples)), images=[e.images for e in examples])
    micro = padded(batch, torch.arange(len(examples)), device=next(model.parameters()).device)
    logprobs = micro.grid.spread(score_tokens(model, micro, temperatures=(1.0,)).logprobs[0])
    return -logprobs.sum() / micro.grid.mask().sum()


def shuffled_batches(num_rows: int, size: int, *, seed: int) -> Iterator[list[int]]:
    """Endless batches of row numbers. Every row comes once before any comes again; a batch may reach into the next shuffle."""
    generator = torch.Generator().manual_seed(seed)
    left: list[int] = []
    while True:
        while len(left) < size:
            left += torch.randperm(num_rows, generator=generator).tolist()
        yield left[:size]
        left = left[size:]


def _step(model: Any, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> float:
    loss = target_loss(model, examples)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward without annotations
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    return loss.item()
