"""`lightrft report`: reads a run folder, writes one page, says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightrft.errors import RunFolderError
from lightrft.run.report_page import page
from lightrft.run.run_data import read_run


def write_report(run: str, *, out: str | None) -> dict[str, Any]:
    """The page's path and what it tells, for `--json`. Raises RunFolderError: no run there, or the page cannot be written."""
    data = read_run(Path(run).expanduser())
    path = Path(out).expanduser() if out else data.folder / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(data), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{str(path)!r} cannot be written: {error.strerror or error}; give another place with --out") from error
    steps = max((int(row["step"]) for row in data.metrics), default=0)
    return {
        "report": str(path),
        "run": str(data.folder),
        "state": data.state,
        "steps": steps,
        "warnings": len(data.warnings),
        "unreadable": data.unreadable,
    }
