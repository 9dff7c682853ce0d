"""A number to be guessed: the environment says whether the guess was too low or too high. To test with and to learn from. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightrft.rollout.environment import Continue, End, Environment, Step, Turn

LOWER, HIGHER = " lower ", " higher "


class GuessNumber(Environment):
    """The row's `answer`, a whole number, is to be guessed; the row's prompt says between what. Each turn of the model is one guess.

    Answers with the texts ` lower ` and ` higher `: a tokenizer has to know their characters. `solved` is 1 for a right guess, else 0;
    a turn that is no number, or the last one, ends the episode. `info` has the guesses.

    Raises ValueError for a row without such an answer.
    """

    def start(self, row: Mapping[str, Any]) -> None:
        answer = row.get("answer")
        if not str(answer).strip().isdecimal():
            raise ValueError(f"guess_number needs a column answer with a whole number, found {answer!r:.60}")
        self._number = int(str(answer))
        self._guesses: list[int] = []

    def step(self, turn: Turn) -> Step:
        text = turn.text.strip()
        if not (text.isascii() and text.isdecimal()):
            return self._end(solved=False)
        self._guesses.append(int(text))
        if self._guesses[-1] == self._number or turn.is_last:
            return self._end(solved=self._guesses[-1] == self._number)
        return Continue(text=LOWER if self._guesses[-1] > self._number else HIGHER)

    def _end(self, *, solved: bool) -> End:
        return End(reward={"solved": float(solved)}, info={"guesses": list(self._guesses)})
