"""Weights leave whole, bit by bit and in bounded buckets, at every ZeRO stage; frozen models are sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm, tiny_tokenizer
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

STAGES = (0, 1, 2, 3)
VOCABULARY = 61  # divisible by no world size here: padding is cut off again
BOUND = 30_000

Tensors = dict[str, torch.Tensor]


def exported(strategy: StrategyBase, dtype: torch.dtype | None) -> dict[str, Any]:
    source = tiny_causal_lm(vocab_size=VOCABULARY)
    expected = {name: p.detach().clone() for name, p in source.named_parameters()}
    model, _ = strategy.prepare_trainable(source, optimizer=SETTINGS)
    buckets = [[(w.names, w.tensor.clone()) for w in bucket] for bucket in strategy._export_weights(model, dtype, BOUND)]
    flat = [weight for bucket in buckets for weight in bucket]
    kept = [weight.tensor for bucket in strategy._export_weights(model, dtype, BOUND) for weight in bucket]  # beyond its bucket
    return {
        "names": [names for names, _ in flat] == [(name,) for name in expected],
        "equal": all(torch.equal(tensor, expected[names[0]].to(dtype or torch.float32)) for names, tensor in flat),
        "kept": all(torch.equal(tensor, late) for (_, tensor), late in zip(flat, kept, strict=True)),
        "dtypes": {tensor.dtype for _, tensor in flat},
        "sizes": [[tensor.numel() * tensor.element_size() for _, tensor in bucket] for bucket in buckets],
    }


def held_fraction(model: torch.nn.Module) -> float:
    """What this rank holds of a trained model's parameters between steps."""
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    return sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in model.parameters()) / whole


def measure() -> dict[int, dict[str, Any]]:
    out: dict[int, dict[str, Any]] = {}
    for stage in STAGES:
        strategy = get_strategy(make_config({"zero_stage": stage}))
        tied, optimizer = strategy.prepare_trainable(tiny_causal_lm(tie=True), optimizer=SETTINGS)
        train(strategy, tied, optimizer, last=1)
        out[stage] = {
            "none": exported(strategy, None),
            "bfloat16": exported(strategy, torch.bfloat16),
            "tied": [w.names for bucket in strategy.export_weights(tied) for w in bucket],
            "fraction": held_fraction(strategy.unwrap(tied)),
        }
    return out


@pytest.fixture(scope="module", params=[1, 2])
def ranks(request: pytest.FixtureRequest) -> list[dict[int, dict[str, Any]]]:
    return run_spmd(measure, request.param, timeout_s=300)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("dtype", "expected"), [("none", torch.float32), ("bfloat16", torch.bfloat16)])
def test_every_parameter_once_bitwise_in_order_and_cast(
    ranks: list[dict[int, dict[str, Any]]], stage: int, dtype: str, expected: torch.dtype
) -> None:
    for rank in ranks:
        found = rank[stage][dtype]
        assert found["names"] and found["equal"] and found["kept"]
        assert found["dtypes"] == {expected}
        sizes = found["sizes"]
        assert len(sizes) > 2 and any(len(bucket) > 1 for bucket in sizes)
        assert all(sum(bucket) <= BOUND or len(bucket) == 1 for bucket in sizes)
        assert all(sum(a) + b[0] > BOUND for a, b in zip(sizes, sizes[1:], strict=False))  # no bucket was closed early


@pytest.mark.parametrize("stage", STAGES)
def test_tied_weights_leave_once_with_all_their_names(ranks: list[dict[int, dict[str, Any]]], stage: int) -> None:
    for rank in ranks:
        names = rank[stage]["tied"]
        assert names[0] == ("model.embed_tokens.weight", "lm_head.weight")
        assert all(len(others) == 1 for others in names[1:])


def test_stage_3_alone_shards_the_parameters(ranks: list[dict[int, dict[str, Any]]]) -> None:
    for rank in ranks:
        assert [rank[stage]["fraction"] for stage in STAGES[:3]] == [1.0, 1.0, 1.0]
        assert rank[3]["fraction"] == pytest.approx(1 / len(ranks), rel=0.01)


def saved_models(folder: str) -> dict[str, Tensors]:
    strategy = get_strategy(make_config({"zero_stage": 3}))
    out = {}
    for tie in (False, True):
        model, optimizer = strategy.prepare_trainable(tiny_causal_lm(tie=tie), optimizer=SETTINGS)
        train(strategy, model, optimizer, last=1)
        strategy.save_model(model, Path(folder) / str(tie), tokenizer=tiny_tokenizer())
        out[str(tie)] = full_parameters(strategy, model)
    return out


def test_the_model_folder_loads_in_transformers_and_is_equal(tmp_path: Path) -> None:
    ranks = run_spmd(saved_models, 2, str(tmp_path))
    for tie in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(tie))
        assert type(model).__name__ == "Qwen3ForCausalLM"
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
        assert largest_difference(dict(model.named_parameters()), ranks[0][str(tie)]) == 0


def frozen() -> dict[int | None, dict[str, Any]]:
    """A frozen model in groups of each size, beside a trained one at stage 3."""
    strategy = get_strategy(make_config({"zero_stage": 3}))
    trained, optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=3), optimizer=SETTINGS)
    rank = strategy.world.rank
    ids = torch.randint(0, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(rank))
    plain = tiny_causal_lm(vocab_size=VOCABULARY).eval()
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
    out: dict[int | None, dict[str, Any]] = {}
    for shard_size in (1, 2, 4, None):
        model = strategy.prepare_model(tiny_causal_lm(vocab_size=VOCABULARY), shard_size=shard_size)
        with torch.no_grad():
            forwards = 1 + 2 * (rank // (shard_size or 4))  # groups do not wait for each other
            logits = [model(input_ids=ids).logits for _ in range(forwards)]
        held = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
        train(strategy, trained, optimizer, last=1)
        out[shard_size] = {
            "equal": all(torch.equal(found, expected) for found in logits),
            "exported": largest_difference(full_parameters(strategy, model), dict(plain.named_parameters())),
            "fraction": held / sum(p.numel() for p in plain.parameters()),
        }
    return out


def test_frozen_models_are_shared_in_groups_and_give_the_same_outputs() -> None:
    for rank in run_spmd(frozen, 4, timeout_s=300):
        assert {size: rank[size]["fraction"] for size in rank} == pytest.approx({1: 1.0, 2: 0.5, 4: 0.25, None: 0.25}, rel=0.05)
        assert all(found["equal"] and found["exported"] == 0 for found in rank.values())
