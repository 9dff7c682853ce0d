"""What transformers prints or imports by the way is kept out of a run: progress bars, and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from transformers.utils import logging as transformers_logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """For the time of the block; what was set before comes back."""
    bars: Any = transformers_logging  # its functions carry no annotations
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """For the time of the block, accelerate does not import DeepSpeed to see whether a plain module is wrapped by it.

    `save_pretrained` asks; where DeepSpeed is installed the import takes seconds and prints a warning, also in runs of another strategy.
    """
    if find_spec("accelerate") is None:
        yield
        return
    asked: Any = import_module("accelerate.utils.other")
    before = asked.is_deepspeed_available
    asked.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        asked.is_deepspeed_available = before
