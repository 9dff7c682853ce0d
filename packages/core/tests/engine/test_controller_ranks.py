"""Ragged prompts on four ranks come back in order, through engine groups of 1, 2 and 4, exactly as on one rank."""

import pytest
import torch

from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.errors import EngineError, PeerError, WeightSyncError
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.fake_engine import FakeEngine
from lightrft.testing.spmd import run_spmd
from lightrft.types import EngineStatus, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight

PROMPTS = [[[3], [4, 5], [6, 7, 8]], [], [[9], [9]], [[10, 11]]]
"""Of each of four ranks; the second has none."""
SAMPLING = SamplingParams(n=3, max_new_tokens=6)


class DriftingEngine(FakeEngine):
    """Samples otherwise on the second rank of its group."""

    def generate(self, requests, sampling):  # type: ignore[no-untyped-def]  # as in the base class
        self._weights = float(self.setup.rank)
        return super().generate(requests, sampling)


class RefusingEngine(FakeEngine):
    """Reads one bucket and then refuses, where it serves the world's last ranks."""

    def update_weights(self, buckets, *, version):  # type: ignore[no-untyped-def]  # as in the base class
        if torch.distributed.get_rank() >= 2:
            next(iter(buckets))
            raise WeightSyncError("refused here")
        super().update_weights(buckets, version=version)


def make(world: World, size: int, topology: str, cls: type[FakeEngine] = FakeEngine) -> RolloutController:
    group = neighbours(world, size=size)
    setup = EngineSetup(
        model_path="", dtype=torch.float32, device=world.device, seed=0, max_model_len=32, max_batch_size=4, mem_util=0.85,
        trust_remote_code=False, rank=group.rank, group_size=size, group=group.group,
    )  # fmt: skip
    spec = EngineSpec(
        name="fake",
        target="a:b",
        capabilities=frozenset({Capability.SLEEP_1, Capability.TENSOR_PARALLEL}),
        topology=topology,  # type: ignore[arg-type]
    )

    def engine() -> InferenceEngine:
        return cls(setup)

    return RolloutController(
        engine, spec=spec, world=world, group=group, dtype=torch.float32, sleep_level=1, seed=3, tokenize=lambda text: [1]
    )


def generate(unit: RolloutController, prompts: list[list[int]]) -> list[RequestOutput]:
    early: dict[int, RequestOutput] = {}
    outputs = unit.gather_and_generate(
        SAMPLING,
        prompt_token_ids=prompts,
        prompts=None,
        images=None,
        images_num=None,
        sleep_engine=True,
        logprobs=False,
        on_finished=lambda index, output: early.update({index: output}),
    )
    assert early == (dict(enumerate(outputs)) if unit.engine is not None else {}), "this rank's own, where the engine is"
    return outputs


def on_four_ranks() -> dict[str, object]:
    world = World.join(need_group=True)
    found: dict[str, object] = {}
    for topology in ("single_leader", "spmd"):
        for size in (1, 2, 4):
            unit = make(world, size, topology)
            assert (unit.engine is not None) == (topology == "spmd" or world.rank % size == 0)
            assert unit.group.ranks == tuple(range(world.rank // size * size, world.rank // size * size + size))
            found[f"{topology} {size}"] = generate(unit, PROMPTS[world.rank])
            assert unit.status is EngineStatus.ASLEEP
    for name, expected in (("drift", EngineError), ("refuse", WeightSyncError)):
        found[name] = _failing(world, name, expected)
    return found


def _failing(world: World, name: str, expected: type[Exception]) -> str:
    """The error that this rank saw, and proof that the ranks are still in step after it."""
    unit = make(world, 2, "spmd", DriftingEngine if name == "drift" else RefusingEngine)
    drained = []

    def stream():  # type: ignore[no-untyped-def]  # a collective iterator: every rank must read all of it
        for index in range(4):
            total = torch.ones(1)
            torch.distributed.all_reduce(total)
            drained.append(index)
            yield [Weight((f"w{index}",), total)]

    try:
        if name == "drift":
            generate(unit, PROMPTS[world.rank])
        else:
            unit.update_weights(stream())
    except (expected, PeerError) as error:
        if name == "refuse":
            assert drained == [0, 1, 2, 3]
            assert unit.version == 0
        check = torch.ones(1)
        torch.distributed.all_reduce(check)
        assert check.item() == 4
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, object]]:
    return run_spmd(on_four_ranks, 4, timeout_s=120)


@pytest.mark.parametrize("topology", ["single_leader", "spmd"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_group_size_gives_what_one_rank_gives(four_ranks: list[dict[str, object]], topology: str, size: int) -> None:
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    expected = generate(make(world, 1, topology), [prompt for prompts in PROMPTS for prompt in prompts])
    got: list[RequestOutput] = []
    for prompts, found in zip(PROMPTS, four_ranks, strict=True):
        part = found[f"{topology} {size}"]
        assert isinstance(part, list) and len(part) == len(prompts)
        got += part
    assert got == expected


def test_an_engine_group_that_drifts_apart_is_an_error_on_all_ranks(four_ranks: list[dict[str, object]]) -> None:
    for found in four_ranks:
        assert "of the engine group (" in str(found["drift"]) and "sampled other tokens" in str(found["drift"])


def test_an_engine_that_refuses_on_some_ranks_raises_on_all_and_hangs_nobody(four_ranks: list[dict[str, object]]) -> None:
    assert [str(found["refuse"]).split(":")[0] for found in four_ranks] == ["PeerError", "PeerError", "WeightSyncError", "WeightSyncError"]
    assert "failed on rank 2" in str(four_ranks[0]["refuse"]) and "refused here" in str(four_ranks[0]["refuse"])
