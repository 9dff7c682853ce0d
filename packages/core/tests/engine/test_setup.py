"""A rank says what is set and has no effect on its device."""

from dataclasses import replace

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.distributed.world import World
from lightrft.plugins.specs import Capability
from lightrft.rollout.setup import make_controller
from lightrft.testing.fake_strategy import FAKE_ENGINE, fake_registry

SPEC = replace(
    FAKE_ENGINE, name="gpu", capabilities=FAKE_ENGINE.capabilities | {Capability.MEM_UTIL}, cuda_only=frozenset({Capability.MEM_UTIL})
)


@pytest.mark.parametrize("settings", [{}, {"engine_mem_util": 0.5}])
def test_a_share_of_the_gpus_memory_is_noted_on_a_cpu(settings: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    make_controller(
        make_config({"strategy": "fake", "engine_type": "gpu", **settings}), registry=fake_registry(SPEC), world=world, model_path="m"
    ).shutdown()
    assert ("note: engine_mem_util=0.5 has no effect" in capsys.readouterr().out) is bool(settings)
