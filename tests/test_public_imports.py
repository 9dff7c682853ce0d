"""Examples and the blocks of pages import what is stable: the names of `lightrft`, the guide's two, and the contracts of plugins."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path

import pytest

import lightrft

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^([ ]*)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
GUIDE = {"lightrft.strategy.get_strategy", "lightrft.utils.add_arguments"}
CONTRACTS = ("plugins", "config", "distributed", "engine", "strategy", "types", "errors", "weights", "testing")
CONTRACTS_OF_PARTS = ("algorithms.inputs", "rollout.environment", "run.loggers")
"""Both as the pages about plugins list them; `weights` are its helpers, `testing` is the kit."""
PLUGIN_PAGES = ("plugin-author.md", "reference/plugin-contracts.md", "conformance-kit.md")


def sources() -> dict[str, str]:
    """The code by where it stands: scripts, cells of notebooks, blocks of pages."""
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.glob("examples/**/*.py")}
    for path in ROOT.glob("examples/**/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[str(path.relative_to(ROOT))] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        for number, (_, block) in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")), 1):
            found[f"{path.relative_to(ROOT)} block {number}"] = textwrap.dedent(block)
    return found


SOURCES = sources()


def deep(code: str, *, plugin: bool = False) -> list[str]:
    """The imports that are not public."""
    return [name for name in imported(code) if not (name in GUIDE or is_public(name) or (plugin and is_contract(name)))]


def imported(code: str) -> list[str]:
    """Modules and names of `lightrft` that a piece of code imports or reads by its dotted name."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lightrft":
            found.append(f"lightrft.{node.attr}")
    return [name for name in found if name.split(".")[0] == "lightrft"]


def is_public(name: str) -> bool:
    return name == "lightrft" or name.removeprefix("lightrft.") in lightrft.__all__


def is_contract(name: str) -> bool:
    return any(f"{name}.".startswith(f"lightrft.{one}.") for one in (*CONTRACTS, *CONTRACTS_OF_PARTS))


@pytest.mark.parametrize("where", sorted(SOURCES))
def test_it_imports_public_names_alone(where: str) -> None:
    plugin = where.startswith("examples/plugin-") or any(f"docs/{page}" in where for page in PLUGIN_PAGES)
    assert not deep(SOURCES[where], plugin=plugin)


def test_what_counts_as_deep() -> None:
    code = (
        "import lightrft\nfrom lightrft.strategy import get_strategy\nfrom lightrft.trainer.build import build_actor\nlightrft.bild_actor\n"
    )
    assert sorted(deep(code)) == ["lightrft.bild_actor", "lightrft.trainer.build.build_actor"]
    assert deep("from lightrft.engine.base import InferenceEngine") and not deep("from lightrft.engine.base import X", plugin=True)
    assert "examples/train.py" in SOURCES and "docs/how-to/environments.md block 1" in SOURCES


def test_the_plugin_pages_list_the_contracts() -> None:
    page = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in PLUGIN_PAGES[:2])
    assert all(re.search(rf"`(lightrft)?\.?{re.escape(one)}\b", page) for one in (*CONTRACTS, *CONTRACTS_OF_PARTS))
