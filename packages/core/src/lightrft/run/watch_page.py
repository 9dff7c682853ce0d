"""A run that goes on, on one page that loads itself again: its pulse, the phases of the last rollout, curves, newest samples. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from html import escape

from lightrft.run.pulse import Pulse
from lightrft.run.report_page import SHOWN_SAMPLES, charts, document, samples, section, subtitle, tiles, warnings
from lightrft.run.run_data import Row, RunData

STYLE = """
.pulse{border-left:4px solid var(--c2);padding:9px 14px;border-radius:6px;background:var(--card);margin:0 0 16px}
.pulse.stalled,.pulse.failed{border-color:var(--warn);background:var(--warnbg)}.pulse.stalled b,.pulse.failed b{color:var(--warn)}
.gantt{display:grid;grid-template-columns:max-content 1fr max-content;gap:5px 12px;align-items:center;font-size:13.5px}
.gantt div{height:14px;border-radius:4px;background:var(--c0);min-width:2px}.gantt span{color:var(--soft);font-variant-numeric:tabular-nums}
"""


def watch_page(run: RunData, pulse: Pulse, *, every_s: float) -> str:
    """The whole page as text; it loads itself again after so many seconds, as long as more may come."""
    name = escape(run.folder.resolve().name)
    run = replace(run, state=pulse.state)  # an earlier run's summary may still lie there
    body = [
        f"<h1>{name}</h1><p class='sub'>{escape(subtitle(run))}</p>",
        f"<div class='pulse {pulse.state}'><b>{pulse.state}</b> · {escape(pulse.text)}</div>",
        tiles(run),
        warnings(run),
        section("Phases of the last rollout", _gantt(run)),
        section("Curves", charts(run)),
        section("Newest samples", samples(list(reversed(run.samples))[:SHOWN_SAMPLES])),
    ]
    again = f"<meta http-equiv='refresh' content='{every_s:g}'>" if pulse.goes_on else ""
    return document(name, body, style=STYLE, head=again)


def phases(row: Row) -> dict[str, float]:
    """The seconds of each phase of a rollout, in their order."""
    found = {name.removeprefix("time/").removesuffix("_s"): value for name, value in row.items() if name.startswith("time/")}
    return {name: float(value) for name, value in found.items() if name != "step" and isinstance(value, (int, float)) and value > 0}


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
