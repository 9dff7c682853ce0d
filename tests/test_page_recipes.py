"""Recipes on the pages are read and validated as those of a user are: whole blocks, and settings that a sentence shows as `name: value`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from lightrft.config import make_config, read_recipe
from lightrft.config.schema import Config
from lightrft.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("examples/**/*.md"),
        ROOT / "README.md",
        ROOT / "SECURITY.md",
    ]
)
BLOCK = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\n\n)((?:    .*\n)+)")
SETTING = re.compile(r"([a-z]\w*): ?(\S.*)?")
SHOWN = re.compile(r"(?<!`)`(\w+: [^`\n]+)`(?!`)")


def recipes(page: Path) -> list[str]:
    """Blocks that say they are YAML, the other blocks of which every line is one of our settings, and settings in sentences."""
    text = page.read_text(encoding="utf-8")
    blocks = [body for kind, body in BLOCK.findall(text) if kind == "yaml" or is_recipe(body)]
    blocks += [body for found in INDENTED.findall(BLOCK.sub("", text)) if is_recipe(body := textwrap.dedent(found))]
    shown = [found for found in SHOWN.findall(BLOCK.sub("", text)) if found.split(":")[0] in Config.model_fields]
    return blocks + shown


def is_recipe(body: str) -> bool:
    lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith(("#", "- "))]
    return bool(lines) and all((found := SETTING.fullmatch(line)) and found[1] in Config.model_fields for line in lines)


@pytest.mark.parametrize("page", [page for page in PAGES if recipes(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_recipe_that_a_page_shows_is_one(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(recipes(page)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        given = read_recipe(path)
        assert given, f"{page.name}: no setting in {text!r}"
        assert make_config(given).model_fields_set >= set(given) & set(Config.model_fields)


def test_a_block_that_is_none_is_told(tmp_path: Path) -> None:
    assert is_recipe("# of a run\nkl_coef: 0.1\nreward:\n  - math\n") and not is_recipe("kl_coef: 0.1\nloss = 3\n")
    for text in ("kl_coeff: 0.1\n", "kl_coef: [0.1\n", "top_p: 2\n"):
        (tmp_path / "one.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError):
            make_config(read_recipe(tmp_path / "one.yaml"))


def test_the_pages_with_recipes_are_found() -> None:
    assert sum(len(recipes(page)) for page in PAGES) > 14
