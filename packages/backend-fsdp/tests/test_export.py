"""Weights leave whole, bit by bit, in bounded buckets and with one collective each."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy, shard_export
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS

VOCABULARY = 61  # divisible by no world size here: padding is cut off again
BOUND = 30_000


def collectives(strategy: StrategyBase, model: torch.nn.Module, max_bytes: int) -> tuple[int, int]:
    """(buckets, collectives of all kinds) of one export."""
    with CommDebugMode() as seen:
        num_buckets = len(list(strategy._export_weights(model, None, max_bytes)))
    return num_buckets, seen.get_total_counts()


def gathered_bytes(strategy: StrategyBase, model: torch.nn.Module, dtype: torch.dtype | None) -> int:
    real, seen = shard_export._all_gather, []

    def counting(output: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(output.numel() * output.element_size())
        real(output, *args, **kwargs)

    with mock.patch.object(shard_export, "_all_gather", counting):
        list(strategy.export_weights(model, dtype=dtype))
    return sum(seen)


def measure() -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True}))
    source = tiny_causal_lm(vocab_size=VOCABULARY)
    expected = {name: p.detach().clone() for name, p in source.named_parameters()}
    model, _ = strategy.prepare_trainable(source, optimizer=SETTINGS)
    out: dict[str, Any] = {}
    for dtype in (None, torch.bfloat16):
        buckets = [[(w.names, w.tensor.clone()) for w in bucket] for bucket in strategy._export_weights(model, dtype, BOUND)]
        flat = [weight for bucket in buckets for weight in bucket]
        out[str(dtype)] = {
            "names": [names for names, _ in flat],
            "equal": all(torch.equal(tensor, expected[names[0]].to(dtype or torch.float32)) for names, tensor in flat),
            "dtypes": {tensor.dtype for _, tensor in flat},
            "sizes": [[tensor.numel() * tensor.element_size() for _, tensor in bucket] for bucket in buckets],
        }
    out["expected_names"] = [(name,) for name in expected]
    out["collectives"] = collectives(strategy, model, BOUND)
    out["one bucket"] = collectives(strategy, model, 2**30)
    out["bytes"] = gathered_bytes(strategy, model, None), gathered_bytes(strategy, model, torch.bfloat16)
    deep, _ = strategy.prepare_trainable(tiny_causal_lm(layers=5), optimizer=SETTINGS)
    out["one bucket, deep"] = collectives(strategy, deep, 2**30)
    tied, _ = strategy.prepare_trainable(tiny_causal_lm(tie=True), optimizer=SETTINGS)
    out["tied"] = [w.names for bucket in strategy.export_weights(tied) for w in bucket]
    frozen = strategy.prepare_model(tiny_causal_lm(vocab_size=VOCABULARY), shard_size=max(1, strategy.world.world_size // 2))
    out["frozen"] = all(torch.equal(w.tensor, expected[w.names[0]]) for bucket in strategy.export_weights(frozen) for w in bucket)
    out["again"] = all(torch.equal(w.tensor, expected[w.names[0]]) for bucket in strategy.export_weights(model) for w in bucket)
    return out


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_spmd(measure, request.param)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_parameter_once_bitwise_in_order_and_cast(ranks: list[dict[str, Any]], dtype: torch.dtype | None) -> None:
    for rank in ranks:
        found = rank[str(dtype)]
        assert found["names"] == rank["expected_names"] and len(found["names"]) > 20
        assert found["equal"]
        assert found["dtypes"] == {dtype or torch.float32}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_buckets_keep_the_bound_unless_one_tensor_is_larger(ranks: list[dict[str, Any]], dtype: torch.dtype | None) -> None:
    sizes = ranks[0][str(dtype)]["sizes"]
    assert len(sizes) > 2
    assert all(sum(bucket) <= BOUND or len(bucket) == 1 for bucket in sizes)
    assert any(len(bucket) > 1 for bucket in sizes)
    assert all(sum(a) + b[0] > BOUND for a, b in zip(sizes, sizes[1:], strict=False))  # no bucket was closed early


def test_one_collective_for_a_bucket_however_many_parameters(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        buckets, seen = rank["collectives"]
        assert seen == buckets > 2
        assert rank["one bucket"] == rank["one bucket, deep"] == (1, 1)


def test_the_cast_comes_before_the_gather(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        whole, half = rank["bytes"]
        assert half == pytest.approx(whole / 2, rel=0.01) and half > 100_000


def test_tied_weights_leave_once_with_all_their_names(ranks: list[dict[str, Any]]) -> None:
    names = ranks[0]["tied"]
    assert names[0] == ("model.embed_tokens.weight", "lm_head.weight")
    assert all(len(others) == 1 for others in names[1:])


def test_frozen_groups_and_a_second_export_are_whole_too(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["frozen"] and rank["again"] for rank in ranks)
