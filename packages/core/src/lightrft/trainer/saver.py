"""Saves a run so that it can go on as the same run. At its cadence, when it is told to stop, before an error ends it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightrft.config.schema import Config
from lightrft.distributed import atomic_folder
from lightrft.distributed.collectives import TOGETHER, gather_objects
from lightrft.distributed.consensus import together
from lightrft.distributed.stop import StopRequests
from lightrft.errors import CheckpointError, EngineError, LightRFTError, PeerError, RewardError, StoppedByWarning
from lightrft.run.checkpoint_folder import FOLDER, check_space, damage, folder_of, read, remove, saved_in, seal, to_remove, whole
from lightrft.strategy import checkpoint
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase
from lightrft.trainer.background import Background
from lightrft.trainer.resume import changed_settings
from lightrft.trainer.run_state import RunState, State

EMA_MODEL = "ema_model"
"""The folder of the moving average in a checkpoint; in the run folder, of its HF files."""

RAISED_TOGETHER = (RewardError, EngineError, PeerError, CheckpointError, StoppedByWarning)
"""Errors that come on all ranks at the same place, so that saving, which is collective, is still possible; those that are
marked (`TOGETHER`) do too.
"""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is trained: a model, its optimizer, its schedule."""

    model: torch.nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None = None


class StopRun(LightRFTError):
    """The run was told to stop; raised on all ranks together."""


