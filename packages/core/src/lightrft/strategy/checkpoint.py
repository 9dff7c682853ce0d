"""How are checkpoints written so that nothing saved is ever lost, and how are they read back?"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lightrft.distributed.collectives import agree, gather_objects
from lightrft.errors import CheckpointError
from lightrft.strategy import average

if TYPE_CHECKING:
    from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase

MANIFEST = "manifest.json"
EXTRA = "extra.pt"
OF_TORCHS_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What its RuntimeErrors say where a file cannot be written: while it writes, in the last bytes, when it closes."""


def save(
    strategy: StrategyBase,
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    client_state: dict[str, Any],
) -> Path:
    """See `StrategyBase.save_ckpt`; without an optimizer, `save_ema_model`."""
    temporary = fresh_beside(strategy, folder)
    with removed_on_failure(strategy, temporary):
        _write(strategy, temporary, folder, model=model, optimizer=optimizer, scheduler=scheduler, client_state=client_state)
    return folder


def load(
    strategy: StrategyBase, folder: Path, *, model: torch.nn.Module, optimizer: Optimizer | None, scheduler: Scheduler | None
) -> dict[str, Any]:
    """See `StrategyBase.load_ckpt`; without an optimizer, `load_ema_model`."""
    doing = f"loading {str(folder)!r}"
    source = find(folder)
    extra: dict[str, Any] = {}
    together(strategy, doing, lambda: _check(strategy, source, model))
    together(strategy, doing, lambda: extra.update(torch.load(source / EXTRA, weights_only=True, map_location="cpu")))
    if optimizer is None:
        together(strategy, doing, lambda: average.load(source, model))
    else:
        together(strategy, doing, lambda: strategy._load_state(source, model, optimizer))
    if scheduler is not None and extra["scheduler"] is not None:
        scheduler.load_state_dict(extra["scheduler"])
    client_state: dict[str, Any] = extra["client_state"]
    return client_state


def find(folder: Path) -> Path:
    """Where the checkpoint `folder` is: there, or still beside it, if a kill came between the two renames of `replace`."""
    old = _beside(folder, "old")
    return old if not folder.exists() and old.is_dir() else folder


def fresh_beside(strategy: StrategyBase, folder: Path) -> Path:
    """Makes the empty folder that `folder` is written in first. Collective."""
    temporary = _beside(folder, "tmp")
    together(strategy, f"saving {str(folder)!r}", lambda: _fresh(temporary), rank_0_only=True)
    return temporary


@contextmanager
def removed_on_failure(strategy: StrategyBase, temporary: Path) -> Iterator[None]:
    """What was written of a save that failed is taken away: a device without space would stay so. All ranks have stopped writing."""
    try:
        yield
    except Exception:
        if strategy.is_rank_0:
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


def together(strategy: StrategyBase, doing: str, work: Callable[[], object], *, rank_0_only: bool = False) -> None:
    """Runs `work`, then agrees on its outcome: an error on any rank is raised on all, as a PeerError where it is another rank's."""
    error: Exception | None = None
    try:
        if strategy.is_rank_0 or not rank_0_only:
            work()
    except (OSError, RuntimeError, SafetensorError) as caught:
        error = _as_checkpoint_error(caught, doing)
    except Exception as caught:  # to be raised on all ranks together
        error = caught
    agree(error, group=strategy.world.group, doing=doing)


def _write(
    strategy: StrategyBase,
    temporary: Path,
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    client_state: dict[str, Any],
) -> None:
    doing = f"saving {str(folder)!r}"
    extra = {"scheduler": scheduler.state_dict() if scheduler else None, "client_state": client_state}
    if optimizer is None:
        together(strategy, doing, lambda: average.save(temporary, model, rank=strategy.world.rank))
    else:
        together(strategy, doing, lambda: strategy._save_state(temporary, model, optimizer))
    together(strategy, doing, lambda: torch.save(extra, temporary / EXTRA), rank_0_only=True)
    digests: dict[str, str] = {}
    together(strategy, doing, lambda: digests.update(_digests(strategy, temporary, _files(temporary))))
    files = {name: digest for part in gather_objects(digests, group=strategy.world.group) for name, digest in part.items()}

    def finish() -> None:
        manifest = {
            "strategy": strategy.spec.name,
            "world_size": strategy.world.world_size,
            "parameters": strategy._shapes(model),
            "files": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        replace(temporary, folder)

    together(strategy, doing, finish, rank_0_only=True)


def _check(strategy: StrategyBase, folder: Path, model: torch.nn.Module) -> None:
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{str(folder)!r} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        saved_by, files, theirs = manifest["strategy"], manifest["files"], manifest["parameters"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{str(folder)!r} is damaged: {MANIFEST} cannot be read") from error
    if saved_by != strategy.spec.name:
        raise CheckpointError(f"{str(folder)!r} was saved by strategy {saved_by!r}, this is {strategy.spec.name!r}")
    mine = strategy._shapes(model)
    different = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    if different:
        first = ", ".join(f"{n} (saved {theirs.get(n)}, here {mine.get(n)})" for n in different[:3])
        raise CheckpointError(f"{str(folder)!r} is of another model: {len(different)} parameters differ, first: {first}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{str(folder)!r} is damaged: {missing[0]} is missing")
    for name, digest in _digests(strategy, folder, list(files)).items():
        if digest != files[name]:
            raise CheckpointError(f"{str(folder)!r} is damaged: {name} is not what was saved")


def _digests(strategy: StrategyBase, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Of this rank's share of the files."""
    found = {}
    for name in sorted(names)[strategy.world.rank :: strategy.world.world_size]:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


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


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


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
