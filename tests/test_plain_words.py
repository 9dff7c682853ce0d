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
NOUN = r"(?:a|an|the|its|their|this|each|every|no|own|equal|same|'s|s')"
WORDS = {
    r"proofs?|proved|proven|proves": "verify, check",
    r"promises?|promised": "requirement",
    r"alike": "the same, identical on every rank",
    r"cut(?! off| before)|cuts(?! off)": "shard, truncate, split",
    r"due\(": "is_scheduled",
    rf"{NOUN} \*?shares?\*?(?! (?:an?|one|each|its|their|the|all|rows)\b)": "fraction, loss share, rank's slice",
    r"(?<!loss )\*?shares?\*? of|as a share": "fraction, rank's slice",
    rf"(?:gives?|{NOUN}|by) (?:\w+ )?(?:own )?sums? (?:of (?:\w+ )?(?:weights?|tensors?|adapters)|for (?!each))": "checksum",
    r"gives? no sums?|(?:its|engine's) own sums?": "checksum",
}
"""Replaced, and by what. `cut off` and `cut before` are plain English of texts; identifiers of one letter more are others.

A *sum* is left where numbers are added up, and *share* as a verb (ranks that share a row) and in *loss share*."""

NAMES = {
    r"\w*(?<!loss)_shares?(?!_gpu)|share_(?!base_model)\w+|\w+/share|Share01": "fraction, loss_share, slice",
    r"\w*(?:weight|adapter|tensor|own|held|gives|verify|read)_sums?|sums_on_\w+|(?:Weight|Own)Sums?": "checksum",
}
"""The same of identifiers, in code and in backticks."""


def lines_with(word: str, *, before: str = "`-") -> list[str]:
    pattern = re.compile(rf"(?<![\w{before}])(?:{word})(?![\w-])", re.IGNORECASE)
    found = []
    for path in TEXTS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("word", WORDS)
def test_no_replaced_word_is_left(word: str) -> None:
    assert not lines_with(word), f"say: {WORDS[word]}"


@pytest.mark.parametrize("name", NAMES)
def test_no_name_with_a_replaced_word_is_left(name: str) -> None:
    assert not lines_with(name, before=""), f"say: {NAMES[name]}"


def test_the_pages_are_read() -> None:
    assert len(TEXTS) > 400 and lines_with("rollout")
