"""A sync that went wrong is seen, and named. Faults planted into the reference engine; shapes before, checksums after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.errors import EngineStateError, WeightSyncError
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.types import EngineStatus
from lightrft.weights.buckets import Weight, WeightBucket, tied_names
from lightrft.weights.checksum import WeightChecksum, tensor_checksum
from lightrft.weights.experts import checksums_of
from lightrft.weights.manifest import expected_shapes
from lightrft.weights.verify import SentChecksums, over_group, shape_problems

Q, K, V = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv")
DOWN = "model.layers.0.mlp.down_proj.weight"


class FusedEngine(HFEngine):
    """Shows q, k and v of a layer as the one tensor that other engines fuse them into."""

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        checksums = dict(super().weight_checksums())
        parts = [checksums.pop((name,)) for name in (Q, K, V)]
        return checksums | {(Q, K, V): parts[0] + parts[1] + parts[2]}


class Faulty(FusedEngine):
    """Spoils what it is sent before it loads it, with the version as if nothing had happened."""

    spoil: Callable[[list[Weight], dict[str, torch.Tensor]], list[Weight]]

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        old = {name: p.clone() for name, p in self.model.named_parameters()}
        sent = [Weight(w.names, w.tensor.clone()) for bucket in buckets for w in bucket]
        super().update_weights([self.spoil(sent, old)], version=version)


def kept(*names: str) -> Callable[[list[Weight], dict[str, torch.Tensor]], list[Weight]]:
    """These stay as they were."""
    return lambda sent, old: [Weight(w.names, old[w.names[0]]) if w.names[0] in names else w for w in sent]


def swapped(sent: list[Weight], old: dict[str, torch.Tensor]) -> list[Weight]:
    one, other = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    values = {w.names[0]: w.tensor for w in sent}
    values[one], values[other] = values[other], values[one]
    return [Weight(w.names, values[w.names[0]]) for w in sent]


def second_bucket_lost(sent: list[Weight], old: dict[str, torch.Tensor]) -> list[Weight]:
    first = next(i for i, w in enumerate(sent) if w.names[0] == DOWN)
    return [Weight(w.names, old[w.names[0]]) if i >= first else w for i, w in enumerate(sent)]


def cast(sent: list[Weight], old: dict[str, torch.Tensor]) -> list[Weight]:
    return [Weight(w.names, w.tensor.bfloat16().float()) for w in sent]


def stale(sent: list[Weight], old: dict[str, torch.Tensor]) -> list[Weight]:
    return [Weight(w.names, old[w.names[0]]) for w in sent]


class UntiedHead(HFEngine):
    """Keeps a copy of its own for the output layer of a tied model, and forgets it."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self.head = self.model.lm_head.weight.clone()

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        checksums = {names[:1]: value for names, value in super().weight_checksums().items()}
        return checksums | {("lm_head.weight",): WeightChecksum(*tensor_checksum(self.head))}


def controller(folder: Path, engine: type[HFEngine] = HFEngine, *, tie: bool = False, **changes: Any) -> RolloutController:
    if not folder.exists():
        tiny_causal_lm(seed=1, tie=tie).save_pretrained(folder)
    setup = EngineSetup(
        model_path=str(folder), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=64, max_batch_size=4,
        mem_util=0.85, trust_remote_code=False, rank=0, group_size=1, group=None,
    )  # fmt: skip
    values: dict[str, Any] = dict(
        spec=EngineSpec(name="planted", target="a:b", capabilities=HF_CAPABILITIES),
        world=World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None),
        group=Axis(ranks=(0,), rank=0, group=None),
        dtype=torch.float32,
        sleep_level=1,
        seed=3,
        tokenize=lambda text: [3],
    )
    return RolloutController(lambda: engine(setup), **values | changes)


def weights(seed: int = 2, *, tie: bool = False) -> list[Weight]:
    model = tiny_causal_lm(seed=seed, tie=tie)
    names = tied_names(model)
    return [Weight(names[name], p.detach()) for name, p in model.named_parameters()]