class Saver:
    """Writes and reads `checkpoints/step-N`. `trained` is read at every save, so models may be added to it before the first.

    Between `mark` and `changing` the models are those of the marked step, and `save` gives a checkpoint of it, whatever has happened to
    the other parts since. With `async_save` a save returns when every rank has written its files, and `settle` waits for its end. Methods
    are collective unless they say otherwise.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        state: RunState,
        trained: Mapping[str, Trained],
        ema_model: torch.nn.Module | None = None,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.state = state
        self.trained = trained
        self.ema_model = ema_model
        self.requests = StopRequests()
        self.seconds = 0.0
        self._run = Path(config.output_dir)
        self._marked: tuple[int, State] | None = None
        self._value: float | None = None
        self._on_disk = -1
        self._since = time.monotonic()
        self._background = Background(strategy.world)

    def mark(self, step: int, *, value: float | None = None) -> None:
        """All parts are those of the end of this step; `value` is what the best are chosen by, where it was measured. Local."""
        self._marked, self._value = (step, self.state.snapshot()), value

    def changing(self) -> None:
        """The models are about to change: what was marked can no longer be saved. Local."""
        self._marked = None

    @property
    def marked(self) -> bool:
        """Whether `save` is possible."""
        return self._marked is not None

    def taken(self) -> dict[str, float]:
        """The seconds of the last save as a metric, once. Local."""
        seconds, self.seconds = self.seconds, 0.0
        return {"time/save_s": seconds} if seconds else {}

    @property
    def marked_step(self) -> int:
        """The step that is marked."""
        return self._marked[0] if self._marked else 0

    def stop_if_asked(self) -> None:
        """Raises StopRun on all ranks where one was told to stop."""
        if self.strategy.all_reduce(int(self.requests.asked), "max"):
            raise StopRun(self.requests.signal)

    def is_late(self) -> bool:
        """Whether the last checkpoint is older than `save_every_minutes` on any rank's clock. Collective where that is set."""
        minutes = self.config.save_every_minutes
        return bool(minutes and self.strategy.all_reduce(int(time.monotonic() - self._since >= 60 * minutes), "max"))

    def save(self) -> Path:
        """The checkpoint of the marked step, written beside its place and renamed; then those that need not stay are removed.

        Raises:
            CheckpointError: it, or the one before it, cannot be written (PeerError on the other ranks); older ones stay.
        """
        assert self._marked is not None, "nothing is marked"
        step, snapshot = self._marked
        folder = folder_of(self._run, step)
        if step == self._on_disk:
            return folder
        start = time.perf_counter()
        self.settle()
        with self.strategy.world.stamp.entering("save"):
            (self._begin if self.config.async_save else self._write)(step, self.state.gathered(snapshot), folder)
        self._on_disk, self._since = step, time.monotonic()
        self.seconds = time.perf_counter() - start
        return folder

    def settle(self) -> None:
        """Waits until the last save is whole.

        Raises:
            CheckpointError: it could not be written (PeerError on the other ranks); older ones stay.
        """
        if not self.config.async_save:
            return
        try:
            with self.strategy.world.stamp.entering("save"):
                self._background.settle()
        except Exception:
            self._on_disk = -1
            raise

    def _begin(self, step: int, state: State, folder: Path) -> None:
        """Every rank writes what it holds; checksums, the way to the disk and the name are left to a thread of rank 0."""
        temporary, doing = self._fresh(folder), f"saving {str(folder)!r}"
        parts: list[Callable[[], None]] = []
        with atomic_folder.removed_on_failure(self.strategy.world, temporary):
            for name, one in self.trained.items():
                self.strategy.maybe_load_optimizer(one.optimizer)
                client = state if name == next(iter(self.trained)) else {}
                part = checkpoint.write(
                    self.strategy, temporary / name, model=one.model, optimizer=one.optimizer, scheduler=one.scheduler, client_state=client
                )
                parts.append(part)
                self.strategy.maybe_offload_optimizer(one.optimizer)
            if self.ema_model is not None:
                average, where = self.ema_model, temporary / EMA_MODEL
                parts.append(checkpoint.write(self.strategy, where, model=average, optimizer=None, scheduler=None, client_state={}))
        value = self._value

        def finish() -> None:
            try:
                for part in parts:
                    part()
                self._finish(step, temporary, folder, value)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

        self._background.start(doing, finish)

    def _fresh(self, folder: Path) -> Path:
        """The empty folder that is written in, if there is room."""
        doing = f"saving {str(folder)!r}"
        together(self.strategy.world, doing, lambda: check_space(self._run, doing=doing, least=self._least_bytes()), rank_0_only=True)
        return atomic_folder.fresh_beside(self.strategy.world, folder)

    def _write(self, step: int, state: State, folder: Path) -> None:
        temporary, doing = self._fresh(folder), f"saving {str(folder)!r}"
        with atomic_folder.removed_on_failure(self.strategy.world, temporary):
            for name, one in self.trained.items():
                self.strategy.maybe_load_optimizer(one.optimizer)
                client = state if name == next(iter(self.trained)) else {}
                self.strategy.save_ckpt(
                    temporary / name, model=one.model, optimizer=one.optimizer, scheduler=one.scheduler, client_state=client
                )
                self.strategy.maybe_offload_optimizer(one.optimizer)
            if self.ema_model is not None:
                self.strategy.save_ema_model(temporary / EMA_MODEL, self.ema_model)
            finish = lambda: self._finish(step, temporary, folder, self._value)  # noqa: E731
            together(self.strategy.world, doing, finish, rank_0_only=True)

    def _least_bytes(self) -> int:
        """What the trained models and their two moments take at least: half precision."""
        sizes = [math.prod(shape) for one in self.trained.values() for shape in self.strategy._shapes(one.model).values()]
        return 2 * sum(sizes)

    def rescue(self, error: Exception) -> Path | None:
        """After an error: the checkpoint of the marked step, where there is one and all ranks are here together; else None."""
        heard = isinstance(error, (*RAISED_TOGETHER, StopRun)) or getattr(error, TOGETHER, False)
        together = self.strategy.world.world_size == 1 or heard
        self._background.join()
        if self._marked is None or not together:
            return None
        try:
            folder = self.save()
            self.settle()
        except Exception as failed:  # the first error is the one to tell
            self.strategy.print(f"no checkpoint could be saved: {failed}")
            return None
        self.strategy.print(f"saved {folder} before the run stops; go on with --resume_from {folder}")
        return folder

    def newest_whole(self) -> Path:
        """The newest checkpoint of the run folder that is not damaged; those that are, are told. Each rank looks at a part of the files.

        Raises:
            CheckpointError: there is none.
        """
        world, saved = self.strategy.world, saved_in(self._run)
        problem = f"no checkpoint in {str(self._run / FOLDER)!r}; leave resume_from out to begin a run"
        for one in reversed(saved):
            found = gather_objects(damage(one.folder, part=world.rank, parts=world.world_size), group=world.group)
            if not any(found):
                return one.folder
            problem = next(text for text in found if text)
            self.strategy.print(f"resume: {problem}; the one before it is tried")
        raise CheckpointError(f"resume_from='latest': {problem}")

    def load(self, folder: Path) -> int:
        """Restores models, optimizers, schedules and all parts; returns the step. What differs from the saved run is told.

        Raises:
            CheckpointError: damaged, of another model, other data or other settings that belong to the state.
        """
        about = read(folder)
        changes = changed_settings(about["config"], self.config)
        state: State = {}
        for name, one in self.trained.items():
            client = self.strategy.load_ckpt(whole(folder) / name, model=one.model, optimizer=one.optimizer, scheduler=one.scheduler)
            state |= client
        if self.ema_model is not None:
            self.strategy.load_ema_model(whole(folder) / EMA_MODEL, self.ema_model)
        left_out = self.state.load(state)
        for line in [*(f"changed since the checkpoint: {change}" for change in changes), *left_out]:
            self.strategy.print(f"resume: {line}")
        step: int = about["step"]
        if folder.resolve() == folder_of(self._run, step).resolve():
            self._on_disk = step
        return step

    def _finish(self, step: int, temporary: Path, folder: Path, value: float | None) -> None:
        about = {
            "step": step,
            "metric": self.config.best_metric,
            "value": value,
            "world_size": self.strategy.world.world_size,
            "config": self.config.model_dump(),
        }
        seal(temporary, about)
        atomic_folder.replace(temporary, folder)
        keep, keep_best, mode = self.config.keep_checkpoints, self.config.keep_best, self.config.best_mode
        remove(to_remove(saved_in(self._run), keep=keep, keep_best=keep_best, mode=mode))


def latest_value(metrics: Mapping[str, Any], name: str) -> float | None:
    """The value of a metric in one step's metrics, if it was measured there and is a number."""
    value = metrics.get(name)
    return float(value) if value is not None and value == value else None
