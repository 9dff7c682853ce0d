"""The rows that this rank takes next. An endless, shuffled stream that every rank partitions in the same way and that can be resumed."""

from __future__ import annotations

import random
from collections.abc import Mapping

from lightrft.errors import CheckpointError


class PromptSampler:
    """Deals rows to ranks: epoch after epoch, each in an order that depends on seed and epoch only.

    A step takes the next `batch_size` rows of that stream; rank r takes the r-th contiguous share of them. So what a step takes does
    not depend on the world size, and one number, the position in the stream, is all there is to save. Not collective: every rank
    counts for itself and must call `next_batch` equally often.
    """

    def __init__(self, num_rows: int, *, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}: a sampler needs at least one row")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} is no positive multiple of world_size={world_size}; use {world_size}, or a multiple")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in [0, {world_size - 1}]")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self._share = batch_size // world_size
        self._offset = rank * self._share
        self._position = 0
        self._orders: dict[int, list[int]] = {}

    @property
    def epoch(self) -> float:
        """Passes over the data that all ranks together have taken so far; 1.5 is the middle of the second."""
        return self._position / self.num_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every row was taken at least once."""
        return -(-self.num_rows // self.batch_size)

    def next_batch(self) -> list[int]:
        """This rank's `batch_size / world_size` row numbers of the next step. A batch may reach into the next epochs."""
        start = self._position + self._offset
        self._position += self.batch_size
        rows = [self._row(position) for position in range(start, start + self._share)]
        current = self._position // self.num_rows
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= current}
        return rows

    def state_dict(self) -> dict[str, int]:
        """Plain numbers, the same on every rank; valid at any other world size."""
        return {"num_rows": self.num_rows, "seed": self.seed, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where the saved sampler stopped.

        Raises:
            CheckpointError: another seed, another number of rows or an incomplete state; the sampler is as it was.
        """
        for key in ("num_rows", "seed", "position"):
            if not isinstance(state.get(key), int):
                raise CheckpointError(f"sampler state {dict(state)!r}: {key!r} is {state.get(key)!r}, expected an int")
        for key, remedy in (("num_rows", "give the data that the run began with"), ("seed", "give the seed that the run began with")):
            if state[key] != getattr(self, key):
                raise CheckpointError(f"the checkpoint's sampler has {key}={state[key]}, this run has {key}={getattr(self, key)}: {remedy}")
        self._position = state["position"]
        self._orders = {}

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self.num_rows)
        if epoch not in self._orders:
            order = list(range(self.num_rows))
            # A text seeds Random through SHA-512: the same on every machine, and (seed, epoch) pairs do not collide.
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch][place]
