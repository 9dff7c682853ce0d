"""A ZeRO-3 model that was sharded while empty is the one that was loaded whole; no rank holds more than its parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lightrft.config.load import make_config
from lightrft.models.load import load_causal_lm, open_causal_lm
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft.weights.safetensors_reader import WeightFiles
from lightrft_deepspeed import settings
from lightrft_deepspeed.construct import shard_empty
from lightrft_deepspeed.fragments import trained

FROZEN = "model.layers.0.mlp.up_proj.weight"


class Watched(WeightFiles):
    """Counts the elements that this rank reads, and the most of one reading."""

    elements = 0
    most = 0

    def rows(self, names: Any, first: int, last: int) -> torch.Tensor:
        found = super().rows(names, first, last)
        self.elements += found.numel()
        self.most = max(self.most, found.numel())
        return found


def some_frozen(model: torch.nn.Module) -> torch.nn.Module:
    model.get_parameter(FROZEN).requires_grad_(False)
    return model


def built(folder: Path, bf16: bool, stage: int, offload: bool) -> dict[str, Any]:
    strategy = get_strategy(make_config({"zero_stage": stage, "bf16": bf16, "adam_offload": offload}))
    watched = Watched(folder)
    opened = some_frozen(open_causal_lm(folder, dtype=torch.float32).model)
    model, optimizer = strategy.prepare_trainable(opened, optimizer=SETTINGS, weights=watched)
    whole, whole_optimizer = strategy.prepare_trainable(some_frozen(load_causal_lm(folder, dtype=torch.float32)), optimizer=SETTINGS)
    inner = strategy.unwrap(model)
    out = {"start": full_parameters(strategy, model), "whole": full_parameters(strategy, whole), "read": watched.elements}
    out["tied"] = inner.lm_head.weight is inner.model.embed_tokens.weight
    train(strategy, model, optimizer, last=3)
    train(strategy, whole, whole_optimizer, last=3)
    out["after"] = largest_difference(full_parameters(strategy, model), full_parameters(strategy, whole))
    return out


@pytest.mark.parametrize(("bf16", "stage", "offload"), [(False, 3, False), (True, 3, False), (True, 3, True), (True, 1, False)])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.long)])
def test_the_same_model_trains_the_same(tmp_path: Path, world_size: int, tie: bool, bf16: bool, stage: int, offload: bool) -> None:
    source = tiny_causal_lm(seed=2, tie=tie, vocab_size=67)  # divisible by no world size
    source.save_pretrained(tmp_path, max_shard_size="60KB")
    total = sum(p.numel() for p in source.parameters())
    ranks = run_spmd(built, world_size, tmp_path, bf16, stage, offload)
    for rank in ranks:
        assert rank["tied"] == tie
        assert largest_difference(rank["start"], rank["whole"]) == rank["after"] == 0.0
        exact = dict(source.named_parameters())
        if bf16:  # a frozen parameter has no master
            exact[FROZEN] = exact[FROZEN].bfloat16().float()
        assert largest_difference(rank["start"], exact) == 0.0  # float32 masters have the file's bits, not rounded ones
    if stage == 3:
        assert sum(rank["read"] for rank in ranks) < 1.1 * total  # rows that two ranks share are read by both


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch's allocator had given out during `work`, beyond what it had before: every allocation counts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    sizes = []
    pending = list(profiler.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while pending:
        event = pending.pop()
        pending += event.children
        if event.name == "[memory]":
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    del result
    return max(itertools.accumulate(size for _, size in sorted(sizes, key=lambda item: item[0])))


def peaks(folder: Path) -> dict[str, int]:
    settings.REDUCE_BUCKET = 1000  # a buffer of a fixed size, not of the model's
    strategy = get_strategy(make_config({"zero_stage": 3}))
    strategy.prepare_trainable(tiny_causal_lm(layers=1), optimizer=SETTINGS)  # what DeepSpeed sets up once
    told = strategy.describe()["deepspeed"]
    empty = open_causal_lm(folder, dtype=torch.float32).model
    cutting = peak_bytes(lambda: shard_empty(empty, settings=told, dtype=torch.float32, device=strategy.world.device))
    watched, kept, preparing = Watched(folder), [], []
    for _ in range(3):  # on a busy machine the threads of gloo give buffers back late: what is held in every run is held
        opened = open_causal_lm(folder, dtype=torch.float32)
        kept.clear()
        preparing.append(
            peak_bytes(lambda: kept.append(strategy.prepare_trainable(opened.model, optimizer=SETTINGS, weights=watched)[0]))  # noqa: B023
        )
    parts = sum(f.length for f in trained(kept[0])) * 4
    largest = max(p.ds_numel for p in strategy.unwrap(kept[0]).parameters()) * 4
    return {"cutting": cutting, "preparing": min(preparing), "parts": parts, "largest": largest, "read": watched.most * 4}


SMALL = 100_000
"""Bytes of indices, flags and messages."""


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_no_rank_holds_the_whole_model_at_any_moment(tmp_path: Path, world_size: int) -> None:
    """While it is sharded: the parts so far and one parameter. Then DeepSpeed puts them in one piece and makes room for gradients."""
    source = tiny_causal_lm(seed=2, layers=8, hidden=128, vocab_size=67)
    source.save_pretrained(tmp_path)
    whole = sum(p.numel() for p in source.parameters()) * 4
    for rank in run_spmd(peaks, world_size, tmp_path):
        assert rank["cutting"] <= rank["parts"] + rank["largest"] + SMALL, rank
        # The parameters' parts, the masters, room for their gradients, and a copy while one becomes the other.
        assert rank["preparing"] <= 4 * rank["parts"] + 2 * rank["largest"] + SMALL, rank
        assert rank["read"] <= rank["largest"]
        if world_size == 4:
            assert rank["cutting"] < whole / 2, rank
