"""Rewards that start while the engine still generates: a thread scores the prompts that have ended, the rest is scored at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lightrft.batch.stages import Sampled
from lightrft.errors import EngineError
from lightrft.rewards.score import Scores
from lightrft.types import RequestOutput, Sample

Score = Callable[[Sequence[Sample]], Scores]
Read = Callable[[int, RequestOutput], list[Sample]]
Key = tuple[int, int]
"""A request, and the number of the completion within it."""


@dataclass(frozen=True)
class _Early:
    """What was scored: its tokens (None: after the end, of the batch itself), and where its scores are."""

    token_ids: list[int] | None
    scores: Scores
    at: int


class EarlyRewards:
    """`finished` goes to `gather_and_generate` as `on_finished`; `scores` gives the rewards of all completions afterwards. Local.

    `read(i, output)` makes the samples of prompt i, `score` calls the reward functions: both in one thread of this object, one call at a
    time, each with all prompts that have ended since the last one, so slow rewards see few large lists. A prompt's completions stay
    together; which prompts meet in a call depends on time.
    """

    def __init__(self, *, read: Read, score: Score) -> None:
        self._read = read
        self._score = score
        self._ended: queue.SimpleQueue[tuple[int, RequestOutput] | None] = queue.SimpleQueue()
        self._found: dict[Key, _Early] = {}
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

    def scores(self, batch: Sampled) -> Scores:
        """Of these sequences, in order; those not scored yet are scored now, in one call.

        Raises:
            RewardError: a reward function failed, here or in the thread.
            EngineError: the engine handed over another completion than it returned.
        """
        self.close()
        self._thread.join()
        if self._error is not None:
            raise self._error
        keys = list(_keys(batch.group_ids.tolist()))
        rest = [at for at, key in enumerate(keys) if key not in self._found]
        late = self._score([batch.samples[at] for at in rest])
        self._found |= {keys[at]: _Early(None, late, number) for number, at in enumerate(rest)}
        found = [self._found[key] for key in keys]
        for key, early, tokens in zip(keys, found, batch.by_sequence(batch.token_ids), strict=True):
            if early.token_ids is not None and early.token_ids != tokens.tolist():
                raise EngineError(f"the engine handed over another completion of request {key[0]} than it returned in the end")
        return Scores(
            total=[early.scores.total[early.at] for early in found],
            parts={name: [early.scores.parts[name][early.at] for early in found] for name in late.parts},
        )

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if self._error is None:
                try:
                    self._score_ended(batch)
                except Exception as error:  # raised by `scores`, in the thread that asks
                    self._error = error

    def _score_ended(self, batch: Sequence[tuple[int, RequestOutput]]) -> None:
        scores = self._score([sample for index, output in batch for sample in self._read(index, output)])
        keys = _keys([output.id for _, output in batch for _ in output.completions])
        tokens = [list(completion.token_ids) for _, output in batch for completion in output.completions]
        self._found |= {key: _Early(ids, scores, at) for at, (key, ids) in enumerate(zip(keys, tokens, strict=True))}

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


def _keys(group_ids: Sequence[int]) -> Iterator[Key]:
    counts: dict[int, int] = {}
    for group in group_ids:
        number = counts.get(group, 0)
        counts[group] = number + 1
        yield group, number
