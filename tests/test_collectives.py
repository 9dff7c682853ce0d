"""The collectives of a step. The counts of `benchmarks/collectives.py`, as the command prints them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.tiny import tiny_causal_lm

COMMAND = Path(__file__).resolve().parents[1] / "benchmarks/collectives.py"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int, int], Row]:
    """By backend, blocks and micro-batches, on two ranks."""
    done = subprocess.run([sys.executable, str(COMMAND), "--ranks", "2", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert verdict["ok"] and {row["ranks"] for row in verdict["computed"]} == {64, 1024}
    return {(row["backend"], row["blocks"], row["micro_batches"]): row for row in verdict["rows"]}


@pytest.mark.parametrize("backend", ["fsdp", "fsdp, kept", "zero 0", "zero 1"])
def test_gradients_are_reduced_once_however_many_micro_batches(rows: dict[tuple[str, int, int], Row], backend: str) -> None:
    for blocks in (2, 4):
        once, often = rows[backend, blocks, 1], rows[backend, blocks, 4]
        assert once["reductions"] == often["reductions"] > 0


def test_fully_shard_reduces_each_block_and_the_rest_and_agrees_twice(rows: dict[tuple[str, int, int], Row]) -> None:
    for blocks in (2, 4):
        row = rows["fsdp", blocks, 1]
        model = tiny_causal_lm(layers=blocks)
        in_blocks = 1 - sum(p.numel() for name, p in model.named_parameters() if ".layers." not in name) / model.num_parameters()
        assert row["reductions"] == blocks + 1 + 2  # the number of micro-batches, and the norm
        assert row["collectives"] - row["reductions"] == 2 * blocks + 1  # blocks are gathered for both passes, the rest once
        assert row["model_sizes"] == pytest.approx(2.0 + in_blocks, abs=0.01)


def test_parameters_that_are_kept_are_gathered_once_for_all_micro_batches(rows: dict[tuple[str, int, int], Row]) -> None:
    for blocks in (2, 4):
        once, often = rows["fsdp, kept", blocks, 1], rows["fsdp, kept", blocks, 4]
        assert once["collectives"] == often["collectives"] == (blocks + 1) + (blocks + 1) + 2
        assert often["model_sizes"] == pytest.approx(2.0, abs=0.01)


def test_zero_2_reduces_in_every_micro_batch(rows: dict[tuple[str, int, int], Row]) -> None:
    """Its gradients are cut at once: what its memory costs."""
    assert rows["zero 2", 2, 4]["reductions"] - rows["zero 2", 2, 1]["reductions"] == 3


@pytest.mark.parametrize("backend", ["fsdp", "zero 3"])
def test_an_export_is_one_collective_for_each_bucket_not_for_each_parameter(rows: dict[tuple[str, int, int], Row], backend: str) -> None:
    for blocks in (2, 4):
        assert rows[backend, blocks, 1]["num_parameters"] > 20
        assert rows[backend, blocks, 1]["export_collectives"] == 1
