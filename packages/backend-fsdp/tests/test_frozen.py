"""Groups of any size hold one frozen model together and give the outputs of the whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm


def measure() -> dict[int | None, dict[str, Any]]:
    strategy = get_strategy(make_config({"fsdp": True, "compile": "no"}))  # compiled blocks round otherwise
    rank, device = strategy.world.rank, strategy.world.device
    ids = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(rank)).to(device)
    plain = tiny_causal_lm().eval().to(device)
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
    out: dict[int | None, dict[str, Any]] = {}
    for shard_size in (1, 2, 4, None):
        model = strategy.prepare_model(tiny_causal_lm(), shard_size=shard_size)
        with torch.no_grad():
            forwards = 1 + 2 * (rank // (shard_size or 4))  # groups do not wait for each other
            logits = [model(input_ids=ids).logits for _ in range(forwards)]
        held = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
        out[shard_size] = {
            "equal": all(torch.equal(found, expected) for found in logits),
            "fraction": held / sum(p.numel() for p in plain.parameters()),
            "trains": model.training or any(p.requires_grad for p in model.parameters()),
        }
    with pytest.raises(ValueError, match="shard_size=3 does not divide the world size 4"):
        strategy.prepare_model(tiny_causal_lm(), shard_size=3)
    return out


FOUR_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four CUDA devices")]


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=FOUR_GPUS)], ids=["cpu", "cuda"])
def ranks(request: pytest.FixtureRequest) -> list[dict[int | None, dict[str, Any]]]:
    return run_spmd(measure, 4, cuda=request.param)


@pytest.mark.parametrize(("shard_size", "fraction"), [(1, 1.0), (2, 0.5), (4, 0.25), (None, 0.25)])
def test_outputs_are_equal_and_each_rank_holds_its_fraction(
    ranks: list[dict[int | None, dict[str, Any]]], shard_size: int | None, fraction: float
) -> None:
    for rank in ranks:
        found = rank[shard_size]
        assert found["equal"] and not found["trains"]
        assert found["fraction"] == pytest.approx(fraction, rel=1e-3)


def passes_at_rest() -> dict[str, Any]:
    """Whether logits are the same bits, for two ranks with different numbers of rows: 33 and 32 of the vocabulary."""
    out: dict[str, Any] = {}
    held = {"fsdp": True, "compile": "no"}
    usual, unit = get_strategy(make_config(held)), get_strategy(make_config(held | {"offload_frozen": True}))
    ids = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(unit.world.rank)).to(unit.world.device)
    for shard_size in (1, None):
        plain = usual.prepare_model(tiny_causal_lm(vocab_size=65, tie=True), shard_size=shard_size)
        model = unit.prepare_model(tiny_causal_lm(vocab_size=65, tie=True), shard_size=shard_size)
        with torch.no_grad():
            for refreshed in (False, True):
                if refreshed:  # while it rests
                    for parameter in (*plain.parameters(), *model.parameters()):
                        parameter.mul_(1.5)
                expected = plain(input_ids=ids).logits
                found = [model(input_ids=ids).logits]
                with unit.on_device(model):
                    found += [model(input_ids=ids).logits for _ in range(2)]
                out[f"{shard_size} {refreshed}"] = all(torch.equal(logits, expected) for logits in found)
        out[f"{shard_size} host"] = {p.to_local().device.type for p in model.parameters()} == {"cpu"}
    return out


def test_sharded_models_that_rest_give_the_same_bits_also_after_a_refresh() -> None:
    for rank in run_spmd(passes_at_rest, 2):
        assert len(rank) == 6 and all(rank.values()), rank
