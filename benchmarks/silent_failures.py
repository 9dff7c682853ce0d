"""Situations in which nothing, or the wrong thing, is learned, planted in small real runs: the sentence that is said, and at which step.

python benchmarks/silent_failures.py [--json] [--only WORDS]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys

from lightrft.testing.silent_runs import SILENT_RUNS, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    parser.add_argument("--only", default="", help="cases whose name holds these words")
    given = parser.parse_args()
    rows = []
    for case in SILENT_RUNS:
        if given.only not in case.name:
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            [row] = table([case])
        rows.append(row)
        step = "-" if row["step"] is None else str(row["step"])
        print(f"{'ok ' if row['right'] else 'BAD'} {row['case']:<36} step {step:>2}  {row['expected'] or 'nothing'}", flush=True)
        print(f"      {row['said'] or '(nothing was said)'}", flush=True)
        if not row["right"] or len(row["all"]) > 1:
            print(f"      all: {', '.join(row['all'])}", flush=True)
    if given.json:
        print(json.dumps({"cases": rows, "right": sum(row["right"] for row in rows)}))
    sys.exit(0 if all(row["right"] for row in rows) else 1)


if __name__ == "__main__":
    main()
