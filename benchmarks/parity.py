"""Is the update of every backend, on every number of ranks, that of one process? The distances from `single`, as a table and a verdict."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from lightrft.testing import run_spmd
from lightrft.testing.parity import BOUND, CASES, Distance, farthest, measure

BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, optimizer offload": {"fsdp": True, "fsdp_cpu_offload": True},
    "zero 0": {"strategy": "deepspeed", "zero_stage": 0},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed"},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
    "zero 2, Adam in host memory": {"strategy": "deepspeed", "adam_offload": True},
    "zero 3, Adam in host memory": {"strategy": "deepspeed", "zero_stage": 3, "adam_offload": True},
}
TIMEOUT_S = 1200.0
WIDTHS = (29, 7, 16, 11, 11, 12, 8)


def main() -> int:
    """Returns 1 if a distance is beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    oracle = run_spmd(measure, 1, {"single": {"strategy": "single"}})[0]["single"]
    backends = {name: BACKENDS[name] for name in args.backends}
    _print_row("distance from single", "ranks", "case", "gradients", "norms", "parameters", "")
    _print_row("bound", "", "", *_numbers(BOUND), "")
    rows = []
    for world_size in args.ranks:
        found = run_spmd(measure, world_size, backends, timeout_s=TIMEOUT_S)
        for backend in backends:
            for case in CASES:
                far = farthest([rank[backend][case.name] for rank in found], oracle[case.name])
                rows.append({"backend": backend, "ranks": world_size, "case": case.name, **asdict(far), "ok": far.within(BOUND)})
                _print_row(backend, str(world_size), case.name, *_numbers(far), "ok" if far.within(BOUND) else "BEYOND")
    ok = all(row["ok"] for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "parity", "bound": asdict(BOUND), "ok": ok, "rows": rows}))
    return 0 if ok else 1


def _numbers(distance: Distance) -> list[str]:
    return [f"{value:.1e}" for value in asdict(distance).values()]


def _print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