def shapes_of(sent: list[Weight]) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {w.names: tuple(w.tensor.shape) for w in sent}


@pytest.mark.parametrize("engine", [HFEngine, FusedEngine])
@pytest.mark.parametrize("tie", [False, True])
def test_a_good_sync_is_proved_in_full(tmp_path: Path, engine: type[HFEngine], tie: bool) -> None:
    unit = controller(tmp_path / "model", engine, tie=tie)
    for version, seed in ((1, 2), (2, 3)):
        sent = weights(seed, tie=tie)
        unit.update_weights([sent[:5], sent[5:]], shapes=shapes_of(sent))
        assert (unit.version, unit.unverified) == (version, [])
        assert unit.differing_weights([sent]) == []
    assert unit.differing_weights([weights(4, tie=tie)])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (kept(V), f"differs of {Q} \\+ {K} \\+ {V};"),
        (kept(DOWN), f"differs of {DOWN};"),
        (second_bucket_lost, f"differs of {DOWN}, "),
        (swapped, "differs of model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight;"),
        (cast, "differs of model.embed_tokens.weight, .* in all"),
        (stale, "differs of model.embed_tokens.weight, .* in all"),
    ],
)
def test_a_planted_fault_is_named_and_ends_the_engine(tmp_path: Path, spoil: Any, named: str) -> None:
    fault = type("Planted", (Faulty,), {"spoil": staticmethod(spoil)})
    unit = controller(tmp_path / "model", fault)
    with pytest.raises(WeightSyncError, match=f"'planted' does not hold the actor after sync 1: the checksum {named}"):
        unit.update_weights([weights()])
    assert (unit.version, unit.status) == (0, EngineStatus.UNUSABLE)
    with pytest.raises(EngineStateError):
        unit.wake_up()


def test_a_forgotten_tied_output_layer_is_named(tmp_path: Path) -> None:
    unit = controller(tmp_path / "model", UntiedHead, tie=True)
    with pytest.raises(WeightSyncError, match="differs of lm_head.weight;"):
        unit.update_weights([weights(tie=True)])


def test_without_the_capability_or_the_setting_nothing_is_summed(tmp_path: Path) -> None:
    fault = type("Planted", (Faulty,), {"spoil": staticmethod(stale)})
    off = controller(tmp_path / "model", fault, verify_checksums=False)
    off.update_weights([weights()])
    assert off.version == 1
    assert off.differing_weights([weights()]), "it can still be asked"
    spec = EngineSpec(name="planted", target="a:b", capabilities=HF_CAPABILITIES - {Capability.WEIGHT_CHECKSUMS})
    mute = controller(tmp_path / "model", fault, spec=spec)
    mute.update_weights([weights()])
    assert mute.differing_weights([weights()]) is None


def test_what_the_engine_gives_no_checksum_for_is_listed(tmp_path: Path) -> None:
    class Secretive(HFEngine):
        def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
            return {names: value for names, value in super().weight_checksums().items() if names != (DOWN,)}

    unit = controller(tmp_path / "model", Secretive)
    unit.update_weights([weights()])
    assert unit.unverified == [DOWN]


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_what_does_not_fit_is_refused_before_the_first_bucket(tmp_path: Path, fault: str) -> None:
    unit = controller(tmp_path / "model")
    unit.maybe_sleep()
    sent = weights()
    at = next(i for i, w in enumerate(sent) if w.names == (DOWN,))
    if fault == "missing":
        words = f"the actor lacks: {DOWN}"
        del sent[at]
    elif fault == "unknown":
        words = "the engine does not know: model.surplus"
        sent.append(Weight(("model.surplus",), torch.zeros(2)))
    else:
        words = rf"of another shape: {DOWN} \(the engine has \(64, \d+\), the actor \(3,\)\)"
        sent[at] = Weight((DOWN,), torch.zeros(3))
    asked = []

    def stream() -> Iterator[WeightBucket]:
        asked.append(1)
        yield sent

    before = unit.differing_weights([weights(1)])
    unit.maybe_sleep()
    with pytest.raises(WeightSyncError, match=f"the old ones stay: {words}"):
        unit.update_weights(stream(), shapes=shapes_of(sent))
    assert (asked, unit.version, unit.status) == ([], 0, EngineStatus.ASLEEP)
    assert before == unit.differing_weights([weights(1)]) == []


