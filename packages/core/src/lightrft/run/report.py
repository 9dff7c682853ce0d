"""What a run leaves behind: metrics to the loggers, plots, samples of lengths, the summary. Only rank 0 writes."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightrft.batch.stages import Trainable
from lightrft.config.checks import strategy_name
from lightrft.config.schema import Config
from lightrft.distributed.memory import memory_report
from lightrft.observe.warnings_log import Warnings
from lightrft.run.loggers import Logger, LoggerSetup
from lightrft.run.metric_rows import MetricRows
from lightrft.run.plots import plot_curves, plot_lengths, plot_rewards
from lightrft.run.rewind import rewind_logs
from lightrft.run.rollout_log import append_distributions, append_samples, write_phases
from lightrft.run.run_folder import UNVERIFIED_FILE, log_folder, write_engine, write_summary, write_unverified
from lightrft.run.token_rows import TextOf
from lightrft.strategy.strategy_base import StrategyBase

SUMMARY_METRICS = ("rollout/reward", "rollout/length_mean", "rollout/logprob_gap", "time/step_s")


class RunReport:
    """Collects what happened. `start`, `step` and `finish` are collective."""

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        total_steps: int,
        warnings: Warnings,
        text_of: TextOf,
        rewards: tuple[str, ...] = (),
    ) -> None:
        self.warnings, self._text_of = warnings, text_of
        self.strategy = strategy
        self.config = config
        self.loggers = _make_loggers(strategy, config, total_steps, rewards) if strategy.is_rank_0 else []
        self.plots = log_folder(config) / "plots"
        self.draws = bool(config.plot_every) and find_spec("matplotlib") is not None
        if config.plot_every and not self.draws:
            strategy.print("note: no plots are drawn, for matplotlib is not installed: pip install 'lightrft[plot]'")
        self.rows = MetricRows()
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.started = time.time()

    def start(self, metrics: Mapping[str, float]) -> None:
        """Step 0: the first verification of the engine's weights, and the evaluation before training."""
        if self.strategy.is_rank_0 and self.strategy.inference_engine is not None:
            write_engine(self.config, self.strategy.inference_engine.arguments)
            self._tell_unverified(self.strategy.unverified_weights)
        self.before = self.after = _parts(metrics)
        if metrics:
            self._log(0, metrics)

    def step(self, step: int, metrics: Mapping[str, float], experience: Trainable) -> None:
        """One step's metrics to the loggers, some completions to `samples.jsonl` and, every `plot_every` steps, distributions and plots."""
        self._log(step, metrics)
        self.after = _parts(metrics) or self.after
        if self.config.save_samples and self.strategy.is_rank_0:
            rows = append_samples(log_folder(self.config), step, experience, number=self.config.save_samples, text_of=self._text_of)
            for logger in self.loggers:
                if hasattr(logger, "log_samples"):
                    logger.log_samples(step, rows)
        if self.config.plot_every and (step % self.config.plot_every == 0 or step == 1):
            self._plot(step, experience)

    def phases(self, step: int, ranks: Sequence[Mapping[str, tuple[float, float]]]) -> None:
        """Where each phase of this step began on each rank, and how long it took. Local."""
        if self.strategy.is_rank_0:
            write_phases(log_folder(self.config), step, ranks)

    def finish(
        self,
        *,
        steps: int,
        model: Path | None,
        ema_model: Path | None = None,
        stopped: str = "",
        ended_early: str = "",
        checkpoint: Path | None = None,
    ) -> dict[str, Any]:
        """The curves and `summary.json`; returns the summary on every rank. `stopped` says what broke the run off before its last step,
        `ended_early` why it ended as a whole run before that.
        """
        peaks = self.strategy.all_gather(memory_report(self.strategy.world.device)["host_peak_gib"])
        last = next((row for row in reversed(self.rows) if "rollout/reward" in row), {})
        summary = {
            "steps": steps,
            "stopped": stopped,
            "ended_early": ended_early,
            "seconds": round(time.time() - self.started, 2),
            "seed": self.config.seed,
            "world_size": self.strategy.world.world_size,
            "strategy": strategy_name(self.config),
            "engine": self.config.engine_type,
            "run_dir": str(Path(self.config.output_dir)),
            "model_dir": str(model) if model else None,
            "ema_model_dir": str(ema_model) if ema_model else None,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "eval_before": self.before,
            "eval_after": self.after,
            "last": {name: last[name] for name in SUMMARY_METRICS if name in last},
            "warnings": [asdict(row) for row in self.warnings.rows],
            "skipped_steps": sum(self.strategy.skipped_steps.values()),
            "peak_memory_gib": [round(p, 3) for p in peaks],
        }
        self.close()
        if self.strategy.is_rank_0:
            if self.draws and any("rollout/reward" in row or "eval/reward" in row for row in self.rows):
                plot_curves(self.rows, path=self.plots / "curves.png")
            write_summary(self.config, summary)
        return summary

    def _tell_unverified(self, names: list[str]) -> None:
        """Once, and in the run folder: what reaches the engine without a check of its own."""
        if not names:
            return
        write_unverified(self.config, names)
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        self.strategy.print(
            f"note: engine {self.config.engine_type!r} gives no checksum of {len(names)} weights ({some}); whether they arrive is seen by "
            f"fixed prompts and the log-prob gap alone; all names: {UNVERIFIED_FILE} of the run folder"
        )

    def _plot(self, step: int, experience: Trainable) -> None:
        """Collective."""
        lengths = self.strategy.all_gather(experience.num_sampled).tolist()
        rewards = self.strategy.all_gather(experience.rewards).tolist()
        if not self.strategy.is_rank_0 or not lengths:
            return
        append_distributions(log_folder(self.config), step, lengths=lengths, rewards=rewards)
        if not self.draws:
            return
        plot_lengths(lengths, path=self.plots / f"lengths-{step:06d}.png", step=step, max_len=self.config.generate_max_len)
        plot_rewards(rewards, path=self.plots / f"rewards-{step:06d}.png", step=step)
        plot_curves(self.rows, path=self.plots / "curves.png")
        gc.collect()  # a figure is a knot of some ten thousand objects, which Python would look at too late: 3 MiB for each of these calls

    def close(self) -> None:
        """Closes the loggers. Idempotent. Local."""
        for logger in self.loggers:
            logger.close()
        self.loggers = []

    def state_dict(self) -> dict[str, Any]:
        """What has been reported so far."""
        rows, seconds = self.rows.state_dict(), time.time() - self.started
        return {"rows": rows, "before": dict(self.before), "after": dict(self.after), "seconds": seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; what the log folder holds of later steps, which will come again, is taken out."""
        self.rows.load_state_dict(state["rows"])
        self.before, self.after = dict(state["before"]), dict(state["after"])
        self.started = time.time() - state["seconds"]
        if self.strategy.is_rank_0:
            rewind_logs(log_folder(self.config), self.rows, keeps_metrics="jsonl" in self.config.loggers)
            self._rewind_loggers(int(self.rows[-1]["step"]) if self.rows else 0)

    def _rewind_loggers(self, step: int) -> None:
        for name, logger in zip(self.config.loggers, self.loggers, strict=True):
            if hasattr(logger, "rewind"):
                logger.rewind(step)
            else:
                self.strategy.print(f"resume: logger {name!r} has no `rewind`: what it holds of steps after {step} will be there twice")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": float(step), **metrics})
        for logger in self.loggers:
            logger.log(step, metrics)


def _parts(evaluation: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval/"): value for name, value in evaluation.items() if name.startswith("eval/")}


def _make_loggers(strategy: StrategyBase, config: Config, total_steps: int, rewards: tuple[str, ...]) -> list[Logger]:
    setup = LoggerSetup(log_dir=log_folder(config), config=config, total_steps=total_steps, rewards=rewards)
    setup.log_dir.mkdir(parents=True, exist_ok=True)
    return [strategy.registry.load("logger", name)(setup) for name in config.loggers]
