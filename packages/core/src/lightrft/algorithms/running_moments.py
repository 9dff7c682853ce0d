"""Mean and standard deviation of all rewards so far. Kept from rollout to rollout, and saved with a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

EPS = 1e-8


@dataclass
class RunningMoments:
    """Number, mean and sum of squared deviations of what was seen; batches are merged exactly (Chan, Golub & LeVeque 1979)."""

    count: float = 0.0
    mean: float = 0.0
    deviations: float = 0.0

    def update(self, *, count: float, mean: float, deviations: float) -> None:
        """One more batch: its number, its mean, and the sum of the squared deviations from it."""
        if count <= 0:
            return
        total = self.count + count
        shift = mean - self.mean
        self.deviations += deviations + shift * shift * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Of the sample (n - 1); 0 for fewer than two."""
        return math.sqrt(self.deviations / (self.count - 1)) if self.count > 1 else 0.0

    def normalized(self, value: float) -> float:
        """(value - mean) / std; 0 while all values seen were the same."""
        return (value - self.mean) / (self.std + EPS)

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"count": self.count, "mean": self.mean, "deviations": self.deviations}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The reverse."""
        self.count, self.mean, self.deviations = state["count"], state["mean"], state["deviations"]
