"""A row shared by real ranks: log-probs and the sum of gradients are those of one process, one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightrft.distributed.mesh import Mesh
from lightrft.distributed.world import World
from lightrft.errors import ModelError
from lightrft.models.attention import use_our_attention
from lightrft.models.packing_check import check_packing
from lightrft.testing import run_spmd
from lightrft.testing.packed_rows import FAMILIES, LENGTHS, family, logprobs_alone, logprobs_packed, reference, sequences
from lightrft.testing.spmd import SpmdError

Case = tuple[str, tuple[int, ...], dict[str, Any]]

SETTING = "sp_size=2"

CASES: list[Case] = [
    *((name, LENGTHS, {}) for name in FAMILIES),
    ("qwen3", (3,), {}),  # of four ranks one holds padding alone
    ("gemma2", (1, 1, 2), {}),
    ("qwen3", (1,), {}),
    ("qwen3", LENGTHS, {"num_key_value_heads": 1}),  # fewer than ranks
    ("qwen3", LENGTHS, {"num_attention_heads": 12, "num_key_value_heads": 3}),  # not divided by them
]


def weighted(logprobs: torch.Tensor) -> torch.Tensor:
    return (logprobs * torch.randn(len(logprobs), generator=torch.Generator().manual_seed(9))).sum()


def measure(size: int) -> list[tuple[float, float]]:
    """For each case how far log-probs and gradients are from one process; gradients relative to the largest of the model."""
    axis = Mesh.of(World.join(need_group=True), sequence=size).sequence
    found = []
    for name, lengths, config in CASES:
        rows, model, theirs = sequences(lengths), family(name, **config), reference(name, **config)
        use_our_attention(model, setting=SETTING)
        expected, logprobs = logprobs_alone(theirs, rows), logprobs_packed(model, rows, axis)
        weighted(expected).backward()
        weighted(logprobs).backward()
        largest = max([float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None])
        apart = 0.0
        for mine, one in zip(model.parameters(), theirs.parameters(), strict=True):
            total = torch.zeros_like(mine) if mine.grad is None else mine.grad
            dist.all_reduce(total, group=axis.group)
            apart = max(apart, float((total - (0 if one.grad is None else one.grad)).abs().max()) / max(largest, 1e-9))
        found.append((float((logprobs - expected).detach().abs().max()), apart))
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_a_row_compute_what_one_process_computes(size: int) -> None:
    for rank in run_spmd(measure, size, size, timeout_s=240.0):
        for (name, lengths, config), (logprobs, gradients) in zip(CASES, rank, strict=True):
            assert logprobs < 1e-5, (name, lengths, config)
            assert gradients < 5e-6, (name, lengths, config)


def checked(name: str, config: dict[str, Any]) -> None:
    axis = Mesh.of(World.join(need_group=True), sequence=2).sequence
    model = family(name, **config)
    use_our_attention(model, setting=SETTING)
    check_packing(lambda **inputs: model(**inputs).logits, model.config, device=torch.device("cpu"), setting=SETTING, axis=axis)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_check_before_the_first_pass_knows_shared_rows(name: str) -> None:
    run_spmd(checked, 2, name, {})


def test_heads_that_the_ranks_do_not_divide_are_refused_with_what_is_possible() -> None:
    with pytest.raises(SpmdError, match="sp_size=2 does not divide the 3 attention heads of the model; possible: 1, 3"):
        run_spmd(checked, 2, "qwen3", {"num_attention_heads": 3, "num_key_value_heads": 1})


def without_the_group() -> None:
    """Planted: each rank attends to its own part alone."""
    axis = Mesh.of(World.join(need_group=True), sequence=2).sequence
    model = family("qwen3")
    use_our_attention(model, setting=SETTING)

    def alone(**inputs: Any) -> torch.Tensor:
        length = inputs["input_ids"].shape[1]
        own = {"sequence_axis": None, "cu_seq_lens_q": torch.tensor([0, length], dtype=torch.int32), "max_length_q": length}
        logits: torch.Tensor = model(**inputs | own).logits
        return logits

    with pytest.raises(ModelError, match="cannot be packed"):
        check_packing(alone, model.config, device=torch.device("cpu"), setting=SETTING, axis=axis)


def test_a_part_that_is_attended_to_alone_is_found() -> None:
    run_spmd(without_the_group, 2)
