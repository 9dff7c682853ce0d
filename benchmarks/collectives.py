"""The communication of a step: collectives and bytes of each backend, counted, and what follows for many ranks, computed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.collectives import CountedCollectives
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, loss_sum, ragged_rows

BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, kept": {"fsdp": True, "fsdp_reshard_after_forward": False},
    **{f"zero {stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in range(4)},
}
LAYERS = (2, 4)
MICRO_BATCHES = (1, 4)
REDUCTIONS = ("allreduce_", "_reduce_scatter_base_", "reduce_scatter_")
TWICE = ("allreduce_",)
"""An all-reduce moves its bytes twice: a reduce-scatter and an all-gather."""

ZERO_BUCKET = 50e6
"""Elements of one of ZeRO's collectives (`lightrft_deepspeed.settings`): the small model here fits into one, a large one does not."""

COLUMNS = ("backend", "ranks", "blocks", "micro", "collectives", "of them reductions", "MiB moved", "model sizes", "export")
WIDTHS = (12, 6, 7, 6, 12, 19, 10, 12, 7)


def main() -> int:
    """Returns 1 if a number of collectives depends on the number of ranks, or an export takes more than one for its one bucket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--blocks", type=int, default=28, help="of the model that the computed part is for")
    parser.add_argument("--parameters", type=float, default=7.6e9, help="likewise")
    parser.add_argument("--latency-us", type=float, default=10.0, help="of one hop of a collective (a tree has log2(ranks))")
    parser.add_argument("--gb-per-s", type=float, default=50.0, help="what one rank sends and receives")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    _print_row(WIDTHS, *COLUMNS)
    rows = [row for ranks in args.ranks for row in _counted(ranks)]
    computed = [_computed(name, rows, world_size, args) for name in BACKENDS for world_size in (64, 1024)] if max(args.ranks) > 1 else []
    ok = _sound(rows)
    if args.json:
        print(json.dumps({"benchmark": "collectives", "ok": ok, "rows": rows, "computed": computed}))
    return 0 if ok else 1


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Every count of one backend. For each rank of `run_spmd`."""
    strategy = get_strategy(make_config(settings))
    return [_measure(strategy, layers, micro) for layers in LAYERS for micro in MICRO_BATCHES]


def _measure(strategy: Any, layers: int, micro: int) -> dict[str, Any]:
    source = tiny_causal_lm(layers=layers)
    model_bytes, num_parameters = sum(p.numel() for p in source.parameters()) * 4, len(list(source.parameters()))
    model, optimizer = strategy.prepare_trainable(source, optimizer=SETTINGS)
    batches = [ragged_rows(step)[:2] for step in range(micro)]
    for _ in range(2):  # the first step of a model is not like the others: ZeRO-3 learns its order
        with CountedCollectives() as step:
            strategy.accumulate(batches, lambda rows: loss_sum(model, rows) / 100, model, optimizer)
            strategy.optimizer_step(optimizer, model, None)
    with CountedCollectives() as export:
        full_parameters(strategy, model)
    moved = sum(size * (2 if name in TWICE else 1) for name, size in step.bytes.items())
    return {
        "blocks": layers,
        "micro_batches": micro,
        "collectives": step.calls.total(),
        "reductions": sum(step.calls[name] for name in REDUCTIONS),
        "carried_bytes": step.bytes.total(),
        "moved_bytes": moved,
        "model_sizes": moved / model_bytes,
        "export_collectives": export.calls.total(),
        "num_parameters": num_parameters,
    }


def _counted(ranks: int) -> list[dict[str, Any]]:
    rows = []
    for name, settings in BACKENDS.items():
        for found in run_spmd(measure, ranks, settings, timeout_s=600)[0]:
            rows.append({"backend": name, "ranks": ranks, **found})
            _print_row(
                WIDTHS,
                name,
                *(str(rows[-1][key]) for key in ("ranks", "blocks", "micro_batches", "collectives", "reductions")),
                f"{found['moved_bytes'] / 2**20:.2f}",
                f"{found['model_sizes']:.2f}",
                str(found["export_collectives"]),
            )
    return rows


def _computed(name: str, rows: list[dict[str, Any]], world_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """A step of one micro-batch in bfloat16: each collective costs its hops, each byte (ranks - 1) / ranks of its time."""
    few, many = (
        next(row for row in rows if row["backend"] == name and row["ranks"] > 1 and row["blocks"] == blocks and row["micro_batches"] == 1)
        for blocks in LAYERS
    )
    per_block = (many["collectives"] - few["collectives"]) / (LAYERS[1] - LAYERS[0])
    collectives = few["collectives"] + per_block * (args.blocks - LAYERS[0])
    if name.startswith("zero"):
        carried = many["carried_bytes"] / many["moved_bytes"] * many["model_sizes"] * args.parameters
        collectives = max(collectives, math.ceil(carried / ZERO_BUCKET))
    latency_ms = collectives * math.log2(world_size) * args.latency_us / 1e3
    moved = many["model_sizes"] * args.parameters * 2
    transfer_ms = moved * (world_size - 1) / world_size / args.gb_per_s / 1e6
    print(
        f"computed: {name} on {world_size} ranks, {args.blocks} blocks, {args.parameters / 1e9:.1f} G parameters: {collectives:.0f} "
        f"collectives, {latency_ms:.1f} ms of latency, {transfer_ms:.0f} ms of transfer, before any overlap",
        flush=True,
    )
    return {
        "backend": name,
        "ranks": world_size,
        "collectives": collectives,
        "latency_ms": latency_ms,
        "transfer_ms": transfer_ms,
    }


def _sound(rows: list[dict[str, Any]]) -> bool:
    """The same collectives on any number of ranks beyond one, and one for an export of one bucket where there is anything to gather."""
    distributed = [row for row in rows if row["ranks"] > 1]
    counts: dict[tuple[Any, ...], set[int]] = {}
    for row in distributed:
        counts.setdefault((row["backend"], row["blocks"], row["micro_batches"]), set()).add(row["collectives"])
    return all(len(found) == 1 for found in counts.values()) and all(row["export_collectives"] <= 1 for row in distributed)


def _print_row(widths: tuple[int, ...], *cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
