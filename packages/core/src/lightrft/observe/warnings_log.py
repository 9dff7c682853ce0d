"""A run's warnings: to the console, to `warnings.jsonl`, and into a list that the summary and the report show; or the end of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft.errors import StoppedByWarning
from lightrft.observe.warning_names import WarningName, printed

if TYPE_CHECKING:  # it brings torch, and commands that print read the file's name here
    from lightrft.distributed.world import World

WARNINGS_FILE = "warnings.jsonl"


@dataclass(frozen=True, kw_only=True)
class Warned:
    """`step` 0 is before training; `name` is the fault (`constant_reward`; see `WarningName`); `text` one sentence or two for a person."""

    step: int
    name: str
    text: str


class Warnings:
    """Every rank makes the same calls; rank 0 prints and writes. `rows` is the same list everywhere. `step` is set by the trainer.

    `stops`: a warning ends the run (`on_warning`).
    """

    def __init__(self, *, world: World, folder: Path | None = None, stops: bool = False) -> None:
        self.world = world
        self.stops = stops
        self._answered = 0
        self.step = 0
        self.rows: list[Warned] = []
        self._path = folder / WARNINGS_FILE if folder is not None and world.is_first else None

    def say(self, name: WarningName, text: str) -> None:
        """One warning. Local: nothing is exchanged."""
        row = Warned(step=self.step, name=name, text=text)
        self.rows.append(row)
        if self.world.is_first:
            print(printed(name, text), flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    @property
    def names(self) -> set[str]:
        """The names of all warnings so far."""
        return {row.name for row in self.rows}

    def stop_if_asked(self) -> None:
        """Where the run may end. Local; on every rank at the same place.

        Raises:
            StoppedByWarning: there was a warning since the last time, and warnings end the run.
        """
        new, self._answered = self.rows[self._answered :], len(self.rows)
        if self.stops and new:
            more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
            raise StoppedByWarning(f"step {new[0].step}: the run stops at a warning (on_warning=stop), {new[0].name}{more}: {new[0].text}")

    def state_dict(self) -> dict[str, Any]:
        """The warnings so far."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; in another folder, the file begins with them."""
        self.rows = [Warned(**row) for row in state["rows"]]
        self._answered = len(self.rows)  # the run was resumed all the same
        if self._path is not None and self.rows:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(map(_line, self.rows)), encoding="utf-8")


def _line(row: Warned) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"
