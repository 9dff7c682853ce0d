"""Programs of a model against tests: `passes` judges one, `lacking` says what this system does not give for it."""

from lightrft.rewards.sandbox.judge import lacking, passes

__all__ = ["lacking", "passes"]
