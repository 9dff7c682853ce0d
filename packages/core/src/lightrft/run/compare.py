"""Several runs beside each other: what came of each, the settings that differ, and one page with their curves. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lightrft.config.metric_names import metric_named
from lightrft.config.schema import Config
from lightrft.errors import RunFolderError
from lightrft.run.report_page import CHARTS, document, section
from lightrft.run.run_data import RunData, read_run
from lightrft.run.svg import chart

COLOURS = ("#2563eb", "#ea580c", "#059669", "#a21caf", "#0891b2", "#ca8a04", "#dc2626", "#64748b")
"""One for each run, distinct on light and on dark; so many runs at most."""
STYLE = "".join(f".line{n}{{stroke:{c}}}.dot{n}{{fill:{c}}}" for n, c in enumerate(COLOURS))
OF_THE_FOLDER = frozenset({"output_dir", "log_dir", "overwrite_output_dir", "resume_from"})
"""Settings that differ between any two runs, and say nothing."""
TOLD = (("reward", "rollout/reward"), ("evaluation", "eval/reward"), ("tokens", "rollout/length_mean"))


@dataclass(frozen=True)
class Comparison:
    """Runs by name, in the order that they were given. `results`: of each, its state and some last and best values. `differing`: settings
    by name, with each run's value in that order (None: its file has none).
    """

    names: list[str]
    runs: list[RunData]
    results: list[dict[str, Any]]
    differing: dict[str, list[Any]]


def compare(folders: Sequence[Path]) -> Comparison:
    """Reads the runs.

    Raises:
        RunFolderError: a folder holds no run or is named twice, or there are fewer than two or more than eight.
    """
    if not 2 <= len(folders) <= len(COLOURS):
        raise RunFolderError(f"{len(folders)} runs to compare; give 2 to {len(COLOURS)} run folders")
    places = [folder.expanduser().resolve() for folder in folders]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise RunFolderError(f"{str(twice)!r} is named twice; name each run once")
    runs = [read_run(folder.expanduser()) for folder in folders]
    return Comparison(names=_names(places), runs=runs, results=[_result(run) for run in runs], differing=_differing(runs))


def compare_page(found: Comparison) -> str:
    """The whole page as text."""
    body = [
        f"<h1>{len(found.runs)} runs</h1><p class='sub'>{_key(found.names)}</p>",
        section("Results", _table(["run", *found.results[0]], [[name, *row.values()] for name, row in _rows(found)])),
        section("Settings that differ", _settings(found)),
        section("Curves", _charts(found)),
    ]
    return document(escape(", ".join(found.names)), body, style=STYLE)


def _names(places: Sequence[Path]) -> list[str]:
    """The folders' own names, or, where two are the same, their paths below the folder that all are in."""
    names = [place.name for place in places]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(places)
    return [os.path.relpath(place, common) for place in places]


def _result(run: RunData) -> dict[str, Any]:
    found: dict[str, Any] = {"state": run.state, "rollouts": max((int(row["step"]) for row in run.metrics), default=0)}
    for label, name in TOLD:
        values = [value for _, value in run.series(name)]
        found[f"{label}, last"] = values[-1] if values else None
        if name != "rollout/length_mean":
            found[f"{label}, best"] = max(values) if values else None
    return found | {"seconds": run.summary.get("seconds"), "warnings": len(run.warnings)}


def _differing(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    names = [*Config.model_fields, *sorted({name for run in runs for name in run.config} - set(Config.model_fields))]
    values = {name: [run.config.get(name) for run in runs] for name in names if name not in OF_THE_FOLDER}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _rows(found: Comparison) -> list[tuple[str, dict[str, Any]]]:
    return list(zip(found.names, found.results, strict=True))


def _settings(found: Comparison) -> str:
    if not found.differing:
        return "<p class='none'>none</p>"
    return _table(["setting", *found.names], [[name, *map(repr, values)] for name, values in found.differing.items()])


def _charts(found: Comparison) -> str:
    cards = []
    for title, metrics in CHARTS:
        for name in metrics:
            series = [(run_name, run.series(name)) for run_name, run in zip(found.names, found.runs, strict=True)]
            if any(points for _, points in series):
                about = escape(metric.meaning if (metric := metric_named(name)) else "")
                heading = escape(title if len(metrics) == 1 else f"{title}: {name}")
                cards.append(f"<div class='card' title='{about}'><h3>{heading}</h3>{chart(series)}</div>")
    return f"<div class='grid2'>{''.join(cards)}</div>" if cards else "<p class='none'>no step was logged yet</p>"


def _key(names: Sequence[str]) -> str:
    return (
        "<span class='key'>"
        + " ".join(f"<span><i style='background:{COLOURS[n]}'></i>{escape(name)}</span>" for n, name in enumerate(names))
        + "</span>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(str(heading))}</th>" for heading in headings)
    lines = "".join("<tr>" + "".join(f"<td>{escape(shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='card scroll'><table><tr>{head}</tr>{lines}</table></div>"


def shown(value: Any) -> str:
    """A cell: numbers to four digits, a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
