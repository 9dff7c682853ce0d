"""What one sees while it trains: a live table on a terminal, else one aligned line for each rollout."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightrft.run.loggers.base import LoggerSetup

if TYPE_CHECKING:
    from rich.table import Table

LIVE_ROWS = 15
RATE_OF = 20
"""Rollouts whose time the time that is left is estimated from."""
HEADER_EVERY = 25
MISSING = "-"


@dataclass(frozen=True)
class Column:
    """One metric: its heading, how a number is written, its width; it is left out where the setting `needs` is off."""

    heading: str
    metric: str
    form: str
    width: int
    needs: str = ""


COLUMNS = (
    Column("reward", "rollout/reward", ".3f", 7),
    Column("eval", "eval/reward", ".3f", 6, "eval_data"),
    Column("tokens", "rollout/length_mean", ".1f", 7),
    Column("KL", "train/kl", ".4f", 7, "kl_coef"),
    Column("gap", "rollout/logprob_gap", ".1e", 8, "logprob_gap_prompts"),
    Column("grad", "train/grad_norm", ".3g", 8),
    Column("lr", "train/lr", ".1e", 8),
    Column("tok/s", "rollout/tokens_per_s", ",.0f", 8),
    Column("s/rollout", "time/step_s", ".2f", 9),
)


class ConsoleLogger:
    """Writes to stdout. On a terminal it keeps the last rows in place; metrics of one rollout that come in several calls share its row.

    Where several rewards are summed, each has a column under its name, unweighted.
    """

    def __init__(self, setup: LoggerSetup) -> None:
        self._total = setup.total_steps
        columns = [c for c in COLUMNS if not c.needs or getattr(setup.config, c.needs)]
        parts = [Column(name, f"reward/{name}", ".3f", max(len(name), 6)) for name in setup.rewards]
        self._columns = [*columns[:1], *(parts if len(parts) > 1 else []), *columns[1:]]
        self._done: deque[tuple[int, float]] = deque(maxlen=RATE_OF + 1)
        self._rows: deque[tuple[int, dict[str, float]]] = deque(maxlen=LIVE_ROWS)
        self._lines = 0
        self._start = time.monotonic()
        self._live = None
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._done or self._done[-1][0] != step:
            self._done.append((step, time.monotonic()))
        if self._live is None:
            self._print_line(step, metrics)
            return
        if self._rows and self._rows[-1][0] == step:
            self._rows[-1][1].update(metrics)
        else:
            self._rows.append((step, dict(metrics)))
        self._live.update(self._table(), refresh=True)

    def rewind(self, step: int) -> None:
        """Nothing to do: a new process has printed nothing."""

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _print_line(self, step: int, metrics: Mapping[str, float]) -> None:
        first = f"{'rollout':>{2 * self._digits + 1}}"
        if self._lines % HEADER_EVERY == 0:
            print(first, *(f"{c.heading:>{c.width}}" for c in self._columns), f"{'time':>8} {'left':>8}", flush=True)
        self._lines += 1
        cells = [f"{cell(column, metrics):>{column.width}}" for column in self._columns]
        print(f"{self._step(step):>{len(first)}}", *cells, f"{self._elapsed():>8} {self._left():>8}", flush=True)

    def _table(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = f"rollout {self._step(self._rows[-1][0])} · {self._elapsed()} · {self._left()} left"
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        for heading in ("rollout", *(c.heading for c in self._columns)):
            table.add_column(heading, justify="right", no_wrap=True)
        for step, metrics in self._rows:
            table.add_row(str(step), *(cell(column, metrics) for column in self._columns))
        return table

    @property
    def _digits(self) -> int:
        return max(2, len(str(self._total)))

    def _step(self, step: int) -> str:
        return f"{step}/{self._total}"

    def _elapsed(self) -> str:
        return in_words(time.monotonic() - self._start)

    def _left(self) -> str:
        """The time that the other rollouts will take at the pace of the last ones; `-` before two have ended."""
        (first, began), (last, ended) = self._done[0], self._done[-1]
        return in_words((self._total - last) * (ended - began) / (last - first)) if last > first else MISSING


def in_words(seconds: float) -> str:
    """Minutes and seconds as `2:05`, from an hour on `1:02:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def cell(column: Column, metrics: Mapping[str, float]) -> str:
    """The number of a column, `-` where the step has none, `nan` or `inf` as they are."""
    value = metrics.get(column.metric)
    if value is None:
        return MISSING
    return format(value, column.form) if math.isfinite(value) else str(value)
