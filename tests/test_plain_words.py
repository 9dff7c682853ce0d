"""Words that CONTRIBUTING.md replaces by plainer ones stand in no page, message, docstring or name: none is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXTS += [
    *ROOT.glob("packages/*/src/**/*.py"),
    *ROOT.glob("examples/**/*.py"),
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("examples/**/*.ipynb"),
]
WORDS = {
    r"proofs?|proved|proven|proves": "verify, check",
    r"promises?|promised": "requirement",
    r"alike": "the same, identical on every rank",
    r"cut(?! off| before)|cuts(?! off)": "shard, truncate, split",
    r"due\(": "is_scheduled",
}
"""Replaced, and by what. `cut off` and `cut before` are plain English of texts; identifiers of one letter more are others."""


def lines_with(word: str) -> list[str]:
    pattern = re.compile(rf"(?<![\w`-])(?:{word})(?![\w-])", re.IGNORECASE)
    found = []
    for path in TEXTS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("word", WORDS)
def test_no_replaced_word_is_left(word: str) -> None:
    assert not lines_with(word), f"say: {WORDS[word]}"


def test_the_pages_are_read() -> None:
    assert len(TEXTS) > 400 and lines_with("rollout")
