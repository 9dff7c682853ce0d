"""What an engine is built from, and what a rank says is set and has no effect on its device."""

from dataclasses import replace

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.plugins.specs import Capability
from lightrft.rollout.setup import _engine_setup, make_controller
from lightrft.testing.fake_strategy import FAKE_ENGINE, fake_registry

SPEC = replace(
    FAKE_ENGINE, name="gpu", capabilities=FAKE_ENGINE.capabilities | {Capability.MEM_UTIL}, cuda_only=frozenset({Capability.MEM_UTIL})
)


@pytest.mark.parametrize("settings", [{}, {"engine_mem_util": 0.5}])
def test_a_fraction_of_the_gpus_memory_is_noted_on_a_cpu(settings: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    make_controller(
        make_config({"strategy": "fake", "engine_type": "gpu", **settings}), registry=fake_registry(SPEC), world=world, model_path="m"
    ).shutdown()
    assert ("note: engine_mem_util=0.5 has no effect" in capsys.readouterr().out) is bool(settings)


@pytest.mark.parametrize(("size", "seeds"), [(1, [7, 8, 9, 10]), (2, [7, 7, 8, 8]), (4, [7, 7, 7, 7])])
def test_engines_of_other_groups_have_other_seeds(size: int, seeds: list[int]) -> None:
    """An engine that draws from one generator of its own would draw the same noise on every group of ranks."""
    found = []
    for rank in range(4):
        world = World(rank=rank, world_size=4, local_rank=rank, device=torch.device("cpu"), group=None)
        first = rank // size * size
        group = Axis(ranks=tuple(range(first, first + size)), rank=rank - first, group=None)
        found.append(_engine_setup(make_config({"seed": 7}), world=world, group=group, model_path="m").seed)
    assert found == seeds
