"""Every planted fault, and the test of the conformance kit that sees it: a table of all mutants, and a verdict."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages/core/tests/mutants"))

from kit_mutants.mutant import BASES, MUTANTS, mutant_registry
from kit_mutants.run import Row, good_enough, run_mutants

WIDTHS = (26, 15, 8, 62)


def main() -> int:
    """Returns 1 unless all are killed, and 95 % of them by the named test in the named words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="MUTANT")
    parser.add_argument("--base", nargs="+", default=[], metavar="NAME", help="fake engine, hf, fake strategy, single, sharded")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many mutants at a time, each in a process of its own")
    parser.add_argument("--named", action="store_true", help="ask each the test that it names and those it builds on, no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: at least 1 mutant has to run at a time")
    mutant_registry()
    unknown = [f"--only {name}" for name in args.only if name not in MUTANTS]
    unknown += [f"--base {name!r}" for name in args.base if name not in BASES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such mutant or base; bases: {', '.join(map(repr, BASES))}")
    names = [m.name for m in MUTANTS.values() if (not args.only or m.name in args.only) and (not args.base or m.base in args.base)]
    _print("mutant", "of", "killed", "by test", "message")
    start = time.monotonic()
    rows = run_mutants(names, jobs=args.jobs, asked="named" if args.named else "usual", told=_show)
    killed, by_name = sum(row.killed for row in rows), sum(row.by_name for row in rows)
    seconds = time.monotonic() - start
    print(f"{len(rows)} mutants, {killed} killed, {by_name} by the named test, {seconds:.0f} s")
    if args.json:
        print(json.dumps({"benchmark": "mutants", "ok": good_enough(rows), "seconds": seconds, "rows": [_plain(row) for row in rows]}))
    return 0 if good_enough(rows) else 1


def _show(row: Row) -> None:
    words = " ".join(row.message.split())
    at = max(0, words.find(row.mutant.words) - 40)
    _print(
        row.mutant.name,
        row.mutant.base,
        "yes" if row.by_name else "elsewhere" if row.killed else "NO",
        row.mutant.test,
        words[at : at + 160],
    )
    if row.others:
        print(f"    fail, too: {', '.join(row.others)}", flush=True)


def _plain(row: Row) -> dict[str, object]:
    m = row.mutant
    return {
        "mutant": m.name, "base": m.base, "fault": m.fault, "ranks": m.ranks, "killed": row.killed, "by_name": row.by_name, "test": m.test,
        "words": m.words, "message": row.message, "others": row.others, "seconds": row.seconds,
    }  # fmt: skip


def _print(*cells: str) -> None:
    first = "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False))
    print(f"{first}{cells[-1]}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
