"""The update of every backend, on every number of ranks, against one process. The distances from `single`, as a table and a verdict."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from lightrft.testing import run_spmd
from lightrft.testing.parity import BOUND, CASES, Case, Distance, farthest, measure


@dataclass(frozen=True)
class Backend:
    """Its settings, the cases that it is measured in, and how far it may be from the oracle."""

    settings: dict[str, Any]
    cases: tuple[Case, ...] = CASES
    bound: Distance = BOUND


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"strategy": "deepspeed", "zero_stage": stage, **more}


BF16 = Distance(gradients=3e-2, norms=1e-2, parameters=6e-3)
"""Measured (the same on all backends): 1.6e-2, 3.5e-3, 4.3e-3. bfloat16 has 8 bits; five steps of 1e-3 move a parameter by up to 5e-3."""

FEW = tuple(case for case in CASES if case.name in ("accumulation 3", "actor and critic"))
BACKENDS = {
    "fsdp": Backend({"fsdp": True}),
    "zero 0": Backend(zero(0)),
    "zero 1": Backend(zero(1)),
    "zero 2": Backend(zero(2)),
    "zero 3": Backend(zero(3)),
    "fsdp, optimizer offload": Backend({"fsdp": True, "fsdp_cpu_offload": True}, FEW),
    "zero 2, Adam in host memory": Backend(zero(2, adam_offload=True), FEW),
    "zero 3, Adam in host memory": Backend(zero(3, adam_offload=True), FEW),
    "fsdp, recomputed activations": Backend({"fsdp": True, "gradient_checkpointing": True}, FEW),
    "zero 2, recomputed activations": Backend(zero(2, gradient_checkpointing=True), FEW),
    "zero 3, recomputed activations": Backend(zero(3, gradient_checkpointing=True), FEW),
    "fsdp, parameters kept gathered": Backend({"fsdp": True, "fsdp_reshard_after_forward": False}, FEW),
    "fsdp, bf16": Backend({"fsdp": True, "bf16": True}, FEW, BF16),
    "fsdp, bf16, use_mp_opt": Backend({"fsdp": True, "bf16": True, "use_mp_opt": True}, FEW, BF16),
    "zero 1, bf16": Backend(zero(1, bf16=True), FEW, BF16),
    "zero 2, bf16": Backend(zero(2, bf16=True), FEW, BF16),
    "zero 3, bf16": Backend(zero(3, bf16=True), FEW, BF16),
}
TIMEOUT_S = 1200.0
WIDTHS = (32, 7, 18, 11, 11, 12, 8)


def main() -> int:
    """Returns 1 if a distance is beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="NAME")
    parser.add_argument("--cuda", action="store_true", help="on GPUs, one for each rank")
    parser.add_argument("--compile", action="store_true", help="with compiled blocks: minutes for each backend; else without")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    oracle = run_spmd(measure, 1, {"single": ({"strategy": "single", "compile": "no"}, CASES)}, cuda=args.cuda)[0]["single"]
    backends = {name: BACKENDS[name] for name in args.backends}
    _print_row("distance from single", "ranks", "case", "gradients", "norms", "parameters", "")
    rows = []
    for world_size in args.ranks:
        compiled = {"compile": "auto" if args.compile else "no"}
        asked = {name: (backend.settings | compiled, backend.cases) for name, backend in backends.items()}
        found = run_spmd(measure, world_size, asked, timeout_s=TIMEOUT_S, cuda=args.cuda)
        for name, backend in backends.items():
            for case in backend.cases:
                far = farthest([rank[name][case.name] for rank in found], oracle[case.name])
                ok = far.within(backend.bound)
                bound = asdict(backend.bound)
                rows.append({"backend": name, "ranks": world_size, "case": case.name, **asdict(far), "bound": bound, "ok": ok})
                _print_row(name, str(world_size), case.name, *_numbers(far), "ok" if ok else "BEYOND")
    ok = all(row["ok"] for row in rows)
    if args.json:
        print(json.dumps({"benchmark": "parity", "ok": ok, "rows": rows}))
    return 0 if ok else 1


def _numbers(distance: Distance) -> list[str]:
    return [f"{value:.1e}" for value in asdict(distance).values()]


def _print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
