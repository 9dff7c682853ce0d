"""The plots come out as PNG for ordinary and for odd numbers; a missing matplotlib is said in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightrft.errors import UserError
from lightrft.run.plots import plot_curves, plot_lengths

PNG = b"\x89PNG"


@pytest.mark.parametrize("lengths", [[3], [0, 0], [12] * 50, list(range(1, 1025))])
def test_lengths(lengths: list[int], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    path = tmp_path / "plots" / "lengths.png"
    plot_lengths(lengths, path=path, step=1, max_len=1024)
    assert path.read_bytes().startswith(PNG)


def test_every_completion_is_in_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes_module = pytest.importorskip("matplotlib.axes", reason="the extra `plot` is not installed")
    counts: list[float] = []
    real = axes_module.Axes.hist

    def hist(self: object, x: object, bins: object, color: str, alpha: float, edgecolor: str, linewidth: float) -> object:
        drawn = real(self, x, bins=bins, color=color, alpha=alpha, edgecolor=edgecolor, linewidth=linewidth)
        counts.append(drawn[0].sum())
        return drawn

    monkeypatch.setattr(axes_module.Axes, "hist", hist)
    for lengths in ([3], [1, 39, 40, 41, 80, 81], list(range(1, 200))):
        plot_lengths(lengths, path=tmp_path / "lengths.png", step=1, max_len=300)
        assert counts.pop() == len(lengths)


def test_curves_with_missing_metrics(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    path = tmp_path / "curves.png"
    rows = [
        {"step": 0, "eval/reward": 0.3},
        {"step": 1, "rollout/reward": 0.4, "rollout/length_mean": 9.0},
        {"step": 2, "rollout/reward": None},
    ]
    plot_curves(rows, path=path)
    assert path.read_bytes().startswith(PNG)
    plot_curves([{"step": 0, "eval/reward": 0.3}], path=path)


def test_nothing_to_plot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no lengths"):
        plot_lengths([], path=tmp_path / "x.png", step=1, max_len=2)
    with pytest.raises(ValueError, match="no rewards"):
        plot_curves([{"step": 1, "train/loss": 0.1}], path=tmp_path / "x.png")


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'lightrft\[plot\]'"):
        plot_lengths([1], path=tmp_path / "x.png", step=1, max_len=2)
