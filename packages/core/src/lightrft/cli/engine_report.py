"""`lightrft engine-report`: what options of an engine do, measured over a few rollouts of a recipe, each set of options in a job of its
own: speed, memory and start time, and how far the engine's log-probs are from the trainer's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightrft.config.engine_args import PREFIX
from lightrft.config.load import read_recipe
from lightrft.config.schema import Config
from lightrft.errors import ConfigError

MEASURED = {
    "tokens_per_s": "rollout/tokens_per_s",
    "gap": "rollout/logprob_gap",
    "gap_max": "rollout/logprob_gap_max",
    "kl": "rollout/mismatch_kl",
    "ess": "rollout/mismatch_ess",
    "memory_gib": "memory/rollout_gib",
}
"""Columns and the metrics that they are the medians of."""
AS_IT_IS = "as the recipe"
ALONE = {"save_every": 0, "save_every_minutes": 0, "plot_every": 0, "save_samples": 0, "loggers": ["jsonl"]}
"""What a short job leaves out."""


LEFT_OUT = ("resume_from", "log_dir", "keep_checkpoints", "keep_best", "best_metric", "best_mode")


@dataclass(frozen=True)
class Row:
    """One set of options. `start_s`: seconds of the job outside of its rollouts, most of them until the engine is up. `measured`: medians
    over the rollouts after the first, None where nothing was logged. `said`: the run's warnings, and, with an `rc` other than 0, why it
    ended.
    """

    options: str
    rc: int
    start_s: float
    measured: dict[str, float | None]
    said: list[str]


def run_engine_report(words: Sequence[str], *, description: str) -> tuple[list[Row], bool]:
    """The rows, printed as they come, and whether JSON was asked for.

    Raises:
        ConfigError: no recipe, or a set that is not NAME=VALUE.
    """
    parser = argparse.ArgumentParser(prog="lightrft engine-report", description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", required=True, help="a recipe (YAML)")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="NAME=VALUE", dest="sets",
        help="options that are tried together: a setting, else an option of the engine (engine_args); give it once for each row",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=4, help="rollouts of each job, 2 at least (default: 4)")
    parser.add_argument("--nproc-per-node", metavar="N", help="ranks (default: one for each GPU, else 1)")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    given = parser.parse_args(list(words))
    if given.steps < 2:
        raise ConfigError([f"--steps {given.steps}: give at least 2; the first one starts the engine and is not counted"])
    recipe = read_recipe(given.config)
    sets = [{}, *(dict(map(_pair, words)) for words in given.sets)]
    rows = []
    print(heading(), flush=True)
    with tempfile.TemporaryDirectory(prefix="lightrft-engine-report-") as folder:
        for number, options in enumerate(sets):
            rows.append(_row(recipe, options, Path(folder) / str(number), steps=given.steps, nproc=given.nproc_per_node))
            print(told(rows[-1]), flush=True)
    return rows, given.json


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """For the last line."""
    return {"rows": [asdict(row) for row in rows], "ok": all(row.rc == 0 for row in rows)}


def told(row: Row) -> str:
    """One line of the table, and one for each thing that was said."""
    cells = [row.start_s, *(row.measured.get(name) for name in MEASURED)]
    numbers = "".join(("-" if cell is None else f"{cell:.4g}").rjust(14) for cell in cells)
    return "\n".join([f"{row.options:<40}{numbers}", *(f"    {line}" for line in row.said)])


def heading() -> str:
    """Of the table."""
    return f"{'options':<40}" + "".join(name.rjust(14) for name in ("start_s", *MEASURED))


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise ConfigError([f"--set {word!r}: expected NAME=VALUE"])
    return (name if name.partition(".")[0] in Config.model_fields else PREFIX + name), value


def _row(recipe: Mapping[str, Any], options: Mapping[str, str], folder: Path, *, steps: int, nproc: str | None) -> Row:
    """Runs the job, and reads what it logged."""
    folder.mkdir()
    values = {**recipe, **ALONE, "max_steps": steps, "output_dir": str(folder / "run"), "logprob_gap_action": "warn"}
    values = {name: value for name, value in values.items() if name not in LEFT_OUT}
    (folder / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    words = [sys.executable, "-m", "lightrft.cli.main", "train", "--config", str(folder / "recipe.yaml")]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--nproc-per-node", nproc] if nproc else []
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    rows = _lines(folder / "run" / "metrics.jsonl")
    steady = [row for row in rows if row["step"] > 1]
    said = [row["text"] for row in _lines(folder / "run" / "warnings.jsonl")]
    if done.returncode:
        said += done.stderr.strip().splitlines()[-3:]
    shown = " ".join(f"{name.removeprefix(PREFIX)}={value}" for name, value in options.items())
    return Row(
        options=shown or AS_IT_IS,
        rc=done.returncode,
        start_s=seconds - sum(row.get("time/step_s", 0.0) for row in rows),
        measured={name: _median([row[metric] for row in steady if metric in row]) for name, metric in MEASURED.items()},
        said=said,
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
