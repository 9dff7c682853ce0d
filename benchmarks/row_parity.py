"""Whether rows that are packed, shared by ranks, or scored by the fused head give the update of one process with padded rows."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from lightrft.testing import run_spmd
from lightrft.testing.parity import BOUND, Distance, farthest
from lightrft.testing.row_parity import MODELS, VARIANTS, measure_rows

BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}
BOUNDS = {"float32": BOUND, "bfloat16": Distance(gradients=5e-2, norms=1e-2, parameters=6e-3)}
"""In bfloat16 measured on 2 and 4 CPU ranks: 3.4e-2, 6.9e-3 and 4.1e-3, of a Gemma-2-like model; 2.4e-2, 1.8e-3, 3.2e-3 of the others."""
TIMEOUT_S = 1200.0
WIDTHS = (12, 7, 10, 10, 11, 11, 12, 8)


def main() -> int:
    """Returns 1 if a distance is beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="NAME")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--dtype", default="float32", choices=list(BOUNDS), help="of the backends' passes; the one process is in float32")
    parser.add_argument("--cuda", action="store_true", help="on GPUs, one for each rank")
    parser.add_argument("--compile", action="store_true", help="with compiled blocks: minutes for each backend; else without")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    plain = {"strategy": "single", "compile": "no"}
    alone = run_spmd(measure_rows, 1, [(plain, model) for model in args.models], timeout_s=TIMEOUT_S, cuda=args.cuda)[0]
    oracle = dict(zip(args.models, alone, strict=True))
    _print_row("update of", "ranks", "rows", "model", "gradients", "norms", "parameters", "")
    rows = []
    for backend in args.backends:
        cells = [(variant, model) for variant in _possible(args.ranks) for model in args.models]
        same = {"compile": "auto" if args.compile else "no", "bf16": args.dtype == "bfloat16"}
        asked = [(BACKENDS[backend] | VARIANTS[variant] | same, model) for variant, model in cells]
        found = run_spmd(measure_rows, args.ranks, asked, timeout_s=TIMEOUT_S, cuda=args.cuda)
        for number, (variant, model) in enumerate(cells):
            far = farthest([rank[number] for rank in found], oracle[model])
            ok = far.within(BOUNDS[args.dtype])
            rows.append({"backend": backend, "ranks": args.ranks, "rows": variant, "model": model, **asdict(far), "ok": ok})
            numbers = [f"{value:.1e}" for value in asdict(far).values()]
            _print_row(backend, str(args.ranks), variant, model, *numbers, "ok" if ok else "BEYOND")
    ok = all(row["ok"] for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "row_parity", "ok": ok, "dtype": args.dtype, "bound": asdict(BOUNDS[args.dtype]), "rows": rows}))
    return 0 if ok else 1


def _possible(ranks: int) -> list[str]:
    """The variants whose sequences so many ranks can share."""
    return [name for name, settings in VARIANTS.items() if ranks % settings.get("sp_size", 1) == 0]


def _print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