def test_a_folder_s_shapes_are_read_from_one_file_or_many(tmp_path: Path) -> None:
    model = tiny_causal_lm(seed=1, tie=True)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert expected_shapes(str(tmp_path / "one")) == expected_shapes(str(tmp_path / "many")) == expected
    assert expected_shapes("owner/name") == expected_shapes(str(tmp_path)) == {}


def test_a_tied_name_may_be_absent_on_either_side() -> None:
    sent = {("embed", "head"): (4, 2), ("norm",): (2,)}
    assert shape_problems(sent, {"embed": (4, 2), "norm": (2,)}) == []
    assert shape_problems(sent, {"head": (4, 2), "norm": (2,)}) == []
    assert shape_problems(sent, {"embed": (4, 2), "head": (4, 2), "norm": (2,)}) == []
    assert shape_problems(sent, {"embed": (4, 2), "head": (2, 4), "norm": (2,)})


def test_checksums_of_a_group_are_added_where_sharded_and_must_agree_elsewhere() -> None:
    part, whole = WeightChecksum(1, 2, sharded=True), WeightChecksum(5, 7)
    found = over_group([{("a",): part, ("b",): whole}, {("a",): part, ("b",): whole}])
    assert found == {("a",): WeightChecksum(2, 4, sharded=True), ("b",): whole}
    assert over_group([{("b",): whole}, {("b",): WeightChecksum(5, 8)}]) == {("b",): WeightChecksum(5, 8)}


def test_a_name_that_was_never_sent_is_a_difference() -> None:
    checksums = SentChecksums()
    list(checksums.watch([[Weight(("a",), torch.ones(1))]]))
    assert checksums.differing({("a", "other"): WeightChecksum(*tensor_checksum(torch.ones(1)))}) == ["a + other"]


def test_experts_of_one_tensor_are_compared_each_by_itself() -> None:
    name = "layers.0.mlp.experts.down_proj"
    stack = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    checksums = SentChecksums()
    list(checksums.watch([[Weight(("before",), torch.ones(1)), Weight((name,), stack), Weight(("after",), torch.ones(2))]]))

    def held(stack: torch.Tensor) -> dict[tuple[str, ...], WeightChecksum]:
        return checksums_of({("before",): torch.ones(1), (name,): stack, ("after",): torch.ones(2)})

    assert list(held(stack)) == [("before",), (f"{name}[0]",), (f"{name}[1]",), (f"{name}[2]",), ("after",)]
    assert checksums.differing(held(stack)) == [] and checksums.unverified(held(stack)) == []
    assert checksums.differing(held(stack[[0, 2, 1]])) == [f"{name}[1]", f"{name}[2]"], "two exchanged"
    assert checksums.differing(held(torch.cat([stack[:2], stack[2:] + 1]))) == [f"{name}[2]"], "one that is older"
    some = {names: value for names, value in held(stack).items() if names != (f"{name}[1]",)}
    assert checksums.differing(some) == [] and checksums.unverified(some) == [name]
    whole = {("before",): WeightChecksum(*tensor_checksum(torch.ones(1))), (name,): WeightChecksum(*tensor_checksum(stack))}
    assert checksums.differing(whole) == [] and checksums.unverified(whole) == ["after"], "an engine may give the checksums of all as well"
    assert checksums.differing(whole | {(name,): WeightChecksum(*tensor_checksum(stack + 1))}) == [name]
