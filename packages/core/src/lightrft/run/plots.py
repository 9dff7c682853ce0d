"""Pictures of lengths and rewards: PNG files, drawn by matplotlib, which is imported on use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030", "#718096"
MAX_BINS = 40
DPI = 130


def plot_lengths(lengths: Sequence[int], *, path: Path, step: int, max_len: int) -> None:
    """The distribution of completion lengths in tokens, with the mean and the limit; `lengths` must not be empty.

    Raises:
        UserError: matplotlib is not installed.
        ValueError: no lengths.
    """
    if not lengths:
        raise ValueError("no lengths to plot")
    figure, (axes,) = _figure(rows=1, height=3.6)
    longest = max(lengths)
    width = math.ceil((longest + 1) / MAX_BINS)
    edges = [i * width - 0.5 for i in range(longest // width + 2)]
    axes.hist(lengths, bins=edges, color=BLUE, alpha=0.85, edgecolor="white", linewidth=0.6)
    mean = sum(lengths) / len(lengths)
    axes.axvline(mean, color=ORANGE, linewidth=1.8, label=f"mean {mean:.1f}")
    at_limit = sum(n >= max_len for n in lengths) / len(lengths)
    if longest >= 0.7 * max_len:
        axes.axvline(max_len, color=RED, linewidth=1.4, linestyle="--", label=f"limit {max_len}")
    axes.set(xlabel="length of a completion (tokens)", ylabel="completions")
    axes.set_title(f"Completion lengths, rollout {step}", loc="left")
    axes.set_title(f"{len(lengths)} completions, {at_limit:.1%} at the limit of {max_len}", loc="right", fontsize=8, color=GREY)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_rewards(rewards: Sequence[float], *, path: Path, step: int) -> None:
    """The histogram of the rewards of a rollout, with their mean; `rewards` must not be empty.

    Raises:
        UserError: matplotlib is not installed.
        ValueError: no rewards.
    """
    if not rewards:
        raise ValueError("no rewards to plot")
    figure, (axes,) = _figure(rows=1, height=3.6)
    low, high = min(rewards), max(rewards)
    span = (low - 0.5, high + 0.5) if low == high else (low, high)
    axes.hist(rewards, bins=min(MAX_BINS, 20), range=span, color=GREEN, alpha=0.85, edgecolor="white", linewidth=0.6)
    mean = sum(rewards) / len(rewards)
    axes.axvline(mean, color=ORANGE, linewidth=1.8, label=f"mean {mean:.3g}")
    axes.set(xlabel="reward of a completion", ylabel="completions")
    axes.set_title(f"Rewards, rollout {step}", loc="left")
    axes.legend(frameon=False)
    _save(figure, path)


def plot_curves(rows: Sequence[Mapping[str, Any]], *, path: Path) -> None:
    """Training and evaluation reward over the steps, and below the mean completion length. `rows` are those of `metrics.jsonl`.

    Raises:
        UserError: matplotlib is not installed.
        ValueError: no row has a reward.
    """
    reward, evaluation, length = (_series(rows, name) for name in ("rollout/reward", "eval/reward", "rollout/length_mean"))
    if not reward[0] and not evaluation[0]:
        raise ValueError("no rewards to plot")
    figure, (top, bottom) = _figure(rows=2, height=5.6)
    top.plot(*reward, color=BLUE, alpha=0.3, linewidth=1)
    top.plot(reward[0], _smooth(reward[1]), color=BLUE, linewidth=2, label="rollout (sampled), smoothed")
    top.plot(*evaluation, color=ORANGE, linewidth=1.6, marker="o", markersize=4, label="evaluation (greedy)")
    top.set(ylabel="mean reward")
    top.set_title("Reward", loc="left")
    top.legend(frameon=False, loc="best")
    bottom.plot(*length, color=GREEN, linewidth=1.6)
    bottom.set(xlabel="step", ylabel="mean length (tokens)")
    _save(figure, path)


def _figure(*, rows: int, height: float) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'lightrft[plot]'; or set --plot_every 0") from error

    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [2, 1][:rows]
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    axes = [row[0] for row in grid]
    for one in axes:
        one.grid(axis="y", color="#e2e8f0", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps that have this metric, and its values there."""
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float], *, weight: float = 0.8) -> list[float]:
    """Exponential mean, corrected for its start."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1
        out.append(total / norm)
    return out
