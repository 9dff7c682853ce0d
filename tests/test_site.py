"""The pages of the documentation: all are in the navigation, their links lead somewhere, what is generated is up to date, and the
first page's commands work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import site_pages

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"```(python|yaml|bash)\n(.*?)```", re.DOTALL)


def outside_of_code(page: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_page_is_in_the_navigation() -> None:
    trees = TREE.findall((DOCS / "index.md").read_text(encoding="utf-8"))
    named = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    lost = [page for page in PAGES if page != "index.md" and not any(fnmatch(page.removesuffix(".md"), name) for name in named)]
    assert not lost, "name them in a toctree of docs/index.md"


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_to_files(page: str) -> None:
    targets = [target for target in LINK.findall(outside_of_code(page)) if "://" not in target]
    missing = [target for target in targets if not (DOCS / page).parent.joinpath(target).exists()]
    assert not missing


@pytest.mark.parametrize("translation", [page for page in PAGES if page.endswith(".zh.md")])
def test_the_translation_has_the_same_blocks_and_sections(translation: str) -> None:
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in (translation.replace(".zh.", "."), translation)]
    blocks = [re.findall(r"```.*?```", page, re.DOTALL) for page in pages]
    assert blocks[0] == blocks[1]
    outlines = [
        [line.split()[0] for line in re.sub(r"```.*?```", "", page, flags=re.DOTALL).splitlines() if re.match(r"[#-]|\d\. ", line)]
        for page in pages
    ]
    assert outlines[0] == outlines[1], "sections and points"


def test_the_settings_page_is_made_from_the_code() -> None:
    assert site_pages.PAGE.read_text(encoding="utf-8") == site_pages.page(), "run `make docs`"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "whole number at least 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number above 0 and at most 1"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"enum": ["auto", "yes"]}, "`auto` or `yes`"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "number or nothing"),
    ],
)
def test_types_in_words(schema: dict[str, object], words: str) -> None:
    assert site_pages.type_of(schema) == words


@pytest.mark.slow
def test_get_started_works_from_its_top_to_its_bottom(tmp_path: Path) -> None:
    """Blocks of Python and YAML are files, named in their first line; blocks of commands are run, in an empty folder."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    ran = []
    for kind, text in BLOCK.findall((DOCS / "get-started.md").read_text(encoding="utf-8")):
        if kind == "bash":
            done = subprocess.run(["bash", "-e", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, text + done.stdout[-2000:] + done.stderr[-4000:]
            ran.append(done.stdout)
        else:
            (name,) = re.findall(r"^# (\S+)$", text.splitlines()[0])
            (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(ran) == 4
    rewards = [float(line.split()[1]) for line in ran[1].splitlines() if re.match(r"\s+\d+/30\s+\d", line)]
    assert rewards[0] < 0.3 and rewards[-1] > 0.9
    completion = ran[3].split()[-1]
    assert sum(letter in "aeiou" for letter in completion) > len(completion) / 2, completion
