"""A reward that does not tell completions apart: counts rollouts without a signal and says so in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.observe.warning_names import WarningName


class DeadRewardMonitor:
    """Watches the rewards of whole rollouts (of all ranks; the caller gathers them) and speaks once for each dead stretch.

    A rollout is dead when all its rewards are one number, or when no group (the n samples of one prompt) holds two different ones
    although some group has at least two members. `patience` dead rollouts in a row are reported; a live one starts anew.
    """

    def __init__(self, *, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience={patience} is not an int >= 1")
        self._patience = patience
        self._reported = False
        self._num_dead = 0
        self._num_same = 0
        self._num_same_completions = 0
        self._value: float | None = None
        self._num_alone = 0
        self.alone_for_long = False
        """True for the one rollout in which every prompt has had a single completion, with different rewards, for `patience` rollouts."""
        self.fault: WarningName = "zero_variance"
        """What the last sentence was about: `constant_reward` or `zero_variance`."""

    def update(self, rewards: Sequence[float], group_ids: Sequence[int]) -> str | None:
        """Takes one rollout: a reward and the group of each completion. A sentence when there is something to say.

        An empty rollout counts as none. Raises ValueError where the two lengths differ.
        """
        if len(rewards) != len(group_ids):
            raise ValueError(f"{len(rewards)} rewards but {len(group_ids)} group ids; one group id for each reward is needed")
        if not rewards:
            return None
        groups: dict[int, list[float]] = {}
        for reward, group in zip(rewards, group_ids, strict=True):
            groups.setdefault(group, []).append(reward)
        self._count(rewards, list(groups.values()))
        if self._reported or max(self._num_dead, self._num_same) < self._patience:
            return None
        self._reported = True
        self.fault = "constant_reward" if self._num_same >= self._patience else "zero_variance"
        return self._same_sentence() if self._num_same >= self._patience else self._groups_sentence()

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        return {name: value for name, value in vars(self).items() if name != "_patience"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        vars(self).update(state)

    def _count(self, rewards: Sequence[float], groups: list[list[float]]) -> None:
        value = rewards[0] if min(rewards) == max(rewards) else None
        compared = [group for group in groups if len(group) > 1]
        in_groups = bool(compared) and all(min(group) == max(group) for group in compared)
        self._num_dead = self._num_dead + 1 if in_groups else 0
        alone = not compared and value is None
        self._num_alone += alone
        self.alone_for_long = alone and self._num_alone == self._patience
        if value is None or value != self._value:
            self._num_same = self._num_same_completions = 0
        if value is not None:
            self._num_same += 1
            self._num_same_completions += len(rewards)
        self._value = value
        if not self._num_dead and not self._num_same:
            self._reported = False

    def _same_sentence(self) -> str:
        return (
            f"reward is {self._value} for all {self._num_same_completions} completions of the last {_rollouts(self._num_same)}, "
            "so nothing can be learned; look at some completions, at the reward function, at the answers (label_key), "
            "and whether completions are cut off (generate_max_len)"
        )

    def _groups_sentence(self) -> str:
        return (
            f"no group has two different rewards in the last {_rollouts(self._num_dead)}, so no advantage and no learning; "
            "the prompts are too easy or too hard for the model: use others, more samples (n_samples_per_prompt), "
            "a higher temperature or a finer reward"
        )


def _rollouts(number: int) -> str:
    return f"{number} rollouts" if number > 1 else "rollout"
