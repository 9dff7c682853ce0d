"""Folders that are whole or absent: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightrft.distributed.consensus import together
from lightrft.distributed.world import World


def find(folder: Path) -> Path:
    """Where the checkpoint `folder` is: there, or still beside it, if a kill came between the two renames of `replace`."""
    old = _beside(folder, "old")
    return old if not folder.exists() and old.is_dir() else folder


def fresh_beside(world: World, folder: Path) -> Path:
    """Makes the empty folder that `folder` is written in first. Collective."""
    temporary = _beside(folder, "tmp")
    together(world, f"saving {str(folder)!r}", lambda: _fresh(temporary), rank_0_only=True)
    return temporary


@contextmanager
def removed_on_failure(world: World, temporary: Path) -> Iterator[None]:
    """What was written of a save that failed is taken away: a device without space would stay so. All ranks have stopped writing."""
    try:
        yield
    except Exception:
        if world.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace(temporary: Path, folder: Path) -> None:
    """Gives a finished folder its name. At every moment the older one, or this one, is whole under a name that `find` knows."""
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    old = _beside(folder, "old")
    if folder.exists():  # else `old` may be all there is
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
