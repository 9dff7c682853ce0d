"""The progress of a call to generate: one line on rank 0's terminal, and outputs before the last one, from engines that can say so."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from lightrft.types import RequestOutput

REFRESH_S = 0.2


class Report(Protocol):
    """What an engine tells while it generates: what it sampled, and how many completions ended, since the last call."""

    def __call__(self, *, tokens: int = 0, completions: int = 0) -> None: ...


def unwatched(*, tokens: int = 0, completions: int = 0) -> None:
    """The report that nobody reads."""


class Finished(Protocol):
    """Is given the output of a request that has ended while others still generate, once, and the same that `generate` returns."""

    def __call__(self, output: RequestOutput, /) -> None: ...


def unread(output: RequestOutput, /) -> None:
    """Leaves every output to `generate`'s return."""


def on_terminal(rank: int) -> bool:
    """Whether the line is shown: on rank 0, where stdout is a terminal."""
    return rank == 0 and sys.stdout.isatty()


@contextmanager
def progress_line(num_completions: int | None) -> Iterator[Report]:
    """A line on stdout that is there while the block runs, below the console logger's table where there is one. An engine that reports
    nothing leaves it empty. `num_completions` None: it is not known.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    totals = {"tokens": 0, "completions": 0}
    start = shown_s = time.monotonic()
    live = Live(Group(), auto_refresh=False, transient=True)

    def report(*, tokens: int = 0, completions: int = 0) -> None:
        nonlocal shown_s
        totals["tokens"] += tokens
        totals["completions"] += completions
        now = time.monotonic()
        if now - shown_s >= REFRESH_S:
            shown_s = now
            live.update(Text(line(**totals, num_completions=num_completions, seconds=now - start)), refresh=True)

    with live:
        try:
            yield report
        finally:
            live.update(Group(), refresh=True)


def line(*, tokens: int, completions: int, num_completions: int | None, seconds: float) -> str:
    """What the terminal says; tokens only where the engine counts them."""
    counted = f", {tokens:,} tokens, {tokens / seconds:,.0f} tok/s" if tokens else ""
    of = "" if num_completions is None else f" of {num_completions:,}"
    return f"generating: {completions:,}{of} completions{counted}"
