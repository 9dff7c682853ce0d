"""A run's logs as they were at an earlier step: lines of later steps go, for the resumed run will write them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightrft.run.loggers.jsonl import FILE_NAME, as_line

BY_STEP = ("warnings.jsonl", "samples.jsonl", "distributions.jsonl")
"""Files of lines with a `step`."""


def rewind_logs(folder: Path, rows: Sequence[Mapping[str, float]], *, keeps_metrics: bool) -> None:
    """`metrics.jsonl` holds just these rows; other logs nothing of later steps. Files stay the same files: loggers may hold them open."""
    folder.mkdir(parents=True, exist_ok=True)
    last = int(rows[-1]["step"]) if rows else 0
    if keeps_metrics:
        lines = [as_line(int(row["step"]), {name: value for name, value in row.items() if name != "step"}) for row in rows]
        (folder / FILE_NAME).write_text("".join(lines), encoding="utf-8")
    for name in BY_STEP:
        path = folder / name
        if path.exists():
            # Not `splitlines`, for which U+2028 and others inside of a text end a line. What stands after the last end of a line is half a
            # line of a run that was killed: the next one would be glued to it.
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            path.write_text("".join(f"{line}\n" for line in lines if _step(line) <= last), encoding="utf-8")
    for path in folder.glob("eval_samples-*.jsonl"):
        number = path.stem.removeprefix("eval_samples-")
        if number.isdigit() and int(number) > last:
            path.unlink()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0  # no line of this version's; it stays
