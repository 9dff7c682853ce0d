"""A model that was sharded while empty is the one that was loaded whole; no rank reads more than it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.models.load import load_causal_lm, open_causal_lm
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train
from lightrft.weights.safetensors_reader import WeightFiles


class Watched(WeightFiles):
    """Counts the elements that this rank reads."""

    elements = 0

    def rows(self, names: Any, first: int, last: int) -> torch.Tensor:
        found = super().rows(names, first, last)
        self.elements += found.numel()
        return found


def built(folder: Path) -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True}))
    opened = open_causal_lm(folder, dtype=torch.float32)
    watched = Watched(folder)
    model, optimizer = strategy.prepare_trainable(opened.model, optimizer=SETTINGS, weights=watched)
    whole, whole_optimizer = strategy.prepare_trainable(load_causal_lm(folder, dtype=torch.float32), optimizer=SETTINGS)
    local = sum(p.to_local().numel() for p in model.parameters())
    same_start = largest_difference(full_parameters(strategy, model), full_parameters(strategy, whole))
    train(strategy, model, optimizer, last=2)
    train(strategy, whole, whole_optimizer, last=2)
    after = largest_difference(full_parameters(strategy, model), full_parameters(strategy, whole))
    half = strategy.world.world_size // 2 or 1
    frozen = strategy.prepare_model(open_causal_lm(folder, dtype=torch.float32).model, shard_size=half, weights=WeightFiles(folder))
    other = strategy.prepare_model(load_causal_lm(folder, dtype=torch.float32))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    logits = float((frozen(ids).logits - other(ids).logits).abs().max())
    return {"read": watched.elements, "local": local, "start": same_start, "after": after, "logits": logits}


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_reads_its_shards_and_trains_the_same_model(tmp_path: Path, world_size: int, tie: bool) -> None:
    model = tiny_causal_lm(seed=2, tie=tie, vocab_size=67)  # 67 rows: the last rank of four has fewer
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    total = sum(p.numel() for p in model.parameters())
    ranks = run_spmd(built, world_size, tmp_path)
    for rank in ranks:
        assert rank["start"] == rank["after"] == rank["logits"] == 0.0
        assert rank["read"] == rank["local"]
    assert sum(rank["read"] for rank in ranks) == total
