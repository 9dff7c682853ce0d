"""The rows that this rank takes next. An endless, shuffled stream that every rank partitions in the same way and that can be resumed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.data.mixture import Mixture
from lightrft.errors import CheckpointError


class PromptSampler:
    """Deals rows to ranks: epoch after epoch, each in an order that depends on seed and epoch only.

    Of a `mixture` every source has epochs of its own, and the weights say whose row is next.

    A step takes the next `batch_size` rows of that stream; rank r takes the r-th contiguous slice of them. So what a step takes does
    not depend on the world size, and the number of rows that were taken of each source is all there is to save. Not collective: every
    rank counts for itself and must call `next_batch` equally often.
    """

    def __init__(self, num_rows: int, *, batch_size: int, rank: int, world_size: int, seed: int, mixture: Mixture | None = None) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}: a sampler needs at least one row")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} is no positive multiple of world_size={world_size}; use {world_size}, or a multiple")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in [0, {world_size - 1}]")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.mixture = mixture or Mixture((num_rows,))
        assert sum(self.mixture.sizes) == num_rows
        self._rank = rank
        self._slice = batch_size // world_size
        self._offset = rank * self._slice
        self._taken = [0] * len(self.mixture.sizes)
        self._orders: dict[int, tuple[int, list[int]]] = {}
        """Of each source the epoch that it is in, and its order."""

    @property
    def epoch(self) -> float:
        """Passes over the data that all ranks together have taken so far; 1.5 is the middle of the second."""
        return sum(self._taken) / self.mixture.epoch_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every row was taken at least once."""
        return -(-self.mixture.epoch_rows // self.batch_size)

    def next_batch(self) -> list[int]:
        """This rank's `batch_size / world_size` row numbers of the next step. A batch may reach into the next epochs."""
        rows = [self._next_row() for _ in range(self.batch_size)]
        return rows[self._offset : self._offset + self._slice]

    def next_rows(self, counts: Sequence[int]) -> list[int]:
        """This rank's row numbers of a step that gives each rank so many rows of the stream, in rank order."""
        rows = [self._next_row() for _ in range(sum(counts))]
        first = sum(counts[: self._rank])
        return rows[first : first + counts[self._rank]]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, the same on every rank; valid at any other world size."""
        own = {"sizes": list(self.mixture.sizes), "strides": list(self.mixture.strides), "taken": list(self._taken)}
        return {"num_rows": self.num_rows, "seed": self.seed, "position": sum(self._taken), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the saved sampler stopped.

        Raises:
            CheckpointError: another seed, another number of rows, other sources or an incomplete state; the sampler is as it was.
        """
        for key in ("num_rows", "seed", "position"):
            if not isinstance(state.get(key), int):
                raise CheckpointError(f"sampler state {dict(state)!r}: {key!r} is {state.get(key)!r}, expected an int")
        # A checkpoint from before there were mixtures has one source.
        sources = {"sizes": [state["num_rows"]], "strides": [1], "taken": [state["position"]]} | dict(state)
        here = self.state_dict()
        data, weights = "give the data that the run began with", "give the prompt_data_weights that the run began with"
        remedies = {"num_rows": data, "seed": "give the seed that the run began with", "sizes": data, "strides": weights}
        for key, remedy in remedies.items():
            if sources[key] != here[key]:
                raise CheckpointError(f"the checkpoint's sampler has {key}={sources[key]}, this run has {key}={here[key]}: {remedy}")
        self._taken = list(sources["taken"])
        self._orders = {}

    def _next_row(self) -> int:
        source = self.mixture.following(self._taken)
        size = self.mixture.sizes[source]
        epoch, place = divmod(self._taken[source], size)
        self._taken[source] += 1
        if self._orders.get(source, (-1, []))[0] != epoch:
            self._orders[source] = epoch, self._order(source, epoch, size)
        return self._orders[source][1][place]

    def _order(self, source: int, epoch: int, size: int) -> list[int]:
        first = sum(self.mixture.sizes[:source])
        order = list(range(first, first + size))
        # A text seeds Random through SHA-512: the same on every machine, and (seed, epoch, source) triples do not collide.
        random.Random(f"{self.seed}/{epoch}" + (f"/{source}" if source else "")).shuffle(order)
        return order
