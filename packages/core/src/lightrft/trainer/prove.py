"""Whether a run that goes on from a checkpoint is the run that nothing interrupted: a part of it is run again, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.errors import CheckpointError, ConfigError
from lightrft.run.checkpoint_folder import FOLDER, Saved, folder_of, read, saved_in, whole
from lightrft.run.run_data import Row, read_run
from lightrft.run.run_folder import log_folder
from lightrft.strategy.checkpoint import EXTRA, MANIFEST
from lightrft.trainer.resume import changed_settings
from lightrft.trainer.run import train

CLOCKS = ("time/", "memory/", "rollout/tokens_per_s")
"""Metrics that begin so are of the clock and the machine, and differ between any two runs."""

HOLDS_CLOCKS = ("report",)
"""Parts of the saved state that hold such metrics."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is run again: from the checkpoint `begin` to the end of rollout `until`, as `config` says, on `world_size` ranks."""

    run: Path
    begin: Saved
    until: int
    world_size: int
    config: Config


def plan_replay(run: Path, *, begin: int | None = None, until: int | None = None) -> Replay:
    """`begin`: the step of a checkpoint, by default of the last one that another follows, else of the last one that rollouts were logged
    after; `until`: the last step, by default that of the next checkpoint, else the last one logged.

    Raises:
        RunFolderError: there is no run.
        CheckpointError: no such checkpoint, nothing after it to compare with, or settings that were changed in between.
    """
    logged, saved = max((int(row["step"]) for row in read_run(run).metrics), default=0), saved_in(run)
    steps = [one.step for one in saved]
    if not steps:
        raise CheckpointError(f"no checkpoint in {str(run / FOLDER)!r} to go on from; save one with --save_every")
    if begin is None:
        begin = next((step for step in reversed(steps[:-1])), steps[-1])
    if begin not in steps:
        raise CheckpointError(f"no checkpoint of step {begin} in {str(run / FOLDER)!r}; there are {', '.join(map(str, steps))}")
    if until is None:
        until = next((step for step in steps if step > begin), logged)
    if not begin < until <= max(logged, steps[-1]):
        raise CheckpointError(f"nothing to compare from step {begin} to step {until}: the run's last step is {max(logged, steps[-1])}")
    found = saved[steps.index(begin)]
    about = read(found.folder)
    config = _as_saved(about["config"])
    if until in steps and (changes := changed_settings(about["config"], _as_saved(read(folder_of(run, until))["config"]))):
        raise CheckpointError(f"settings were changed between step {begin} and step {until}: {'; '.join(changes)}; take other checkpoints")
    return Replay(run=run, begin=found, until=until, world_size=about["world_size"], config=config)


def _as_saved(values: Mapping[str, Any]) -> Config:
    try:
        return make_config({name: value for name, value in values.items() if name in Config.model_fields})
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's settings cannot be read by this version: {error.problems[0]}") from None


def config_of(replay: Replay, folder: Path) -> Config:
    """Of the ranks that run it again, in a folder of their own; nothing else is as it was but where things are written."""
    places = {"output_dir": str(folder), "log_dir": "", "loggers": ["jsonl"], "plot_every": 0, "resume_from": str(replay.begin.folder)}
    saves = {"save_every": replay.until, "save_every_minutes": 0.0, "keep_checkpoints": 1, "keep_best": 0}
    return replay.config.model_copy(update=places | saves | {"overwrite_output_dir": False})


def run_again(config: Config, *, until: int) -> dict[str, Any]:
    """In each rank: the run of `config_of`, which ends with a checkpoint after rollout `until`. Collective."""

    def prove_resume(trainer: Any) -> str | None:
        return f"rollout {until} is compared" if trainer.step == until else None

    return train(config, callbacks=[prove_resume])


def compare(replay: Replay, folder: Path, *, within: float = 0.0) -> dict[str, Any]:
    """What the run and its replay in `folder` have in common, and every difference, in words.

    `within`: how far apart two metrics may be, relative to the larger one. 0 asks for the same bits, of metrics, and of weights, optimizer
    and all other state where both have a checkpoint of the last step.
    """
    steps = range(replay.begin.step + 1, replay.until + 1)
    rows = [_by_step(log_folder(replay.config.model_copy(update={"output_dir": str(replay.run)}))), _by_step(folder)]
    differences, compared = [], 0
    for step in steps:
        before, again = rows[0].get(step), rows[1].get(step)
        if before is None or again is None:
            differences += [f"step {step}: not in the {'run' if before is None else 'replay'}'s metrics.jsonl"]
            continue
        compared += len({name for name in before if not name.startswith(CLOCKS)})
        differences += [f"step {step}: {line}" for line in _metrics_that_differ(before, again, within=within)]
    files, state = 0, list[str]()
    if whole(folder_of(replay.run, replay.until)).is_dir():
        files, state = _state(whole(folder_of(replay.run, replay.until)), whole(folder_of(folder, replay.until)))
    return {
        "from": replay.begin.step, "to": replay.until, "world_size": replay.world_size, "metrics": compared, "files": files,
        "within": within, "differences": differences + ([] if within else state), "state": state,
        "same": compared > 0 and not differences and (bool(within) or not state),
    }  # fmt: skip


def _by_step(folder: Path) -> dict[int, Row]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is not there: the metrics of the run are what a replay is compared with (the logger jsonl)")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return {int(row["step"]): row for row in rows}


def _metrics_that_differ(before: Row, again: Row, *, within: float) -> Iterator[str]:
    for name in sorted({*before, *again}):
        one, two = before.get(name), again.get(name)
        if name.startswith(CLOCKS) or one == two or (one != one and two != two):
            continue
        if one is None or two is None:
            yield f"{name} is {one} in the run, {two} in the replay"
        elif not abs(one - two) <= within * max(abs(one), abs(two)):
            yield f"{name} is {one!r} in the run, {two!r} in the replay"


def _state(before: Path, again: Path) -> tuple[int, list[str]]:
    """Of two checkpoints: how many files of tensors were compared, and what differs."""
    number, differs = 0, []
    parts = sorted({path.parent.name for folder in (before, again) for path in folder.glob(f"*/{MANIFEST}")})
    for part in parts:
        one, two = (_files(folder / part) for folder in (before, again))
        number += len(one)
        differs += [f"{part}/{name} is not the same" for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
        saved = [torch.load(folder / part / EXTRA, weights_only=True, map_location="cpu") for folder in (before, again)]
        differs += [f"{part}: {place} is not the same" for place in _unlike(saved[0], saved[1])]
    return number, differs


def _files(part: Path) -> dict[str, str]:
    files = json.loads((part / MANIFEST).read_text(encoding="utf-8"))["files"] if (part / MANIFEST).is_file() else {}
    return {name: digest for name, digest in files.items() if name != EXTRA}


def _unlike(one: Any, two: Any, place: Sequence[str] = ()) -> list[str]:
    """The places at which two saved states differ, to a depth of two names."""
    if place and place[-1] in HOLDS_CLOCKS:
        return []
    if isinstance(one, Mapping) and isinstance(two, Mapping) and len(place) < 3:
        return [line for name in sorted({*one, *two}, key=str) for line in _unlike(one.get(name), two.get(name), [*place, str(name)])]
    return [] if _same(one, two) else [".".join(place)]


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(_same(*pair) for pair in zip(one, two, strict=True))
    return bool(one == two or (one != one and two != two))
