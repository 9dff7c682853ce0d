"""`lightrft report` and `lightrft compare`: read run folders, write their pages, say where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightrft.errors import RunFolderError
from lightrft.run.compare import Comparison, compare, compare_page
from lightrft.run.report_page import page
from lightrft.run.run_data import read_run
from lightrft.run.token_page import token_page


def write_report(run: str, *, out: str | None) -> dict[str, Any]:
    """The page's path and what it tells, for `--json`; beside it, where samples are kept token by token, lies the page of their tokens.

    Raises:
        RunFolderError: no run there, or a page cannot be written.
    """
    data = read_run(Path(run).expanduser())
    path = Path(out).expanduser() if out else data.folder / "report.html"
    _write(path, page(data))
    tokens = path.with_name(f"{path.stem}-tokens.html") if any("tokens" in row for row in data.samples) else None
    if tokens is not None:
        _write(tokens, token_page(data))
    steps = max((int(row["step"]) for row in data.metrics), default=0)
    return {
        "report": str(path),
        "tokens": str(tokens) if tokens else None,
        "run": str(data.folder),
        "state": data.state,
        "steps": steps,
        "warnings": len(data.warnings),
        "unreadable": data.unreadable,
    }


def write_comparison(runs: Sequence[str], *, out: str | None) -> tuple[Comparison, Path]:
    """What the runs have and where their page is. Raises RunFolderError: no run there, or the page cannot be written."""
    found = compare([Path(run) for run in runs])
    path = Path(out).expanduser() if out else Path("comparison.html")
    _write(path, compare_page(found))
    return found, path


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{str(path)!r} cannot be written: {error.strerror or error}; give another place with --out") from error
