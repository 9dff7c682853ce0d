"""The tables of docs/conformance-kit.md: each requirement of the kit, its test, and the planted faults that this test has to see.

Written from the code: `make docs` brings them up to date, a test says when they are not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages/core/tests/mutants"))

from kit_mutants.mutant import MUTANTS, mutant_registry
from lightrft.testing.conformance import Requirement, requirements
from plugin_tables import MARKED, code, sentence, table, test_of

PAGE = Path(__file__).resolve().parents[1] / "docs/conformance-kit.md"


def mutants_of(requirement: Requirement) -> list[str]:
    """What is planted for a requirement: the mutant's name and its fault."""
    mutant_registry()
    test = requirement.test.rpartition("::")[2]
    return [f"{code(m.name)}: {m.fault}" for m in MUTANTS.values() if m.test == test]


def rows(kind: str) -> list[str]:
    """The table of a kind, `strategy` or `engine`."""
    asked = [r for r in requirements() if r.kind == kind]
    cells = [(sentence(r), test_of(r), "<br>".join(mutants_of(r)) or "-") for r in asked]
    return table(("requirement", "test", "mutants that it has to kill"), cells)


def brought_up_to_date(text: str) -> str:
    """The page with its tables as the code has them now."""
    return MARKED.sub(lambda found: found[1] + "\n".join(rows(found[2].removeprefix("mutants "))) + "\n" + found[3], text)


def main() -> None:
    before = PAGE.read_text(encoding="utf-8")
    after = brought_up_to_date(before)
    PAGE.write_text(after, encoding="utf-8")
    print(f"{PAGE.name}: {'as it was' if after == before else 'tables brought up to date'}", file=sys.stderr)


if __name__ == "__main__":
    main()
