"""Every row of metrics of a run, in eight bytes a number: all are kept, for curves and checkpoints, however many rollouts there are."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


class MetricRows(Sequence[dict[str, float]]):
    """Rows that are only added to. Numbers come back as floats, in the order of the names that they came with."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, ...], int] = {}
        self._of_row = array("q")
        self._begins = array("q", [0])
        self._values = array("d")

    def append(self, row: Mapping[str, float]) -> None:
        """Names that were there before, in one order, take no memory again."""
        self._of_row.append(self._names.setdefault(tuple(row), len(self._names)))
        self._values.extend(float(value) for value in row.values())
        self._begins.append(len(self._values))

    def __len__(self) -> int:
        return len(self._of_row)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        names = list(self._names)[self._of_row[place]]
        return dict(zip(names, self._values[self._begins[place] : self._begins[place + 1]], strict=True))

    def __iter__(self) -> Iterator[dict[str, float]]:
        names = list(self._names)
        for place, of in enumerate(self._of_row):
            yield dict(zip(names[of], self._values[self._begins[place] : self._begins[place + 1]], strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The names, and two tensors; they share nothing with this."""
        names = [list(one) for one in self._names]
        return {"names": names, "of_row": _tensor(self._of_row, torch.int64), "values": _tensor(self._values, torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Those rows, and no others."""
        names = [tuple(one) for one in state["names"]]
        self._names, self._of_row, self._begins, self._values = {}, array("q"), array("q", [0]), array("d")
        values, place = state["values"].tolist(), 0
        for of in state["of_row"].tolist():
            end = place + len(names[of])
            self.append(dict(zip(names[of], values[place:end], strict=True)))
            place = end


def _tensor(numbers: array[Any], dtype: torch.dtype) -> torch.Tensor:
    """A copy."""
    return torch.frombuffer(numbers, dtype=dtype).clone() if len(numbers) else torch.empty(0, dtype=dtype)
