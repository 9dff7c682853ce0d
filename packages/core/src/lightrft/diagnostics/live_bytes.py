"""Bytes of the tensors that live at a time, counted as operations make them: on the meta device, where nothing is held, as anywhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """While it is entered, every storage that an operation makes counts from then until nothing refers to it.

    `now` and `peak` are bytes; tensors that were there before count nothing, a view nothing of its own. What a kernel holds only inside
    itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage(), before)
        return found

    def _note(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = id(storage)
        if key in self._seen or key in before:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that `work` holds at most, beside what was there before it."""
    live = LiveBytes()
    with live:
        work()
    return live.peak
