"""A run that goes on, on one page that loads itself again: its pulse, the phases of the last rollout, curves, newest samples. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import Any

from lightrft.run.pulse import Pulse
from lightrft.run.report_page import SHOWN_SAMPLES, charts, document, samples, section, subtitle, tiles, warnings
from lightrft.run.run_data import Row, RunData

COLOURS = 8
SHOWN_RANKS = 32
STYLE = """
:root{--p0:#2563eb;--p1:#ea580c;--p2:#059669;--p3:#9333ea;--p4:#ca8a04;--p5:#0891b2;--p6:#db2777;--p7:#64748b}
@media(prefers-color-scheme:dark){:root{--p0:#6ea8fe;--p1:#fb923c;--p2:#34d399;--p3:#c084fc;--p4:#facc15;--p5:#22d3ee;--p6:#f472b6;--p7:#94a3b8}}
.key{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px;margin:12px 0 0}.key span{margin-right:0}
.key i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.pulse{border-left:4px solid var(--c2);padding:9px 14px;border-radius:6px;background:var(--card);margin:0 0 16px}
.pulse.stalled,.pulse.failed{border-color:var(--warn);background:var(--warnbg)}.pulse.stalled b,.pulse.failed b{color:var(--warn)}
.gantt{display:grid;grid-template-columns:max-content 1fr max-content;gap:5px 12px;align-items:center;font-size:13.5px}
.gantt .of{position:relative;height:16px;background:none;width:100%}
.gantt .of i{position:absolute;top:0;height:16px;border-radius:3px;min-width:2px}
.gantt div{height:14px;border-radius:4px;background:var(--c0);min-width:2px}.gantt span{color:var(--soft);font-variant-numeric:tabular-nums}
"""


def watch_page(run: RunData, pulse: Pulse, *, every_s: float) -> str:
    """The whole page as text; it loads itself again after so many seconds, as long as more may come."""
    name = escape(run.folder.resolve().name)
    run = replace(run, state=pulse.state)  # an earlier run's summary may still lie there
    body = [
        f"<h1>{name}</h1><p class='sub'>{escape(subtitle(run))}</p>",
        f"<div class='pulse {pulse.state}'>{_told(pulse)}</div>",
        tiles(run),
        warnings(run),
        section("Phases of the last rollout", _ranks(run.phases) or _gantt(run)),
        section("Curves", charts(run)),
        section("Newest samples", samples(list(reversed(run.samples))[:SHOWN_SAMPLES])),
    ]
    head = "<link rel='icon' href='data:,'>"  # else a browser asks the server for one
    head += f"<meta http-equiv='refresh' content='{every_s:g}'>" if pulse.goes_on else ""
    return document(name, body, style=STYLE, head=head)


def _told(pulse: Pulse) -> str:
    rest = pulse.text.removeprefix(pulse.state)
    return f"<b>{pulse.state}</b>{'' if rest != pulse.text else ' · '}{escape(rest)}"


def phases(row: Row) -> dict[str, float]:
    """The seconds of each phase of a rollout, in their order."""
    found = {name.removeprefix("time/").removesuffix("_s"): value for name, value in row.items() if name.startswith("time/")}
    return {name: float(value) for name, value in found.items() if name != "step" and isinstance(value, (int, float)) and value > 0}


def _ranks(phases: Mapping[str, Any]) -> str:
    """A line for each rank on one scale of time; empty where the run wrote none."""
    ranks = phases.get("ranks")
    if not isinstance(ranks, list) or not ranks or not all(isinstance(rank, dict) and rank for rank in ranks):
        return ""
    whole = max(begin + took for rank in ranks for begin, took in rank.values()) or 1.0
    colour = {name: f"var(--p{place % COLOURS})" for place, name in enumerate(sorted(ranks[0], key=lambda name: ranks[0][name][0]))}
    rows = [
        f"<b>rank {number}</b><div class='of'>{''.join(_part(name, *rank[name], whole=whole, colour=colour) for name in rank)}</div>"
        f"<span>{sum(took for _, took in rank.values()):.3g} s</span>"
        for number, rank in enumerate(ranks[:SHOWN_RANKS])
    ]
    legend = " ".join(f"<span><i style='background:{one}'></i>{escape(name)}</span>" for name, one in colour.items())
    more = f" Ranks 0 to {SHOWN_RANKS - 1} of {len(ranks)}." if len(ranks) > SHOWN_RANKS else ""
    note = f"Rollout {phases.get('step')}, {whole:.3g} s from the beginning of its first phase to the end of its last.{more}"
    return f"<div class='card'><div class='gantt'>{''.join(rows)}</div><p class='key'>{legend}</p><p class='sub'>{escape(note)}</p></div>"


def _part(name: str, begin: float, took: float, *, whole: float, colour: Mapping[str, str]) -> str:
    place = f"left:{100 * begin / whole:.2f}%;width:{100 * took / whole:.2f}%;background:{colour.get(name, 'var(--p7)')}"
    return f"<i style='{place}' title='{escape(name)}: {took:.3g} s, from {begin:.3g} s on'></i>"


def _gantt(run: RunData) -> str:
    """One bar after the other: phases follow each other, and each lasts as long as on its slowest rank."""
    last: Mapping[str, float] = next((row for row in reversed(run.metrics) if "time/step_s" in row), {})
    found = phases(dict(last))
    if not found:
        return "<p class='none'>no rollout was logged yet</p>"
    whole, begin, rows = sum(found.values()), 0.0, []
    for name, took in found.items():
        left, width = 100 * begin / whole, 100 * took / whole
        bar = f"<div style='margin-left:{left:.2f}%;width:{width:.2f}%' title='{took:.3g} s'></div>"
        rows.append(f"<b>{escape(name)}</b>{bar}<span>{took:.3g} s</span>")
        begin += took
    note = f"Rollout {last.get('step')}: {last['time/step_s']:.3g} s; each phase as long as on its slowest rank."
    return f"<div class='card'><div class='gantt'>{''.join(rows)}</div><p class='sub' style='margin:10px 0 0'>{escape(note)}</p></div>"
