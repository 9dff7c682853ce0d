"""Writes docs/coming-from.md, the names of other libraries' settings here, from `lightrft.config.other_names`."""

from __future__ import annotations

from pathlib import Path

from lightrft.config.other_names import LIBRARIES

PAGE = Path(__file__).resolve().parent.parent / "docs/coming-from.md"
HEAD = """# Coming from TRL, verl, OpenRLHF or upstream LightRFT

A flag or a recipe's key that has another name here is answered by that name, also on the command line:

    error: unknown flag '--beta': TRL has it; the name here is kl_coef

Names that are the same in both are not in the tables. Counts of samples are global here, over all ranks, unless
`lightrft train --help` says "per rank". This page is generated from the code (`make docs`).
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for library, names in LIBRARIES.items():
        rows = [f"| `{name}` | {f'`{here}`' if here else ''} | {note} |" for name, (here, note) in sorted(names.items())]
        parts.append("\n".join([f"\n## {library}\n", "| there | here | note |", "|---|---|---|", *rows]) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
