"""How does a step get only groups with a signal? Sample, leave out prompts whose completions all earn the same, go on until it is full.

Yu et al. 2025, "DAPO", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import gather_objects
from lightrft.experience.groups import by_group, even_targets, exchange, has_signal
from lightrft.experience.trajectory import Trajectory
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.strategy_base import StrategyBase

Group = list[Trajectory]


@dataclass
class DynamicSampling:
    """`rollout` and `reward` are the trainer's phases; `rollout` leaves the engine awake. What is sampled after a resume follows from the
    states of the sampler and of the engine.
    """

    strategy: StrategyBase
    config: Config
    next_prompts: Callable[[], Sequence[Prompt]]
    rollout: Callable[[Sequence[Prompt]], list[Trajectory]]
    reward: Callable[[list[Trajectory]], None]
    warnings: Warnings
    metrics: dict[str, float]
    _short: bool = field(default=False, init=False)

    def collect(self) -> list[Trajectory]:
        """This rank's completions of `rollout_batch_size` groups of all ranks: those with a signal in the order of the stream of prompts.

        At most `dynamic_sampling_tries` rollouts; if too few groups have one by then, the first without fill the step, which is said.
        `reward/NAME` becomes the mean over all rollouts. Collective.
        """
        wanted = self.config.rollout_batch_size
        groups: list[tuple[int, bool, Group]] = []
        parts: list[dict[str, float]] = []
        for attempt in range(self.config.dynamic_sampling_tries):
            trajectories = self.rollout(self.next_prompts())
            self.reward(trajectories)
            parts.append({name: value for name, value in self.metrics.items() if name.startswith("reward/")})
            for trajectory in trajectories:
                trajectory.group_id += attempt * wanted  # an engine numbers prompts within a call
            groups += [(attempt, has_signal(group), group) for group in by_group(trajectories)]
            if self.strategy.all_reduce(sum(live for _, live, _ in groups), "sum") >= wanted:
                break
        self.strategy.maybe_sleep_inference_engine()
        self._measure(groups, parts)
        kept = self._chosen(groups)
        counts = gather_objects(len(kept), group=self.strategy.world.group)
        mine = exchange(kept, even_targets(counts)[self.strategy.world.rank], strategy=self.strategy)
        return [trajectory for group in mine for trajectory in group]

    def state_dict(self) -> dict[str, bool]:
        """Whether the last step was short, which is said once for each stretch."""
        return {"short": self._short}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Goes on where the saved one stopped."""
        self._short = bool(state["short"])

    def _chosen(self, groups: Sequence[tuple[int, bool, Group]]) -> list[Group]:
        """This rank's part of the first groups with a signal, filled up with the first without. Collective."""
        rank = self.strategy.world.rank
        keys = gather_objects([(not live, attempt) for attempt, live, _ in groups], group=self.strategy.world.group)
        # A rollout's prompts lie rank after rank in the stream: this is its order, whatever the number of ranks.
        order = sorted((key, owner, index) for owner, owned in enumerate(keys) for index, key in enumerate(owned))
        chosen = order[: self.config.rollout_batch_size]
        self._say(sum(not flat for (flat, _), _, _ in chosen))
        return [groups[index][2] for _, owner, index in sorted(chosen, key=lambda one: (one[0][1], one[2])) if owner == rank]

    def _say(self, number: int) -> None:
        wanted, tries = self.config.rollout_batch_size, self.config.dynamic_sampling_tries
        if number < wanted and not self._short:
            self.warnings.say(
                "dynamic_sampling_short",
                f"dynamic sampling: after {tries} rollouts (dynamic_sampling_tries) only {number} of {wanted} groups have two different "
                f"rewards; the step goes on with {wanted - number} that teach nothing; use other prompts, more samples or more tries",
            )
        self._short = number < wanted

    def _measure(self, groups: Sequence[tuple[int, bool, Group]], parts: Sequence[dict[str, float]]) -> None:
        rewards = [t.reward for _, _, group in groups for t in group]
        sums = self.strategy.all_reduce(
            {
                "groups": float(len(groups)),
                "flat": float(sum(not live for _, live, _ in groups)),
                "completions": float(len(rewards)),
                "reward": float(sum(rewards)),
            },
            "sum",
        )
        self.metrics |= {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self.metrics |= {
            "sampling/rollouts": float(len(parts)),
            "sampling/groups": sums["groups"],
            "sampling/flat_groups": sums["flat"] / max(sums["groups"], 1.0),
            "sampling/reward": sums["reward"] / max(sums["completions"], 1.0),
        }
