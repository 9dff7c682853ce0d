"""Checkpoints of one model: written beside their place and renamed, with the checksum of every file, and verified before they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightrft.distributed.atomic_folder import find, fresh_beside, removed_on_failure, replace
from lightrft.distributed.collectives import gather_objects
from lightrft.distributed.consensus import together
from lightrft.errors import CheckpointError, LightRFTError
from lightrft.strategy import ema
from lightrft.strategy.hooks import Optimizer, Scheduler, StrategyHooks

MANIFEST = "manifest.json"
EXTRA = "extra.pt"


def save(
    strategy: StrategyHooks,
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    client_state: dict[str, Any],
) -> Path:
    """See `StrategyBase.save_ckpt`; without an optimizer, `save_ema_model`."""
    temporary = fresh_beside(strategy.world, folder)
    with removed_on_failure(strategy.world, temporary):
        _write(strategy, temporary, folder, model=model, optimizer=optimizer, scheduler=scheduler, client_state=client_state)
    return folder


def load(
    strategy: StrategyHooks, folder: Path, *, model: torch.nn.Module, optimizer: Optimizer | None, scheduler: Scheduler | None
) -> dict[str, Any]:
    """See `StrategyBase.load_ckpt`; without an optimizer, `load_ema_model`."""
    doing = f"loading {str(folder)!r}"
    source = find(folder)
    extra: dict[str, Any] = {}
    together(strategy.world, doing, lambda: _check(strategy, source, model))
    together(strategy.world, doing, _reading(source, lambda: extra.update(_extra(source))))
    if optimizer is None:
        together(strategy.world, doing, _reading(source, lambda: ema.load(source, model)))
    else:
        together(strategy.world, doing, _reading(source, lambda: strategy._load_state(source, model, optimizer)))
    if scheduler is not None and extra["scheduler"] is not None:
        scheduler.load_state_dict(extra["scheduler"])
    client_state: dict[str, Any] = extra["client_state"]
    return client_state


def _extra(folder: Path) -> dict[str, Any]:
    found = torch.load(folder / EXTRA, weights_only=True, map_location="cpu")
    return {name: found[name] for name in ("scheduler", "client_state")}


def _reading(folder: Path, work: Callable[[], object]) -> Callable[[], None]:
    """`work`, whose errors of all kinds about what stands in the files are CheckpointErrors of one line."""

    def read() -> None:
        try:
            work()
        except (LightRFTError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            words = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise CheckpointError(f"{str(folder)!r} cannot be read ({words}); take another checkpoint") from error

    return read


def _write(
    strategy: StrategyHooks,
    temporary: Path,
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    client_state: dict[str, Any],
) -> None:
    doing = f"saving {str(folder)!r}"
    _write_files(strategy, temporary, doing, model=model, optimizer=optimizer, scheduler=scheduler, client_state=client_state)
    digests: dict[str, str] = {}
    together(strategy.world, doing, lambda: digests.update(_digests(strategy, temporary, _files(temporary))))
    files = {name: digest for part in gather_objects(digests, group=strategy.world.group) for name, digest in part.items()}
    about = _about(strategy, model)

    def finish() -> None:
        _seal(temporary, about, files)
        replace(temporary, folder)

    together(strategy.world, doing, finish, rank_0_only=True)


def write(
    strategy: StrategyHooks,
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    client_state: dict[str, Any],
) -> Callable[[], None]:
    """The files of `save`, as they are now, without checksums: no checkpoint yet. Collective.

    Returns:
        What makes it one: reads the files again for their checksums. To be called once, on rank 0 alone; any thread may.
    """
    doing = f"saving {str(folder)!r}"
    together(strategy.world, doing, lambda: folder.mkdir(parents=True), rank_0_only=True)
    _write_files(strategy, folder, doing, model=model, optimizer=optimizer, scheduler=scheduler, client_state=client_state)
    about = _about(strategy, model)
    return lambda: _seal(folder, about, {name: _digest(folder / name) for name in _files(folder)})


def _write_files(
    strategy: StrategyHooks,
    folder: Path,
    doing: str,
    *,
    model: torch.nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    client_state: dict[str, Any],
) -> None:
    extra = {"scheduler": scheduler.state_dict() if scheduler else None, "client_state": client_state}
    if optimizer is None:
        together(strategy.world, doing, lambda: ema.save(folder, model, rank=strategy.world.rank))
    else:
        together(strategy.world, doing, lambda: strategy._save_state(folder, model, optimizer))
    together(strategy.world, doing, lambda: torch.save(extra, folder / EXTRA), rank_0_only=True)


def _about(strategy: StrategyHooks, model: torch.nn.Module) -> dict[str, Any]:
    return {"strategy": strategy.spec.name, "world_size": strategy.world.world_size, "parameters": strategy._shapes(model)}


def _seal(folder: Path, about: dict[str, Any], files: dict[str, str]) -> None:
    (folder / MANIFEST).write_text(json.dumps(about | {"files": files}), encoding="utf-8")


def _check(strategy: StrategyHooks, folder: Path, model: torch.nn.Module) -> None:
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{str(folder)!r} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        saved_by, files, theirs = manifest["strategy"], dict(manifest["files"]), dict(manifest["parameters"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{str(folder)!r} is damaged: {MANIFEST} cannot be read") from error
    if saved_by != strategy.spec.name:
        raise CheckpointError(f"{str(folder)!r} was saved by strategy {saved_by!r}, this is {strategy.spec.name!r}")
    mine = strategy._shapes(model)
    different = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    if different:
        first = ", ".join(f"{n} (saved {theirs.get(n)}, here {mine.get(n)})" for n in different[:3])
        raise CheckpointError(f"{str(folder)!r} is of another model: {len(different)} parameters differ, first: {first}")
    here = {*_files(folder)} - {MANIFEST}
    for name in sorted({*here} ^ {*files}):
        what = "is missing" if name in files else f"was not saved with it ({MANIFEST} does not name it)"
        raise CheckpointError(f"{str(folder)!r} is damaged: {name} {what}")
    for name, digest in _digests(strategy, folder, list(files)).items():
        if digest != files[name]:
            raise CheckpointError(f"{str(folder)!r} is damaged: {name} is not what was saved")


def _digests(strategy: StrategyHooks, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Of this rank's slice of the files."""
    return {name: _digest(folder / name) for name in sorted(names)[strategy.world.rank :: strategy.world.world_size]}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
