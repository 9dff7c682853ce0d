"""The KL's coefficient: fixed, or moved so that the KL to the initial model stays at a target.

Adaptive: e = clip((KL - target) / target, -0.2, 0.2), coefficient <- coefficient (1 + e n / horizon) after n completions: Ziegler et al.
2019, "Fine-Tuning Language Models from Human Preferences" (arXiv:1909.08593), section 2.2, with K = n / horizon as in its implementation.
"""

from __future__ import annotations

BOUND = 0.2


class KLController:
    """`coef` is the coefficient of the next update. `target` 0 keeps it fixed; else nats per completion. `horizon` in completions."""

    def __init__(self, *, coef: float, target: float = 0.0, horizon: float = 10000.0) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, *, kl: float, num_completions: float) -> None:
        """`kl`: the mean over `num_completions` completions of sum_t log pi - log pi_initial, nats. Nothing changes while fixed."""
        if self.target > 0:
            error = min(max((kl - self.target) / self.target, -BOUND), BOUND)
            self.coef *= 1.0 + error * num_completions / self.horizon

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The reverse. A fixed coefficient is the setting's, not the checkpoint's."""
        if self.target > 0:
            self.coef = state["coef"]
