"""Steps of groups with a signal only: sample, leave out prompts whose completions all earn the same, go on until the step is full.

Yu et al. 2025, "DAPO", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from lightrft.batch.exchange import even_targets, exchange
from lightrft.batch.stages import Rewarded, Sampled, joined
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import gather_objects
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.strategy_base import StrategyBase


@dataclass(frozen=True)
class Group:
    """The samples of one prompt: of which rollout, whether two of their rewards differ, and their places int64 [K] in the batch."""

    attempt: int
    live: bool
    index: torch.Tensor


@dataclass
class DynamicSampling:
    """`rollout` and `reward` are the trainer's phases; `rollout` leaves the engine awake. What is sampled after a resume follows from the
    states of the sampler and of the engine.
    """

    strategy: StrategyBase
    config: Config
    next_prompts: Callable[[], Sequence[Prompt]]
    rollout: Callable[[Sequence[Prompt]], Sampled]
    reward: Callable[[Sampled], Rewarded]
    warnings: Warnings
    metrics: StepMetrics
    _short: bool = field(default=False, init=False)

    def collect(self) -> Rewarded:
        """This rank's sequences of `rollout_batch_size` groups of all ranks: those with a signal in the order of the stream of prompts.

        At most `dynamic_sampling_tries` rollouts; if too few groups have one by then, the first without fill the step, which is said.
        Collective.
        """
        wanted = self.config.rollout_batch_size
        parts: list[Rewarded] = []
        groups: list[Group] = []
        for attempt in range(self.config.dynamic_sampling_tries):
            part = self.reward(self.rollout(self.next_prompts()))
            # An engine numbers prompts within a call.
            parts.append(replace(part, group_ids=part.group_ids + attempt * wanted))
            groups += _groups(parts[-1], attempt, first=sum(map(len, parts[:-1])))
            if self.strategy.all_reduce(sum(group.live for group in groups), "sum") >= wanted:
                break
        self.strategy.maybe_sleep_inference_engine()
        everything = joined(parts)
        self._count(everything, groups, rollouts=len(parts))
        kept = self._chosen(groups)
        counts = gather_objects(len(kept), group=self.strategy.world.group)
        targets = even_targets(counts)[self.strategy.world.rank]
        nothing = torch.zeros(0, dtype=torch.int64)
        mine = everything.select(torch.cat([nothing, *(group.index for group in kept)]))
        to = torch.tensor([rank for rank, group in zip(targets, kept, strict=True) for _ in group.index], dtype=torch.int64)
        return exchange(mine, to, group=self.strategy.world.group)

    def state_dict(self) -> dict[str, bool]:
        """Whether the last step was short, which is said once for each stretch."""
        return {"short": self._short}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Goes on where the saved one stopped."""
        self._short = bool(state["short"])

    def _chosen(self, groups: Sequence[Group]) -> list[Group]:
        """This rank's part of the first groups with a signal, filled up with the first without. Collective."""
        rank = self.strategy.world.rank
        keys = gather_objects([(not group.live, group.attempt) for group in groups], group=self.strategy.world.group)
        # A rollout's prompts lie rank after rank in the stream: this is its order, whatever the number of ranks.
        order = sorted((key, owner, index) for owner, owned in enumerate(keys) for index, key in enumerate(owned))
        chosen = order[: self.config.rollout_batch_size]
        self._say(sum(not flat for (flat, _), _, _ in chosen))
        return [groups[index] for _, owner, index in sorted(chosen, key=lambda one: (one[0][1], one[2])) if owner == rank]

    def _say(self, number: int) -> None:
        wanted, tries = self.config.rollout_batch_size, self.config.dynamic_sampling_tries
        if number < wanted and not self._short:
            self.warnings.say(
                "dynamic_sampling_short",
                f"dynamic sampling: after {tries} rollouts (dynamic_sampling_tries) only {number} of {wanted} groups have two different "
                f"rewards; the step goes on with {wanted - number} that teach nothing; use other prompts, more samples or more tries",
            )
        self._short = number < wanted

    def _count(self, batch: Rewarded, groups: Sequence[Group], *, rollouts: int) -> None:
        sums = {
            "groups": float(len(groups)),
            "flat": float(sum(not group.live for group in groups)),
            "completions": float(len(batch)),
            "reward": float(batch.rewards.sum()),
        }
        self.metrics.add(
            "sampling",
            sums,
            lambda total: {
                "sampling/rollouts": float(rollouts),
                "sampling/groups": total["groups"],
                "sampling/flat_groups": total["flat"] / max(total["groups"], 1.0),
                "sampling/reward": total["reward"] / max(total["completions"], 1.0),
            },
        )


def _groups(batch: Rewarded, attempt: int, *, first: int) -> list[Group]:
    """In the order of their first sequence, whose place is `first` for the batch's first."""
    places: dict[int, list[int]] = {}
    for at, group in enumerate(batch.group_ids.tolist()):
        places.setdefault(group, []).append(at)
    rewards = batch.rewards.tolist()
    return [Group(attempt, len({rewards[at] for at in index}) > 1, torch.tensor(index) + first) for index in places.values()]
