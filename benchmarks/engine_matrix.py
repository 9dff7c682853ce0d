"""Every engine beside every strategy: generate, train a step, sync, generate again, on real ranks, as a table.

    make engine-matrix                                                 # hf, vLLM and SGLang, each in its own environment
    .venv-vllm/bin/python benchmarks/engine_matrix.py --engines vllm   # one engine, where it is installed

Tokens are compared with those of transformers with the actor's weights, log-probs with its log-probs, before and after the sync.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightrft.engine.quiet import no_progress_bars
from lightrft.testing.engine_scenario import scenario
from lightrft.testing.spmd import SpmdError, run_spmd
from lightrft.testing.tiny import tiny_model_folder

STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "fsdp": {"strategy": "fsdp"},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}
ENGINES = ("hf", "vllm", "sglang")
BOUND = 1e-5
"""Of log-probs, fp32 on the CPU, in nats."""
TIMEOUT_S = 600.0
WIDTHS = (10, 6, 10, 7, 14, 14, 7, 9, 40)
TITLES = ("engine", "tp", "strategy", "ranks", "wrong tokens", "log-prob gap", "syncs", "seconds", "")


@dataclass(frozen=True)
class Cell:
    """One run. `single` has one rank, so one engine of one rank."""

    engine: str
    tp: int
    strategy: str
    ranks: int


@dataclass(frozen=True)
class Row:
    """`wrong` counts prompts with other tokens than transformers', `gap` is the largest log-prob difference, `failure` why it ended."""

    engine: str
    tp: int
    strategy: str
    ranks: int
    wrong: int
    gap: float
    syncs: int
    seconds: float
    failure: str

    @property
    def ok(self) -> bool:
        """Whether it holds the actor."""
        return not self.failure and self.wrong == 0 and self.gap < BOUND and self.syncs == 1


def main() -> int:
    """Returns 1 where a cell is not ok."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), metavar="NAME")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="beside `single`, which has one")
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2], help="ranks of one engine")
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=PATH", help="the interpreter that has this engine")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    elsewhere = dict(entry.split("=", 1) for entry in args.python)
    print_row(*TITLES)
    rows: list[Row] = []
    for engine in args.engines:
        cells = cells_of(engine, strategies=args.strategies, ranks=args.ranks, tps=args.tp)
        rows += there(elsewhere[engine], engine, args) if engine in elsewhere else [show(run_cell(cell)) for cell in cells]
    ok = all(row.ok for row in rows)
    print(f"{sum(row.ok for row in rows)} of {len(rows)} ok")
    if args.json:
        print(json.dumps({"benchmark": "engine_matrix", "ok": ok, "rows": [asdict(row) | {"ok": row.ok} for row in rows]}))
    return 0 if ok else 1


def cells_of(engine: str, *, strategies: Sequence[str], ranks: Sequence[int], tps: Sequence[int]) -> list[Cell]:
    """All combinations that there are: `single` on one rank, engines of `tp` ranks where these divide the world."""
    single = [Cell(engine, 1, "single", 1)] if "single" in strategies else []
    others = [name for name in strategies if name != "single"]
    return single + [Cell(engine, tp, name, world) for world in ranks for tp in tps for name in others if world % tp == 0]


def run_cell(cell: Cell) -> Row:
    """Runs it on ranks of this machine."""
    settings = STRATEGIES[cell.strategy] | {"engine_type": cell.engine, "engine_tp_size": cell.tp}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lightrft-matrix-") as name:
        with no_progress_bars():
            folder = tiny_model_folder(Path(name) / "model", tie=True, kv_heads=2)
        try:
            found = run_spmd(scenario, cell.ranks, str(folder), settings, 1, timeout_s=TIMEOUT_S)
        except SpmdError as error:
            return Row(**asdict(cell), wrong=0, gap=float("nan"), syncs=0, seconds=time.monotonic() - start, failure=reason(str(error)))
    broken = "" if all(f.group_works_after for f in found) else "the trainer's process group is gone after the engine's shutdown"
    return Row(
        **asdict(cell),
        wrong=sum(len(f.wrong) for f in found),
        gap=max(f.logprob_error for f in found),
        syncs=min(f.version for f in found),
        seconds=time.monotonic() - start,
        failure=broken,
    )


def reason(text: str) -> str:
    """The sentence that a rank's report comes down to: the end of its traceback, or that it was still running."""
    lines = text.strip().splitlines()
    return next((line.rstrip(", in:") for line in lines if "was still running" in line), lines[-1])


def there(python: str, engine: str, args: argparse.Namespace) -> list[Row]:
    """The engine's cells, run and printed by the interpreter that has it."""
    words = [python, __file__, "--engines", engine, "--json", "--strategies", *args.strategies]
    words += ["--ranks", *map(str, args.ranks), "--tp", *map(str, args.tp)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for last in process.stdout:
            if last.startswith(engine):
                print(last, end="", flush=True)
    if not last.startswith("{"):
        raise SystemExit(f"{' '.join(words)} ended with exit code {process.returncode} and no table")
    return [Row(**{name: value for name, value in row.items() if name != "ok"}) for row in json.loads(last)["rows"]]


def show(row: Row) -> Row:
    """Prints it."""
    verdict = "ok" if row.ok else row.failure or "NOT THE ACTOR"
    print_row(
        row.engine,
        str(row.tp),
        row.strategy,
        str(row.ranks),
        str(row.wrong),
        f"{row.gap:.1e}",
        str(row.syncs),
        f"{row.seconds:.0f}",
        verdict,
    )
    return row


def print_row(*cells: str) -> None:
    """Left-aligned, cut nowhere but the last cell."""
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
