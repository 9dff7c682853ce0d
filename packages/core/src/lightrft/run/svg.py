"""A curve or a histogram without any library. As SVG that stands in a page; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
MAX_POINTS = 600


def chart(series: Sequence[tuple[str, Points]]) -> str:
    """Lines over the steps, one class `line0`, `line1` for each series; a series of few points has dots too, which say their value."""
    points = [point for _, one in series for point in one if math.isfinite(point[1])]
    if not points:
        return '<p class="none">not logged</p>'
    x0, x1, y0, y1 = _range([p[0] for p in points], pad=0.0) + _range([p[1] for p in points], pad=0.06)
    parts = [_axes(x0, x1, y0, y1)]
    for number, (name, one) in enumerate(series):
        shown = _thinned([p for p in one if math.isfinite(p[1])])
        places = [(_x(x, x0, x1), _y(y, y0, y1)) for x, y in shown]
        if len(places) > 1:
            parts.append(f'<polyline class="line{number}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if len(places) <= 60:
            parts += [
                f'<circle class="dot{number}" cx="{px:.1f}" cy="{py:.1f}" r="3">'
                f"<title>{escape(name)} {y:.5g} at rollout {x:g}</title></circle>"
                for (px, py), (x, y) in zip(places, shown, strict=True)
            ]
    return _svg(parts)


def histogram(pairs: Sequence[Sequence[float]], *, bins: int = 24) -> str:
    """Bars of how many have each value; `pairs` of value and number."""
    if not pairs:
        return '<p class="none">none kept</p>'
    values = [float(value) for value, _ in pairs]
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0.0] * bins
    for value, number in pairs:
        counts[min(int((value - low) / width), bins - 1)] += number
    most = max(counts)
    parts = [_axes(low, low + width * bins, 0.0, most)]
    for index, count in enumerate(counts):
        if count:
            left, right = _x(low + index * width, low, low + width * bins), _x(low + (index + 1) * width, low, low + width * bins)
            top = _y(count, 0.0, most)
            where = f"{low + index * width:.4g} to {low + (index + 1) * width:.4g}"
            parts.append(
                f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}">'
                f"<title>{count:g}: {where}</title></rect>"
            )
    return _svg(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _axes(x0: float, x1: float, y0: float, y1: float) -> str:
    parts = []
    for value in _ticks(y0, y1, 4):
        y = _y(value, y0, y1)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:.6g}</text>')
    for value in _ticks(x0, x1, 6):
        parts.append(f'<text class="tick" x="{_x(value, x0, x1):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{value:.6g}</text>')
    return "".join(parts)


def _ticks(low: float, high: float, number: int) -> list[float]:
    raw = (high - low) / number or 1.0
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) * 0.1 or 0.5
        return low - half, high + half
    return low - pad * (high - low), high + pad * (high - low)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(points) // MAX_POINTS)
    return points[::stride] if stride > 1 else points


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1.0)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1.0)
