"""What a run folder holds, whatever state the run is in. Running, finished, stopped, crashed or resumed. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightrft.config.yaml_text import load_yaml
from lightrft.errors import RunFolderError
from lightrft.run.checkpoint_folder import saved_in

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Everything that the report shows. `state` in words; lists are empty where the run has none yet. `unreadable` has one line for each
    file that is there and was not read, or not whole.
    """

    folder: Path
    state: str
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[Row]
    warnings: list[Row]
    samples: list[Row]
    evaluation: list[Row]
    distributions: list[Row]
    phases: Row
    checkpoints: list[str]
    unreadable: list[str]

    def series(self, name: str) -> list[tuple[float, float]]:
        """Step and value where the metric was logged as a number."""
        return [(float(row["step"]), float(row[name])) for row in self.metrics if isinstance(row.get(name), (int, float))]


def read_run(folder: Path) -> RunData:
    """Reads the folder; half a line at the end of a log, which a run that is being written or was killed may have, is left out.

    Raises:
        RunFolderError: there is no run.
    """
    if not (folder / "config.yaml").is_file():
        found = "is no folder" if not folder.is_dir() else "has no config.yaml"
        raise RunFolderError(f"{str(folder)!r} holds no run: it {found}; give the output_dir of `lightrft train` or `lightrft demo`")
    try:
        config = load_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunFolderError(f"{str(folder / 'config.yaml')!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{str(folder / 'config.yaml')!r} holds no settings")
    logs = Path(config.get("log_dir") or folder).expanduser()
    unreadable: list[str] = []
    summary = _object(folder / "summary.json", unreadable)
    evaluations = sorted(logs.glob("eval_samples-*.jsonl"), key=lambda path: int("".join(filter(str.isdigit, path.stem)) or 0))
    return RunData(
        folder=folder,
        state=_state(summary),
        config=config,
        environment=_object(folder / "environment.json", unreadable),
        summary=summary,
        metrics=[row for row in _lines(logs / "metrics.jsonl", unreadable) if isinstance(row.get("step"), (int, float))],
        warnings=_lines(logs / "warnings.jsonl", unreadable),
        samples=_lines(logs / "samples.jsonl", unreadable),
        evaluation=_lines(evaluations[-1], unreadable) if evaluations else [],
        distributions=_lines(logs / "distributions.jsonl", unreadable),
        phases=_object(logs / "phases.json", unreadable),
        checkpoints=[one.folder.name for one in saved_in(folder)],
        unreadable=unreadable,
    )


def _state(summary: Row) -> str:
    if not summary:
        return "running, or ended without a summary"
    return f"stopped by {summary['stopped']}" if summary.get("stopped") else "finished"


def _object(path: Path, unreadable: list[str]) -> Row:
    """The JSON object that a file holds; empty where there is no file, or, with a line about it, where it holds none."""
    text = _text(path, unreadable)
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    unreadable.append(f"{path.name} holds no JSON object and was left out")
    return {}


def _lines(path: Path, unreadable: list[str]) -> list[Row]:
    """The JSON objects of a file, one a line; the same. A last line without its end is being written, or was when the run was killed."""
    lines = _text(path, unreadable).split("\n")
    rows, wrong = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            wrong += [number] if number < len(lines) else []
            continue
        if isinstance(row, dict):
            rows.append(row)
    if wrong:
        unreadable.append(
            f"{path.name}: {len(wrong)} of {len(lines) - 1} lines are no JSON and were left out, the first is line {wrong[0]}"
        )
    return rows


def _text(path: Path, unreadable: list[str]) -> str:
    if path.is_fifo():
        unreadable.append(f"{path.name} is a pipe and was left out")  # its writer would be waited for
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        unreadable.append(f"{path.name} cannot be read and was left out: {error.strerror or error}")
        return ""
