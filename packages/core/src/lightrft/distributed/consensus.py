"""Ranks that fail together: one rank's error is raised on all of them, under the name of the rank where it happened."""

from __future__ import annotations

from collections.abc import Callable

from safetensors import SafetensorError

from lightrft.distributed.collectives import agree
from lightrft.distributed.world import World
from lightrft.errors import CheckpointError

OF_TORCHS_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What its RuntimeErrors say where a file cannot be written: while it writes, in the last bytes, when it closes."""


def together(world: World, doing: str, work: Callable[[], object], *, rank_0_only: bool = False) -> None:
    """Runs `work`, then agrees on its outcome: an error on any rank is raised on all, as a PeerError where it is another rank's."""
    error: Exception | None = None
    try:
        if world.is_first or not rank_0_only:
            work()
    except (OSError, RuntimeError, SafetensorError) as caught:
        error = _as_checkpoint_error(caught, doing)
    except Exception as caught:  # to be raised on all ranks together
        error = caught
    agree(error, group=world.group, doing=doing)


def _as_checkpoint_error(caught: Exception, doing: str) -> Exception:
    """What the device refused as one line; anything else as it is. torch and safetensors hide the system's error in a text."""
    text = " ".join(str(caught).split())
    if isinstance(caught, OSError):
        reason = caught.strerror or text
    elif isinstance(caught, SafetensorError) or any(words in text for words in OF_TORCHS_WRITER):
        reason = f"a file cannot be written: {text}"
    else:
        return caught
    error = CheckpointError(f"{doing}: {reason}; what was there before is unchanged")
    error.__cause__ = caught
    return error
