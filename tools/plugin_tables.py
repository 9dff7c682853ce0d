"""The tables of the pages about plugins. Written from the code: `make docs` brings them up to date, a test says when they are not.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FunctionType

from lightrft.config.checks import NEEDS
from lightrft.engine.base import InferenceEngine
from lightrft.plugins import API_VERSION, OLDEST_API, Capability
from lightrft.plugins.builtin import lightrft_plugins
from lightrft.plugins.specs import SPEC_TYPES
from lightrft.strategy.hooks import StrategyHooks
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.conformance import EngineConformance, Requirement, StrategyConformance, requirements
from lightrft.testing.conformance.requirement import CHECKS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "plugin-author.md", DOCS / "reference/plugin-contracts.md")
MARKED = re.compile(r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kinds() -> list[str]:
    rows = []
    for spec in SPEC_TYPES:
        what, _, target = first_line(spec).partition("; the target is ")
        rows.append((code(spec.kind), code(spec.__name__), what, target.rstrip(".")))
    return table(("kind", "spec", "what it is", "the target is"), rows)


def capabilities() -> list[str]:
    asked = {need.capability: need for need in NEEDS}
    declared = {spec.name: spec.capabilities for spec in lightrft_plugins() if spec.capabilities}
    rows = []
    for capability in Capability:
        tests = [requirement for requirement in requirements() if requirement.capability is capability]
        setting = code(asked[capability].field) if capability in asked else ""
        cores = ", ".join(code(name) for name, having in declared.items() if capability in having)
        rows.append((code(capability), capability.meaning, setting, "<br>".join(map(test_of, tests)), cores))
    return table(("capability", "declared, it can do", "asked for by", "held by, besides others", "in core"), rows)


def strategy_requirements() -> list[str]:
    return required("strategy", StrategyBase)


def engine_requirements() -> list[str]:
    return required("engine", InferenceEngine)


def strategy_hooks() -> list[str]:
    hooks = [(name, member) for name, member in vars(StrategyHooks).items() if isinstance(member, FunctionType)]
    return table(
        ("hook", "", "what it is given, and what it has to do"),
        [(code(name), "has to be written" if is_abstract(member) else "has a default", whole(member)) for name, member in hooks],
    )


def engine_methods() -> list[str]:
    methods = [(name, member) for name, member in vars(InferenceEngine).items() if not name.startswith("_")]
    return table(
        ("method", "", "what it does"),
        [(code(name), "has to be written" if is_abstract(member) else "has a default", first_line(member)) for name, member in methods],
    )


def api_numbers() -> list[str]:
    return table(("number", "today"), [(code("API_VERSION"), str(API_VERSION)), (code("OLDEST_API"), str(OLDEST_API))])


TABLES: dict[str, Callable[[], list[str]]] = {
    "kinds": kinds,
    "capabilities": capabilities,
    "strategy hooks": strategy_hooks,
    "strategy requirements": strategy_requirements,
    "engine methods": engine_methods,
    "engine requirements": engine_requirements,
    "api numbers": api_numbers,
}


def required(kind: str, contract: type) -> list[str]:
    """The requirements of a contract, in the order of its methods; then the methods that the kit calls on the way, by their docstrings."""
    order = [name for name, member in members(contract).items() if not name.startswith("_") and is_part(member)]
    asked = sorted((p for p in requirements() if p.kind == kind), key=lambda p: order.index(p.method) if p.method in order else -1)
    rows = [(code(p.method), sentence(p), test_of(p)) for p in asked]
    for name in order:
        if name not in {p.method for p in asked}:
            callers = [test_of(p) for p in asked if re.search(rf"\.{name}\b", inspect.getsource(asking(p)))]
            rows.append((code(name), first_line(members(contract)[name]), "<br>".join(callers[:3])))
    return table(("method", "requirement", "test"), rows)


def asking(requirement: Requirement) -> Callable[..., object]:
    """The code behind a test: of a strategy it is a check that runs on the ranks."""
    kit, _, name = requirement.test.partition("::")
    found = CHECKS.get(name.removeprefix("test_"))
    return (
        found.run
        if found
        else getattr({c.__name__: c for c in (StrategyConformance, EngineConformance, *StrategyConformance.__mro__)}[kit], name)
    )


def members(contract: type) -> dict[str, object]:
    """Its own and those of its parts, each as the first class of its order has it."""
    found: dict[str, object] = {}
    for part in (part for part in contract.__mro__ if part.__module__.startswith("lightrft.")):
        found |= {name: member for name, member in vars(part).items() if name not in found}
    return found


def is_part(member: object) -> bool:
    return isinstance(member, (FunctionType, property, classmethod))


def sentence(requirement: Requirement) -> str:
    return f"{requirement.text} (with {code(requirement.capability)})" if requirement.capability else requirement.text


def test_of(requirement: Requirement) -> str:
    return code(requirement.test.rpartition("::")[2])


def is_abstract(member: object) -> bool:
    return bool(getattr(member, "__isabstractmethod__", False))


def first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")


def whole(documented: object) -> str:
    return " ".join((inspect.getdoc(documented) or "").split())


def code(text: str) -> str:
    return f"`{text}`"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def brought_up_to_date(pages: Sequence[str]) -> list[str]:
    """The texts of the pages with their tables as the code has them now.

    Raises:
        ValueError: a table that nobody makes, one that the pages lack, or one that stands twice.
    """
    named = [name for text in pages for _, name, _ in MARKED.findall(text)]
    if sorted(named) != sorted(TABLES):
        raise ValueError(f"the pages about plugins have the tables {sorted(named)}, the code makes {sorted(TABLES)}")
    return [MARKED.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text) for text in pages]


def main() -> None:
    before = [page.read_text(encoding="utf-8") for page in PAGES]
    for page, old, new in zip(PAGES, before, brought_up_to_date(before), strict=True):
        page.write_text(new, encoding="utf-8")
        print(f"{page.name}: {'as it was' if new == old else 'tables brought up to date'}", file=sys.stderr)


if __name__ == "__main__":
    main()
