"""A run on one page: self-contained HTML: curves, distributions, samples, warnings, settings, environment. No network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lightrft.config.metric_names import metric_named
from lightrft.run.evaluate_samples import best_worst_median
from lightrft.run.pictures import pictures
from lightrft.run.run_data import Row, RunData
from lightrft.run.svg import chart, histogram

CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Reward", ("rollout/reward", "eval/reward")),
    ("Completion length, tokens", ("rollout/length_mean",)),
    ("Entropy, nats per token", ("rollout/entropy",)),
    ("KL to the initial model, nats per token", ("train/kl",)),
    ("Gradient norm", ("train/grad_norm",)),
    ("Loss", ("train/loss",)),
    ("Engine against trainer, nats per token", ("rollout/logprob_gap",)),
    ("Groups without a signal, fraction", ("rollout/zero_variance_groups",)),
    ("Critic: explained variance", ("critic/explained_variance",)),
    ("Generation, tokens per second", ("rollout/tokens_per_s",)),
    ("Rollout with update, seconds", ("time/step_s", "time/rollout_s", "time/update_s")),
    ("Learning rate", ("train/lr",)),
)
SHOWN_SAMPLES = 9
STYLE = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1a202c;--soft:#667085;--edge:#e4e7ec;--c0:#2563eb;--c1:#ea580c;--c2:#059669;--warn:#b45309;--warnbg:#fffbeb}
@media(prefers-color-scheme:dark){:root{--bg:#0f141b;--card:#171e27;--ink:#e6edf3;--soft:#93a1b0;--edge:#2a3440;--c0:#6ea8fe;--c1:#fb923c;
--c2:#34d399;--warn:#fbbf24;--warnbg:#2a2211}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:25px;margin:0 0 2px}h2{font-size:17px;margin:34px 0 12px}
.sub{color:var(--soft);margin:0 0 18px}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px}
.card{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:clamp(15px,4.2vw,20px);white-space:nowrap;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:14px}
.card h3{font-size:13.5px;margin:0 0 6px;font-weight:600}
svg{width:100%;height:auto;display:block}polyline{fill:none;stroke-width:2;stroke-linejoin:round}.grid{stroke:var(--edge)}
.tick{fill:var(--soft);font-size:10.5px}.line0{stroke:var(--c0)}.line1{stroke:var(--c1)}.line2{stroke:var(--c2)}.dot0{fill:var(--c0)}.dot1{fill:var(--c1)}
.dot2{fill:var(--c2)}.bar{fill:var(--c0);opacity:.85}.none{color:var(--soft);margin:30px 0;text-align:center}
.key{font-size:12px;color:var(--soft)}
.key i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.key span{white-space:nowrap;margin-right:12px}
.warning{background:var(--warnbg);border-left:4px solid var(--warn);padding:9px 14px;border-radius:6px;margin:8px 0}
.warning b{color:var(--warn);font-weight:600}table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;color:var(--soft);font-weight:600}td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--edge);vertical-align:top}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap;width:1%}pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:180px;overflow:auto;
font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace}details{margin-top:10px}summary{cursor:pointer;color:var(--soft)}
.scroll{overflow-x:auto}td img{max-width:96px;margin:0 6px 6px 0;border-radius:4px;image-rendering:pixelated}
"""


def page(run: RunData) -> str:
    """The whole page as text."""
    name = escape(run.folder.resolve().name)
    body = [
        f"<h1>{name}</h1><p class='sub'>{escape(subtitle(run))}</p>",
        tiles(run),
        warnings(run),
        section("Curves", charts(run)),
        section("Distributions", _distributions(run)),
        section("Evaluation samples", samples(_picked(run.evaluation))),
        section("Rollout samples, newest first", samples(list(reversed(run.samples))[:SHOWN_SAMPLES])),
        section("Settings", _mapping(run.config)),
        section("Environment", _mapping(run.environment)),
    ]
    return document(name, body)


