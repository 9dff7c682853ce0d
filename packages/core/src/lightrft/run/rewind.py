"""How do a run's logs look as they did at an earlier step? Lines of later steps go, for the resumed run will write them again."""

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
            kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _step(line) <= last]
            path.write_text("".join(kept), encoding="utf-8")
    for path in folder.glob("eval_samples-*.jsonl"):
        number = path.stem.removeprefix("eval_samples-")
        if number.isdigit() and int(number) > last:
            path.unlink()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0  # half a line of a run that was killed is the last one; the next line would be glued to it
