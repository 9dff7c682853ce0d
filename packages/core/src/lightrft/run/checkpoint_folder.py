"""A run's checkpoints: folders `checkpoints/step-N` in the run folder, which of them are whole, and which stay. No torch.

`trainer.json` carries a checksum of itself and those of the manifests in the folder, which carry those of all other files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightrft.errors import CheckpointError

FOLDER, STATE_FILE, MANIFESTS = "checkpoints", "trainer.json", "*/manifest.json"
LATEST = "latest"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One whole checkpoint: its folder, its step, and the value that the best are chosen by (None: not measured there)."""

    folder: Path
    step: int
    value: float | None


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is or will be."""
    return run / FOLDER / f"step-{step}"


def saved_in(run: Path) -> list[Saved]:
    """The whole checkpoints of a run folder, oldest step first. One that a kill left between two renames counts (`.step-N.old`)."""
    found = {}
    for path in sorted((run / FOLDER).glob(".step-*.old")) + sorted((run / FOLDER).glob("step-*")):
        match = re.fullmatch(r"\.?step-(\d+)(\.old)?", path.name)
        if match and (path / STATE_FILE).is_file():
            step = int(match[1])
            found[step] = Saved(folder=folder_of(run, step), step=step, value=_value(path / STATE_FILE))
    return [found[step] for step in sorted(found)]


def to_remove(saved: Sequence[Saved], *, keep: int, keep_best: int, mode: Literal["max", "min"]) -> list[Saved]:
    """Those that are neither among the `keep` newest (0: all) nor among the `keep_best` best; of two equal ones the newer is better."""
    if keep == 0:
        return []
    stay = {one.step for one in sorted(saved, key=lambda one: one.step)[-keep:]}
    measured = [one for one in saved if one.value is not None]
    sign = 1.0 if mode == "max" else -1.0
    measured.sort(key=lambda one: (sign * (one.value or 0.0), one.step))
    stay |= {one.step for one in measured[len(measured) - min(keep_best, len(measured)) :]}
    return [one for one in saved if one.step not in stay]


def remove(saved: Sequence[Saved]) -> None:
    """Deletes them: renamed first, so that a kill half-way leaves nothing that looks whole."""
    for one in saved:
        doomed = one.folder.with_name(f".{one.folder.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        if one.folder.exists():
            one.folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def check_space(run: Path, *, doing: str, least: int) -> None:
    """Whether another checkpoint has room: as much as the newest one there, or `least` bytes, and a tenth more.

    Raises:
        CheckpointError: it has not.
    """
    saved = saved_in(run)
    newest = sum(path.stat().st_size for path in whole(saved[-1].folder).rglob("*") if path.is_file()) if saved else 0
    needed, free = (
        int(1.1 * max(newest, least)),
        shutil.disk_usage(next(path for path in (run, *run.absolute().parents) if path.exists())).free,
    )
    if free < needed:
        raise CheckpointError(
            f"{doing}: no space left on device: about {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB free at {str(run)!r}; "
            "make room, or set keep_checkpoints lower; what was there before is unchanged"
        )


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes `trainer.json` into a folder in which everything else is written: `about`, and the checksums."""
    content = dict(about) | {"manifests": _manifests(folder)}
    content["checksum"] = _checksum(content)
    (folder / STATE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def find(resume_from: str, *, run: Path) -> Path:
    """The checkpoint that the setting names: a folder, or `latest`, the newest of the run folder whose `trainer.json` is as it was saved.

    Raises:
        CheckpointError: none there.
    """
    if resume_from == LATEST:
        saved = saved_in(run)
        if not saved:
            raise CheckpointError(f"resume_from='latest': no checkpoint in {str(run / FOLDER)!r}; leave resume_from out to begin a run")
        return next((one.folder for one in reversed(saved) if _reads(one.folder)), saved[-1].folder)
    folder = Path(resume_from).expanduser()
    if (whole(folder) / STATE_FILE).is_file():
        return folder
    inside = saved_in(folder)
    hint = f"; did you mean {str(inside[-1].folder)!r}?" if inside else f" (it has no {STATE_FILE}); give one like RUN/{FOLDER}/step-10"
    raise CheckpointError(f"resume_from={resume_from!r} is no checkpoint{hint}")


def _reads(folder: Path) -> bool:
    try:
        read(folder)
    except CheckpointError:
        return False
    return True


def whole(folder: Path) -> Path:
    """Where the checkpoint `folder` is: there, or still beside it, if a kill came while it was replaced."""
    old = folder.with_name(f".{folder.name}.old")
    return old if not folder.exists() and old.is_dir() else folder


def read(folder: Path) -> dict[str, Any]:
    """What `trainer.json` says: step, value, config, world_size.

    Raises:
        CheckpointError: it is damaged or altered, is of another step than the folder's name says, or other manifests lie beside it.
    """
    path = whole(folder) / STATE_FILE
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        checksum = found.pop("checksum")
        if not (isinstance(found["step"], int) and isinstance(found["config"], dict) and isinstance(found["manifests"], dict)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, f"{STATE_FILE} cannot be read") from error
    if checksum != _checksum(found):
        raise _damaged(folder, f"{STATE_FILE} is not what was saved")
    named = re.fullmatch(r"step-(\d+)", folder.name)
    if named and int(named[1]) != found["step"]:
        raise _damaged(folder, f"its name says step {named[1]}, its {STATE_FILE} step {found['step']}")
    here = _manifests(whole(folder))
    for name in sorted({*here, *found["manifests"]}):
        if here.get(name) != found["manifests"].get(name):
            raise _damaged(folder, f"{name} is {'not what was saved' if name in here else 'missing'}")
    return found


def damage(folder: Path, *, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, empty if nothing: `read`'s complaints, and the checksums of every `parts`-th file from `part` on."""
    try:
        read(folder)
        here = whole(folder)
        named = {
            f"{Path(manifest).parent}/{name}": checksum
            for manifest in _manifests(here)
            for name, checksum in json.loads((here / manifest).read_text(encoding="utf-8"))["files"].items()
        }
        there = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
        if missing := sorted({*named} - there):  # nothing outside of the folder is opened, nor a device or a pipe in it
            return f"{str(folder)!r} is damaged: {missing[0]!r} is missing"
        for name in sorted(named)[part::parts]:
            with (here / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != named[name]:
                    return f"{str(folder)!r} is damaged: {name} is not what was saved"
    except CheckpointError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{str(folder)!r} is damaged: a manifest cannot be read ({type(error).__name__})"
    except OSError as error:
        return f"{str(folder)!r} is damaged: {error.filename} cannot be read ({error.strerror})"
    return ""


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{str(folder)!r} is damaged: {what}{_another(folder)}")


def _manifests(folder: Path) -> dict[str, str]:
    found = sorted(folder.glob(MANIFESTS))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file()}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _another(folder: Path) -> str:
    others = [one for one in saved_in(folder.parent.parent) if one.folder != folder] if folder.parent.name == FOLDER else []
    return f"; others there: {', '.join(one.folder.name for one in others)}" if others else ""


def _value(path: Path) -> float | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("value")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # `read` says what is wrong with it, when it is asked for
    return float(value) if isinstance(value, (int, float)) else None
