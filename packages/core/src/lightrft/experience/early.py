"""How do rewards start while the engine still generates? A thread scores the prompts that have ended, the rest is scored at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from lightrft.errors import EngineError
from lightrft.experience.trajectory import Trajectory
from lightrft.rewards.score import Scores
from lightrft.types import RequestOutput

Score = Callable[[list[Trajectory]], Scores]
Complete = Callable[[int, RequestOutput], list[Trajectory]]


class EarlyRewards:
    """`finished` goes to `gather_and_generate` as `on_finished`; `scores` gives the rewards of all completions afterwards. Local.

    `complete(i, output)` makes the trajectories of prompt i, `score` calls the reward functions: both in one thread of this object, one
    call at a time, each with all prompts that have ended since the last one, so slow rewards see few large lists. A prompt's completions
    stay together; which prompts meet in a call depends on time.
    """

    def __init__(self, *, complete: Complete, score: Score) -> None:
        self._complete = complete
        self._score = score
        self._ended: queue.SimpleQueue[tuple[int, RequestOutput] | None] = queue.SimpleQueue()
        self._found: dict[tuple[int, int], tuple[Trajectory, Scores, int]] = {}
        self._error: Exception | None = None
        # A daemon: a reward that hangs must not keep alive a rank that ends because of another error.
        self._thread = threading.Thread(target=self._work, name="lightrft-rewards", daemon=True)
        self._thread.start()

    def finished(self, index: int, output: RequestOutput) -> None:
        """Returns at once."""
        self._ended.put((index, output))

    def close(self) -> None:
        """No more will come; what waits is still scored. Idempotent."""
        self._ended.put(None)

    def scores(self, trajectories: Sequence[Trajectory]) -> Scores:
        """Of these trajectories, in order; those not scored yet are scored now, in one call.

        Raises:
            RewardError: a reward function failed, here or in the thread.
            EngineError: the engine handed over another completion than it returned.
        """
        self.close()
        self._thread.join()
        if self._error is not None:
            raise self._error
        keys = _keys(trajectories)
        rest = [t for key, t in zip(keys, trajectories, strict=True) if key not in self._found]
        late = self._score(rest)
        self._remember(rest, late)
        total: list[float] = []
        parts: dict[str, list[float | None]] = {name: [] for name in late.parts}
        for key, trajectory in zip(keys, trajectories, strict=True):
            early, scores, at = self._found[key]
            if list(early.completion.token_ids) != list(trajectory.completion.token_ids):
                raise EngineError(f"the engine handed over another completion of request {key[0]} than it returned in the end")
            total.append(scores.total[at])
            for name, values in scores.parts.items():
                parts[name].append(values[at])
        return Scores(total=total, parts=parts)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if self._error is None:
                try:
                    made = [t for index, output in batch for t in self._complete(index, output)]
                    self._remember(made, self._score(made))
                except Exception as error:  # raised by `scores`, in the thread that asks
                    self._error = error

    def _next(self) -> list[tuple[int, RequestOutput]] | None:
        """Waits for one, takes all that are there; None once closed."""
        first = self._ended.get()
        if first is None:
            return None
        batch = [first]
        while not self._ended.empty():
            item = self._ended.get()
            if item is None:
                self.close()  # for the next call
                break
            batch.append(item)
        return batch

    def _remember(self, trajectories: Sequence[Trajectory], scores: Scores) -> None:
        for at, (key, trajectory) in enumerate(zip(_keys(trajectories), trajectories, strict=True)):
            self._found[key] = trajectory, scores, at


def _keys(trajectories: Sequence[Trajectory]) -> list[tuple[int, int]]:
    """(request, number of the completion within it)."""
    counts: dict[int, int] = {}
    keys = []
    for trajectory in trajectories:
        number = counts.get(trajectory.group_id, 0)
        counts[trajectory.group_id] = number + 1
        keys.append((trajectory.group_id, number))
    return keys
