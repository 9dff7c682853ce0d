"""A square of free fields and a goal on it: the model moves, the environment shows where it stands. To test with and to learn from.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightrft.rollout.environment import Continue, End, Environment, Step, Turn

MOVES = {"u": (0, -1), "d": (0, 1), "l": (-1, 0), "r": (1, 0)}
LEAST, MOST = 2, 9


class Gridworld(Environment):
    """The row has `size` (2 to 9 fields a side, by default 4), and `start` and `goal`, each `[x, y]` from the upper left corner, `[0, 0]`.

    The row's prompt has to say where the model stands and where it should go, `0,0>2,1:` for instance. Each turn is one move, the first
    letter of which counts: `u`, `d`, `l` or `r`; one into a wall leaves it where it is. The answer is the new place, ` 1,0: `: a tokenizer
    has to know these characters. `solved` is 1 at the goal; a turn that is no move, or the last one, ends the episode.

    Raises ValueError for a row that names no such places.
    """

    def start(self, row: Mapping[str, Any]) -> None:
        self._size = row.get("size", 4)
        if not isinstance(self._size, int) or not LEAST <= self._size <= MOST:
            raise ValueError(f"gridworld needs a size of {LEAST} to {MOST} fields, found size={self._size!r:.60}")
        self._at, self._goal = (self._place(row, name) for name in ("start", "goal"))
        if self._at == self._goal:
            raise ValueError(f"gridworld: start and goal are both {list(self._goal)}; there is nothing to do")

    def step(self, turn: Turn) -> Step:
        move = MOVES.get(turn.text.strip()[:1].lower())
        if move is not None:
            x, y = (min(max(place + by, 0), self._size - 1) for place, by in zip(self._at, move, strict=True))
            self._at = (x, y)
        solved = self._at == self._goal
        if move is None or solved or turn.is_last:
            return End(reward={"solved": float(solved)}, info={"turns": turn.number + 1})
        return Continue(text=f" {self._at[0]},{self._at[1]}: ")

    def _place(self, row: Mapping[str, Any], name: str) -> tuple[int, int]:
        value = row.get(name)
        fits = isinstance(value, (list, tuple)) and len(value) == 2
        if not fits or not all(type(one) is int and 0 <= one < self._size for one in value or ()):
            raise ValueError(f"gridworld needs a column {name} with [x, y], each from 0 to {self._size - 1}, found {value!r:.60}")
        assert value is not None
        return int(value[0]), int(value[1])
