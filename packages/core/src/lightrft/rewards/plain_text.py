r"""An answer without its markup: LaTeX, Markdown, currency signs and typography become plain characters."""

from __future__ import annotations

import re
from collections.abc import Callable

_VULGAR = "½ 1/2 ⅓ 1/3 ⅔ 2/3 ¼ 1/4 ¾ 3/4 ⅕ 1/5 ⅖ 2/5 ⅗ 3/5 ⅘ 4/5 ⅙ 1/6 ⅚ 5/6 ⅛ 1/8 ⅜ 3/8 ⅝ 5/8 ⅞ 7/8"
_CHARS = {
    **dict.fromkeys("\u2212\u2013\ufe63\uff0d\u2010\u2011", "-"),
    **dict.fromkeys("×⋅·∙∗", "*"),
    **dict.fromkeys("÷\u2044\u2215", "/"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),  # no width
    **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
    **dict.fromkeys("€£¥₹", "$"),
    **dict.fromkeys('“”"', " "),
    **dict.fromkeys("°º", " degrees "),
    **{chr(0xFEE0 + ord(c)): c for c in "%=,:()0123456789"},  # full width
    **{c: f"^{n}" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{c: f" {value} " for c, value in re.findall(r"(\S) (\S+)", _VULGAR)},
    "’": "'",
    "¢": " cents ",
}
_TABLE = str.maketrans(_CHARS)
_THIN = re.compile(r"(?<=\d)(?:\{,\}|\\[,;:! ]|,\\!|~|[\u00a0\u2007\u2009\u202f])(?=\d{3}(?!\d))")
"""A separator of thousands: `1{,}234`, `1\\,234`, a space that does not break."""
_WRAPPERS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|it|sf|tt|bb|cal)|boldsymbol|bm|mbox|hbox|underline|overline|operatorname|emph|fbox|boxed)"
    r"\s*\{([^{}]*)\}"
)
_SPACES = re.compile(r"\\(?:[,;:! ]|q?quad\b|displaystyle\b|left\b|right\b|[bB]igg?[lr]?\b|limits\b|bf\b|rm\b)|~")
_COLOURED = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LOOKS = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])")
_DEGREES = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\b\s*\}?|\\degrees?\b")
_FRACTION = re.compile(r"(\d)?\s*\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_PAIRS = (
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])|≈|≃"), "≈"),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:le|leq|leqslant)(?![A-Za-z])|<="), "≤"),
    (re.compile(r"\\(?:ge|geq|geqslant)(?![A-Za-z])|>="), "≥"),
    (re.compile(r"\\(?:pm|mp)(?![A-Za-z])"), "±"),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\cents?(?![A-Za-z])"), " cents "),
    (re.compile(r"~~.*?~~"), " "),
    (re.compile(r"(?<=\d)\s*\*\*\s*(?=\d)"), "^"),
    (re.compile(r"\*\*|__|`"), ""),
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=\d)"), "*"),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
    (re.compile(r"\b(?:US|CA|AU|C|A)\$"), "$"),
)


def plain(text: str) -> str:
    """The same answer in plain characters, one space at most between two of them. Any text is taken; its length bounds the work."""
    text = _THIN.sub(",", text).translate(_TABLE)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\#", "#").replace("\\&", "&")
    text = _LOOKS.sub(" ", _COLOURED.sub(r" \1 ", text.removesuffix("\\\\")))
    text = _DEGREES.sub(" degrees ", text)
    text = _repeat(_WRAPPERS, r" \1 ", _SPACES.sub(" ", text))
    text = _repeat(_FRACTION, _fraction, text)
    for pattern, put in _PAIRS:
        text = pattern.sub(put, text)
    text = " ".join(text.replace("$", " ").split())
    return text.strip(" *_'").rstrip(".,;: ").strip(" *_'")


def _repeat(pattern: re.Pattern[str], put: str | Callable[[re.Match[str]], str], text: str) -> str:
    for _ in range(4):  # nesting deeper than this is nobody's final answer
        changed = pattern.sub(put, text)
        if changed == text:
            break
        text = changed
    return text


def _fraction(match: re.Match[str]) -> str:
    whole, top, bottom = match[1], (match[2] or match[3] or "").strip(), (match[4] or match[5] or "").strip()
    if whole:  # 2\frac{1}{2} is a mixed number
        return f"{whole} {top}/{bottom}" if top.isdigit() and bottom.isdigit() else f"{whole}*({top})/({bottom})"
    return f"{top}/{bottom}" if top.isdigit() and bottom.isdigit() else f"(({top})/({bottom}))"
