"""Ends a run whose best metric no longer improves. And functions of the user that are called at the end of each rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightrft.config.schema import Config
from lightrft.distributed.collectives import gather_objects
from lightrft.distributed.consensus import together
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.saver import latest_value

Callback = Callable[[Any], Any]
"""Gets the trainer (`trainer.step`, `trainer.metrics`); a text that it returns ends the run, with that as the reason."""


class EarlyStop:
    """`early_stop_patience` measurements of `best_metric` in a row that are not better than the best before them end the run.

    Metrics are the same on every rank, and so is the answer. Local.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._best: float | None = None
        self._best_step = 0
        self._since = 0
        self.asked = ""
        """The reason that a callback gave to end the run."""

    @property
    def reason(self) -> str:
        """Why the run ends; empty while it goes on."""
        patience = self._config.early_stop_patience
        if self.asked or self._best is None or not 0 < patience <= self._since:
            return self.asked
        word = "above" if self._config.best_mode == "max" else "below"
        return (
            f"{self._config.best_metric} has not come {word} {self._best:.4g}, its value at rollout {self._best_step}, in {self._since} "
            f"measurements (early_stop_patience={patience})"
        )

    def observe(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Looks at the metrics of a step; those without the metric count for nothing."""
        value = latest_value(metrics, self._config.best_metric)
        if value is None:
            return
        if self._best is None or (value > self._best if self._config.best_mode == "max" else value < self._best):
            self._best, self._best_step, self._since = value, step, 0
        else:
            self._since += 1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_step": self._best_step, "since": self._since, "metric": self._config.best_metric}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str] | None:
        if state["metric"] != self._config.best_metric:
            return ["early_stop_patience counts anew, since best_metric is another one"] if self._config.early_stop_patience else []
        self._best, self._best_step, self._since = state["best"], state["best_step"], state["since"]
        return None


def call_back(callbacks: Sequence[Callback], trainer: Any, strategy: StrategyBase) -> str:
    """Calls each with the trainer, in order. Collective where there is one.

    Returns:
        The first reason that a callback gave, on any rank, to end the run, on every rank; empty to go on.

    Raises:
        Exception: what a callback raised, on its rank; PeerError on the others.
    """
    reasons: list[str] = []
    for callback in callbacks:
        name = getattr(callback, "__name__", type(callback).__name__)

        def call(callback: Callback = callback, name: str = name) -> None:
            answer = callback(trainer)
            reasons.append(f"{name}: {answer}" if isinstance(answer, str) and answer else "")

        together(strategy.world, f"calling {name}", call)
    given = [one for rank in gather_objects(reasons, group=strategy.world.group) for one in rank if one] if callbacks else []
    return given[0] if given else ""