def document(title: str, body: Sequence[str], *, style: str = "", head: str = "") -> str:
    """A page without anything from elsewhere; `title`, `body` and `head` are HTML."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"{head}<title>{title} · LightRFT</title><style>{STYLE}{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def subtitle(run: RunData) -> str:
    parts = [run.state, f"strategy {run.config.get('strategy') or ('fsdp' if run.config.get('fsdp') else 'deepspeed')}"]
    parts += [f"engine {run.config.get('engine_type')}", f"{run.config.get('advantage_estimator')} / {run.config.get('policy_loss')}"]
    return " · ".join([*parts, *([f"checkpoints: {', '.join(run.checkpoints)}"] if run.checkpoints else [])])


def tiles(run: RunData) -> str:
    found = [("rollouts", f"{max((int(row['step']) for row in run.metrics), default=0)}")]
    for label, name in (("reward, last rollout", "rollout/reward"), ("tokens per completion", "rollout/length_mean")):
        if series := run.series(name):
            found.append((label, f"{series[-1][1]:.4g}"))
    evaluation = run.series("eval/reward")
    if evaluation:
        found.append(("evaluation, first → last", f"{evaluation[0][1]:.3f} → {evaluation[-1][1]:.3f}"))
    if "seconds" in run.summary:
        found.append(("seconds", f"{run.summary['seconds']:,.0f}"))
    found.append(("warnings", str(len(run.warnings))))
    cells = "".join(f"<div class='card tile'><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in found)
    return f"<div class='tiles'>{cells}</div>"


def warnings(run: RunData) -> str:
    lines = [
        f"<div class='warning'><b>rollout {escape(str(row.get('step')))} · {escape(str(row.get('name')))}</b><br>"
        f"{escape(str(row.get('text')))}</div>"
        for row in run.warnings
    ]
    lines += [f"<div class='warning'>{escape(line)}</div>" for line in run.unreadable]
    return section("Warnings", "".join(lines)) if lines else ""


def charts(run: RunData) -> str:
    cards = []
    for title, names in CHARTS:
        series = [(name, run.series(name)) for name in names]
        series = [(name, points) for name, points in series if points]
        if not series:
            continue
        key = " ".join(f"<span><i style='background:var(--c{index})'></i>{escape(name)}</span>" for index, (name, _) in enumerate(series))
        metric = metric_named(series[0][0])
        about = escape(metric.meaning) if metric else ""
        cards.append(f"<div class='card' title='{about}'><h3>{escape(title)}</h3>{chart(series)}<div class='key'>{key}</div></div>")
    return f"<div class='grid2'>{''.join(cards)}</div>" if cards else "<p class='none'>no step was logged yet</p>"


def _distributions(run: RunData) -> str:
    if not run.distributions:
        return "<p class='none'>none kept (plot_every)</p>"
    cards = []
    for row in dict.fromkeys((0, len(run.distributions) - 1)):
        for title, name in (("lengths, tokens", "lengths"), ("rewards", "rewards")):
            one = run.distributions[row]
            cards.append(
                f"<div class='card'><h3>Rollout {escape(str(one.get('step')))}: {title}</h3>{histogram(one.get(name) or [])}</div>"
            )
    return f"<div class='grid2'>{''.join(cards)}</div>"


def _picked(rows: Sequence[Row]) -> list[Row]:
    greedy = [row for row in rows if row.get("kind", "greedy") == "greedy" and isinstance(row.get("reward"), (int, float))]
    return [{"which": kind, **row} for kind, found in best_worst_median(greedy).items() for row in found]


def samples(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p class='none'>none kept</p>"
    cells = []
    for row in rows:
        which = escape(str(row.get("which", f"rollout {row.get('step')}")))
        texts = [f"<pre>{escape(str(row.get(name) or ''))}</pre>" for name in ("prompt", "completion", "answer")]
        texts[0] = pictures(row.get("images")) + texts[0]
        cells.append(
            f"<tr><td class='n'>{which}</td><td class='n'>{escape(number(row.get('reward')))}</td><td>{'</td><td>'.join(texts)}</td></tr>"
        )
    head = "<tr><th></th><th>reward</th><th>prompt</th><th>completion</th><th>reference</th></tr>"
    return f"<div class='card scroll'><table>{head}{''.join(cells)}</table></div>"


def _mapping(values: Mapping[str, Any]) -> str:
    if not values:
        return "<p class='none'>not there</p>"
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td><pre>{escape(str(v))}</pre></td></tr>" for k, v in values.items())
    return f"<details class='card'><summary>{len(values)} entries</summary><table>{rows}</table></details>"


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def number(value: Any) -> str:
    """Four digits, or a dash for none."""
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"
