"""The kept samples of a run, token by token: whose turn it is, what was sampled, how likely it was, what it is taught. No scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any, TypeGuard

from lightrft.run.report_page import document, number
from lightrft.run.run_data import Row, RunData

SHOWN = 30
LEVELS = 5
"""Shades of a colour, 0 without."""

NATS_A_LEVEL = 1.0
"""A log-prob of -0.3 has no shade, one of -4 and less the deepest."""

VIEWS = (("mask", "who wrote it"), ("logprob", "log-prob"), ("advantage", "advantage"))
PROMPT, POLICY, ENVIRONMENT = "prompt", "policy", "environment"

KEYS = {
    "mask": "<span class='t s'>sampled by the policy: trained</span> <span class='t'>prompt and environment: not trained</span>",
    "logprob": "<span class='t s l0'>likely</span> <span class='t s l2'>about -2 nats</span> <span class='t s l4'>-4 and less</span> "
    "<span class='t s u'>not computed</span>",
    "advantage": "<span class='t s n4'>less of it</span> <span class='t s'>0</span> <span class='t s p4'>more of it</span>",
}
STYLE = """
:root{--own:37,99,235;--rare:217,119,6;--more:5,150,105;--less:220,38,38}
@media(prefers-color-scheme:dark){:root{--own:110,168,254;--rare:251,191,36;--more:52,211,153;--less:248,113,113}}
.views{position:sticky;top:0;background:var(--bg);padding:10px 0;z-index:1;border-bottom:1px solid var(--edge)}
.views label{margin-right:16px;cursor:pointer;white-space:nowrap}.key{display:none;margin-top:6px}.key .t{color:var(--ink)}
.one{margin:16px 0}.one h3{font-size:14px;overflow-wrap:anywhere}.turn{display:grid;grid-template-columns:92px 1fr;gap:10px;padding:6px 0;
border-top:1px solid var(--edge)}.turn>span{color:var(--soft);font-size:12.5px}
.turn p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.7 ui-monospace,Menlo,Consolas,monospace;min-width:0}
.t{border-radius:3px}.turn .t:hover,.turn .t:focus{outline:1px solid var(--soft)}
@media(max-width:600px){.turn{grid-template-columns:1fr;gap:2px}}
"""


def token_page(run: RunData) -> str:
    """The whole page as text; of many samples the `SHOWN` newest."""
    rows = [row for row in reversed(run.samples) if isinstance(row.get("tokens"), dict)]
    name = escape(run.folder.resolve().name)
    about = f"{min(SHOWN, len(rows))} of {len(rows)} samples, newest first; point at a token for its numbers"
    chosen = "".join(
        f"<label><input type='radio' name='view' id='{view}'{' checked' if view == VIEWS[0][0] else ''}> {escape(label)}</label>"
        for view, label in VIEWS
    )
    keys = "".join(f"<div class='key of-{view}'>{html}</div>" for view, html in KEYS.items())
    body = [
        f"<h1>{name}</h1><p class='sub'>{escape(about)}</p>",
        f"<div class='views'>{chosen}{keys}</div>",
        *(_sample(row) for row in rows[:SHOWN]),
    ]
    return document(f"{name}, tokens", body, style=STYLE + _colours())


def turns_of(sampled: str) -> Iterator[tuple[str, int, int]]:
    """Who wrote which tokens, in order: the prompt, then the policy and the environment in turn, as (who, begin, end)."""
    at = 0
    for drawn, group in groupby(sampled):
        end = at + len(list(group))
        who = POLICY if drawn == "1" else ENVIRONMENT if at else PROMPT
        yield who, at, end
        at = end


def _sample(row: Row) -> str:
    tokens = row["tokens"]
    sampled = str(tokens.get("sampled") or "")
    texts = [str(text) for text in tokens.get("texts") or []]
    spans = _spans(texts, sampled, _list(tokens.get("logprobs")), _list(tokens.get("advantages")))
    head = f"rollout {row.get('step')} · reward {number(row.get('reward'))} · {row.get('finish_reason')}"
    head += f" · answer {row['answer']}" if row.get("answer") is not None else ""
    head += f" · {row['env_error']}" if row.get("env_error") else ""
    before = f"<p class='sub'>{tokens['left_out']} tokens before these are left out</p>" if tokens.get("left_out") else ""
    turns = "".join(
        f"<div class='turn'><span>{who}<br>{end - begin} token{'s' * (end - begin != 1)}</span><p>{''.join(spans[begin:end])}</p></div>"
        for who, begin, end in turns_of(sampled)
    )
    return f"<div class='card one'><h3>{escape(head)}</h3>{before}{turns}</div>"


def _spans(texts: Sequence[str], sampled: str, logprobs: Sequence[Any], advantages: Sequence[Any]) -> list[str]:
    """A span for each token; numbers are of the sampled ones, in order."""
    spans, numbers = [], iter(zip(logprobs, advantages, strict=False))
    widest = max((abs(value) for value in advantages if _is_number(value)), default=0.0)
    for text, drawn in zip(texts, sampled, strict=False):
        shown = escape(text).replace("\n", "↵\n") if text else "∅"
        if drawn != "1":
            spans.append(f"<span class='t'>{shown}</span>")
            continue
        logprob, advantage = next(numbers, (None, None))
        shades = [_shade("l", -logprob / NATS_A_LEVEL) if _is_number(logprob) else "u"]
        shades += [
            _shade("p" if advantage > 0 else "n", (LEVELS - 1) * abs(advantage) / widest) if _is_number(advantage) and widest else ""
        ]
        about = f"log-prob {number(logprob)} · advantage {number(advantage)}"
        spans.append(f"<span class='{' '.join(['t s', *filter(None, shades)])}' title='{about}'>{shown}</span>")
    return spans


def _shade(kind: str, size: float) -> str:
    return f"{kind}{min(max(round(size), 0), LEVELS - 1)}"


def _colours() -> str:
    """Which view colours what, and shows which key; shades 1 to 4 of each colour."""
    rules = []
    for view, _ in VIEWS:
        rules.append(f"main:has(#{view}:checked) .of-{view}{{display:block}}")
    rules.append("main:has(#mask:checked) .s{background:rgba(var(--own),.25)}")
    rules.append("main:has(#logprob:checked) .u{text-decoration:underline dotted}")
    for view, kinds in (("logprob", {"l": "rare"}), ("advantage", {"p": "more", "n": "less"})):
        for kind, colour in kinds.items():
            rules += [
                f"main:has(#{view}:checked) .{kind}{level}{{background:rgba(var(--{colour}),{0.14 * level:.2f})}}"
                for level in range(1, LEVELS)
            ]
        rules.append(f"main:has(#{view}:checked) .t:not(.s){{color:var(--soft)}}")
    return "".join(rules)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float))
