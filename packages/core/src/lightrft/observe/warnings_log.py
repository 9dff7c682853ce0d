"""Where does a run's warning go? To the console, to `warnings.jsonl`, and into a list that the summary and the report show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightrft.distributed.world import World

WARNINGS_FILE = "warnings.jsonl"


@dataclass(frozen=True, kw_only=True)
class Warned:
    """`step` 0 is before training; `name` is the fault in snake case (`constant_reward`); `text` one sentence or two for a person."""

    step: int
    name: str
    text: str


class Warnings:
    """Every rank calls it alike; rank 0 prints and writes. `rows` is the same list everywhere. `step` is set by the trainer."""

    def __init__(self, *, world: World, folder: Path | None = None) -> None:
        self.world = world
        self.step = 0
        self.rows: list[Warned] = []
        self._path = folder / WARNINGS_FILE if folder is not None and world.is_first else None

    def say(self, name: str, text: str) -> None:
        """One warning. Local: nothing is exchanged."""
        row = Warned(step=self.step, name=name, text=text)
        self.rows.append(row)
        if self.world.is_first:
            print(f"WARNING: {text}", flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def state_dict(self) -> dict[str, Any]:
        """The warnings so far."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; in another folder, the file begins with them."""
        self.rows = [Warned(**row) for row in state["rows"]]
        if self._path is not None and self.rows:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(map(_line, self.rows)), encoding="utf-8")


def _line(row: Warned) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"
