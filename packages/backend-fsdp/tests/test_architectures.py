"""Any architecture that transformers knows is sharded block by block, in groups of any size, without a change of its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.architectures import IMAGE_TEXT, KINDS, image_inputs, make_model, text_inputs
from lightrft.testing.tiny import tiny_causal_lm

IDS = text_inputs()["input_ids"]


def inputs(kind: str) -> list[dict[str, torch.Tensor]]:
    return [text_inputs(), *([image_inputs()] if kind in IMAGE_TEXT else [])]


def frozen() -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True}))
    out: dict[str, Any] = {}
    for kind in KINDS:
        with torch.no_grad():
            expected = [make_model(kind)(**given).logits for given in inputs(kind)]
            for size in (1, 2):
                model = strategy.prepare_model(make_model(kind), shard_size=size)
                found = [model(**given).logits for given in inputs(kind)]
                pairs = zip(found, expected, strict=True)
                out[f"{kind} {size}"] = max(float((a - b).abs().max()) for a, b in pairs)
        out[kind] = sorted(type(m).__name__.removeprefix("FSDP") for m in model.modules() if isinstance(m, FSDPModule))
    return out


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_spmd(frozen, 2, timeout_s=200)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_whole_model_and_every_block_is_cut(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        assert rank[f"{kind} 1"] <= 1e-6 and rank[f"{kind} 2"] <= 1e-6
        blocks = [name for name in rank[kind] if name.endswith(("Layer", "Block"))]
        assert len(blocks) == (4 if kind in IMAGE_TEXT else 2), rank[kind]
        assert len(rank[kind]) == len(blocks) + 1, "and the root"


def several() -> list[bool]:
    strategy = get_strategy(make_config({"fsdp": True}))
    models = [tiny_causal_lm(seed=seed) for seed in range(3)]
    with torch.no_grad():
        expected = [model.eval()(input_ids=IDS).logits for model in models]
        prepared = [strategy.prepare_model(m, shard_size=n) for m, n in zip(models, (1, 2, 4), strict=True)]
        return [torch.equal(m(input_ids=IDS).logits, logits) for m, logits in zip(prepared, expected, strict=True)]


def test_models_each_shared_by_its_own_number_of_ranks() -> None:
    assert run_spmd(several, 4) == [[True] * 3] * 4
