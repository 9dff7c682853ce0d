"""An engine that is given adapters alone: what leaves, what is compared, and what is refused. On the reference engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.config.lora_sync import lora_sync_problems, sends_adapters
from lightrft.engine.hf import HFEngine
from lightrft.errors import ConfigError, WeightSyncError
from lightrft.models.load import load_causal_lm
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import EngineSpec
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora, tiny_tokenizer
from lightrft.weights.adapters import LowRank, adapters_alone, staged_adapters
from lightrft.weights.buckets import Weight, WeightBucket
from lightrft.weights.lora_merge import Adapter

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"
SIZES = {"micro_rollout_batch_size": 2, "prompt_max_len": 64, "generate_max_len": 64}


def folder_of(path: Path) -> Path:
    tiny_causal_lm(seed=2).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


class Spoilt(HFEngine):
    """Loads what `spoil` leaves of the adapters that it is sent."""

    spoil: Callable[[list[Weight]], list[Weight]]

    def update_adapters(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        sent = [Weight(w.names, w.tensor.clone()) for bucket in buckets for w in bucket]
        super().update_adapters([type(self).spoil(sent)], version=version)


def started(folder: Path, *, engine: type[HFEngine] = HFEngine, base: Path | None = None, **changes: Any) -> tuple[Any, Any]:
    """A strategy with its engine, and an actor whose adapters are worth something."""
    settings = {"strategy": "single", "engine_type": "hf", "model_name_or_path": str(folder), "lora_rank": 4, "lora_sync": "adapters"}
    config = make_config({**settings, **SIZES, **changes})
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config, model_path=str(base or folder))
    if engine is not HFEngine:
        strategy.inference_engine.__class__ = engine
    actor = tiny_lora(load_causal_lm(folder, dtype=torch.float32))
    change(actor, seed=1)
    return strategy, actor


def change(actor: Any, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_only_adapters_leave_and_the_engine_computes_with_them(tmp_path: Path) -> None:
    strategy, actor = started(folder_of(tmp_path))
    engine = strategy.inference_engine
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    adapters = sum(p.numel() for name, p in actor.named_parameters() if "lora_" in name)
    for seed in (1, 2, 3):
        change(actor, seed=seed)
        strategy.update_engine_weights(actor)
        logits = actor(input_ids=IDS).logits
        assert float((engine.model(input_ids=IDS).logits - logits).detach().abs().max()) < 1e-5
        assert strategy.synced_bytes == 4 * adapters
        assert strategy.weight_version == seed and strategy.unverified_weights == []
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters()), "the base weights stay"
    assert strategy.differing_engine_weights(actor) == []
    change(actor, seed=4)
    assert strategy.differing_engine_weights(actor)[0].endswith("lora_B.weight")


def test_merged_and_adapters_give_one_answer(tmp_path: Path) -> None:
    found = {}
    for way in ("merged", "adapters"):
        strategy, actor = started(folder_of(tmp_path), lora_sync=way)
        strategy.update_engine_weights(actor)
        found[way] = strategy.inference_engine.model(input_ids=IDS).logits
        assert float((found[way] - actor(input_ids=IDS).logits).detach().abs().max()) < 1e-5
    assert float((found["merged"] - found["adapters"]).abs().max()) < 1e-5


def test_a_model_without_adapters_is_sent_whole_and_takes_them_off(tmp_path: Path) -> None:
    strategy, actor = started(folder_of(tmp_path))
    strategy.update_engine_weights(actor)
    plain = tiny_causal_lm(seed=7)
    strategy.update_engine_weights(plain)
    assert torch.equal(strategy.inference_engine.model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    with pytest.raises(WeightSyncError, match=r"does not hold the weights that the actor's adapters are added to.*--lora_sync merged"):
        strategy.update_engine_weights(actor)


def test_adapters_sleep_and_wake_with_the_engine(tmp_path: Path) -> None:
    strategy, actor = started(folder_of(tmp_path))
    strategy.update_engine_weights(actor)
    strategy.maybe_sleep_inference_engine()
    strategy.wakeup_inference_engine()
    assert strategy.differing_engine_weights(actor) == []
    assert float((strategy.inference_engine.model(input_ids=IDS).logits - actor(input_ids=IDS).logits).detach().abs().max()) < 1e-5


def test_an_engine_of_another_base_is_told(tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_causal_lm(seed=5).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    strategy, actor = started(folder_of(tmp_path / "base"), base=other)
    with pytest.raises(WeightSyncError, match="does not hold the weights that the actor's adapters are added to"):
        strategy.update_engine_weights(actor)


def without_one(sent: list[Weight]) -> list[Weight]:
    return [w for w in sent if not w.names[0].startswith(Q)]


def without_scale(sent: list[Weight]) -> list[Weight]:
    return [Weight(w.names, w.tensor / 4 if "lora_B" in w.names[0] else w.tensor) for w in sent]


def of_another_layer(sent: list[Weight]) -> list[Weight]:
    values = {w.names[0]: w.tensor for w in sent}
    return [Weight(w.names, values[w.names[0].replace("layers.1", "layers.0")]) for w in sent]


@pytest.mark.parametrize(
    ("spoil", "named"), [(without_one, rf"{Q}\.lora_A"), (without_scale, r"lora_B"), (of_another_layer, r"layers\.1\..*lora_A")]
)
def test_adapters_that_arrive_otherwise_are_named(tmp_path: Path, spoil: Any, named: str) -> None:
    engine = type("Faulty", (Spoilt,), {"spoil": staticmethod(spoil)})
    strategy, actor = started(folder_of(tmp_path), engine=engine)
    with pytest.raises(
        WeightSyncError, match=rf"does not hold the actor after sync 1: the checksum differs of .*{named}|never came.*{named}"
    ):
        strategy.update_engine_weights(actor)


def test_a_module_that_the_engine_cannot_adapt_is_named_before_anything_moves(tmp_path: Path) -> None:
    class NoUp(HFEngine):
        def unadaptable(self, modules: Any) -> list[str]:
            return [name for name in modules if name.endswith("up_proj")]

    strategy, actor = started(folder_of(tmp_path), engine=NoUp)
    with pytest.raises(WeightSyncError, match=rf"cannot adapt {UP}.*--lora_sync merged, or leave up_proj out of lora_target_modules"):
        strategy.update_engine_weights(actor)
    assert strategy.weight_version == 0 and strategy.inference_engine_status == "awake"


def pair(rank: int = 2, *, rows: int = 3, columns: int = 5, dtype: torch.dtype = torch.float32) -> list[Weight]:
    a, b = torch.ones(rank, columns, dtype=dtype), torch.ones(rows, rank, dtype=dtype)
    return [Weight(("x.lora_A.weight",), a), Weight(("x.lora_B.weight",), b)]


def test_a_good_pair_is_staged() -> None:
    held = staged_adapters([pair()], {"x": (3, 5)}, rank=2, dtype=torch.float32, device=torch.device("cpu"))
    assert held.keys() == {"x"} and isinstance(held["x"], LowRank) and held["x"].a.shape == (2, 5) and held["x"].b.shape == (3, 2)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (pair(3), r"of another rank: x \(3, there is room for 2\)"),
        (pair(rows=4), r"of another shape: x \(here 3 x 5, sent A \(2, 5\) and B \(4, 2\)\)"),
        (pair(columns=4), "of another shape: x"),
        (pair(dtype=torch.bfloat16), "of another dtype: x"),
        (pair()[:1], r"missing: x\.lora_B\.weight"),
        (pair()[1:], r"missing: x\.lora_A\.weight"),
        ([Weight(("y.lora_A.weight",), torch.ones(2, 5))], "unknown: y"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(sent: list[Weight], told: str) -> None:
    with pytest.raises(WeightSyncError, match=f"adapters refused, the old ones stay: {told}"):
        staged_adapters([sent], {"x": (3, 5)}, rank=2, dtype=torch.float32, device=torch.device("cpu"))


def test_b_travels_with_the_scale_in_it() -> None:
    sent = [
        Weight(("base_model.model.x.base_layer.weight",), torch.ones(3, 5)),
        Weight(("base_model.model.x.lora_A.default.weight",), torch.full((2, 5), 3.0)),
        Weight(("base_model.model.x.lora_B.default.weight",), torch.full((3, 2), 0.5)),
    ]
    [bucket] = adapters_alone([sent], {"x.weight": Adapter(8.0, False)}, dtype=torch.bfloat16, max_bytes=2**20)
    assert [w.names for w in bucket] == [("x.lora_A.weight",), ("x.lora_B.weight",)]
    assert bucket[0].tensor.unique().tolist() == [3.0] and bucket[1].tensor.unique().tolist() == [4.0]  # 8 x 0.5
    assert {w.tensor.dtype for w in bucket} == {torch.bfloat16}


SPEC = EngineSpec(name="e", target="a:b", capabilities=HF_CAPABILITIES, lora_sync="adapters", max_adapter_rank=8)


@pytest.mark.parametrize(
    ("settings", "alone", "told"),
    [
        ({"lora_rank": 0}, False, ""),
        ({"lora_rank": 8}, True, ""),
        ({"lora_rank": 8, "lora_sync": "merged"}, False, ""),
        ({"lora_rank": 16}, False, ""),  # auto: the engine has no room for them
        ({"lora_rank": 8, "engine_sleep_level": 2}, False, ""),  # auto: merged weights come with each sync
        ({"lora_rank": 16, "lora_sync": "adapters"}, True, "takes adapters of a rank up to 8; lower it, or set --lora_sync merged"),
        ({"lora_rank": 8, "lora_sync": "adapters", "engine_sleep_level": 2}, True, "drops its base weights"),
    ],
)
def test_auto_takes_the_cheaper_way_that_fits_and_a_named_one_is_refused(settings: dict[str, Any], alone: bool, told: str) -> None:
    config = make_config(settings)
    assert sends_adapters(config, SPEC) is alone
    problems = list(lora_sync_problems(config, SPEC))
    assert ([told in problem for problem in problems] == [True]) if told else problems == []


def test_an_engine_without_adapters_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config = make_config({"strategy": "fake", "engine_type": "fake", "lora_rank": 4, "lora_sync": "adapters"})
    strategy = get_strategy(config, registry=fake_registry())
    with pytest.raises(ConfigError, match=r"lora_sync='adapters' needs the capability 'adapters'.*or set --lora_sync merged"):
        strategy.setup_inference_engine(config)
