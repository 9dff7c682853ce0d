"""Compares the curves of `lightrft demo` with each training backend, step by step."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOLVED = 0.9
REWARD, EVALUATION = "rollout/reward", "eval/reward"
BACKENDS: dict[str, list[str]] = {
    "fsdp": ["--strategy", "fsdp"],
    **{f"zero {stage}": ["--strategy", "deepspeed", "--zero_stage", str(stage)] for stage in (1, 2, 3)},
}
WIDTHS = (10, 10, 10, 16, 20, 22)


def main() -> int:
    """Returns 1 if one of them does not reach an accuracy of 0.9."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("demo_flags", nargs="*", help="flags of `lightrft demo`, after --")
    args = parser.parse_args()
    _print_row("backend", "before", "after", "same until step", "furthest reward", "furthest evaluation")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        curves = []
        for name in args.backends:
            result, curve = _run(Path(folder) / name.replace(" ", "-"), [*BACKENDS[name], *args.demo_flags])
            curves.append(curve)
            rows.append({"backend": name, "before": result["accuracy_before"], "after": result["accuracy_after"], **_far(curve, curves[0])})
            row = rows[-1]
            numbers = [f"{row[key]:.3f}" for key in ("before", "after")]
            distances = [f"{row[key]:.4f}" for key in ("reward", "evaluation")]
            _print_row(name, *numbers, str(row["same_until"]), *distances)
    ok = all(row["after"] >= SOLVED for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "backend_curves", "ok": ok, "rows": rows}))
    return 0 if ok else 1


def _run(run_dir: Path, flags: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    command = [sys.executable, "-m", "lightrft.cli.main", "demo", "--json", "--output_dir", str(run_dir), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` exited with {done.returncode}:\n{done.stderr[-2000:]}")
    metrics = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(done.stdout.splitlines()[-1]), [json.loads(line) for line in metrics]


def _far(curve: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    """From the first backend's curve: the last step up to which every sampled reward is the same, and the largest distances."""
    pairs = [(mine, theirs) for mine, theirs in zip(curve, first, strict=True) if REWARD in mine]
    differing = [mine["step"] for mine, theirs in pairs if mine[REWARD] != theirs[REWARD]]
    evaluated = [(mine, theirs) for mine, theirs in zip(curve, first, strict=True) if EVALUATION in mine]
    return {
        "same_until": min(differing) - 1 if differing else pairs[-1][0]["step"],
        "reward": max(abs(mine[REWARD] - theirs[REWARD]) for mine, theirs in pairs),
        "evaluation": max(abs(mine[EVALUATION] - theirs[EVALUATION]) for mine, theirs in evaluated),
    }


def _print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
