"""A GPU's memory around an engine that wakes: what torch gives back, what is counted, what an error says. On played counters."""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.distributed.memory import GIB, PeakMemory, memory_report
from lightrft.distributed.mesh import Axis
from lightrft.distributed.world import World
from lightrft.engine.base import ALL_TAGS, EngineSetup, WakeTag
from lightrft.errors import EngineError
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout import waking
from lightrft.rollout.controller import RolloutController
from lightrft.rollout.waking import how_to_make_room, wake
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import EngineStatus

CUDA = torch.device("cuda", 0)
SETUP = EngineSetup(
    model_path="", dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=32, max_batch_size=4, mem_util=0.5,
    trust_remote_code=False, rank=0, group_size=1, group=None,
)  # fmt: skip


class Counters:
    """torch's counters of a GPU of 80 GiB: what its allocator reserved, in tensors and for later, and what others mapped beside it."""

    def __init__(self) -> None:
        self.tensors, self.cached, self.others = 0, 0, 2 * GIB
        self.most = 0
        self.done: list[str] = []

    def allocate(self, size: int) -> None:
        """Takes from the cache first, as torch does; a negative size goes back there."""
        self.tensors += size
        self.cached = max(0, self.cached - size)
        self.most = max(self.most, self.reserved())

    def reserved(self, _device: Any = None) -> int:
        return self.tensors + self.cached

    def most_reserved(self, _device: Any = None) -> int:
        return self.most

    def reset(self, _device: Any = None) -> None:
        self.most = self.reserved()

    def empty_cache(self) -> None:
        self.done.append("gives its cache back")
        self.cached = 0

    def in_use(self, _device: Any = None) -> tuple[int, int]:
        return 80 * GIB - self.reserved() - self.others, 80 * GIB


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    found = Counters()
    for name, method in {
        "empty_cache": found.empty_cache, "mem_get_info": found.in_use, "memory_reserved": found.reserved,
        "max_memory_reserved": found.most_reserved, "reset_peak_memory_stats": found.reset,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, method)
    return found


class Beside(FakeEngine):
    """Maps 40 GiB beside torch while awake, 10 of them for its weights."""

    def __init__(self, counters: Counters) -> None:
        super().__init__(SETUP)
        self.counters = counters
        self.counters.others += 40 * GIB

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self.counters.done.append(f"wakes {' and '.join(tags)}")
        needs = 40 * GIB if "kv_cache" in tags else 10 * GIB
        needs -= self.mapped()
        if self.counters.in_use()[0] < needs:
            raise RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:163")
        super().wake_up(tags)
        self.counters.others += needs

    def sleep(self, level: int) -> None:
        self.counters.others -= self.mapped()
        super().sleep(level)

    def mapped(self) -> int:
        return {EngineStatus.AWAKE: 40 * GIB, EngineStatus.WEIGHTS_ONLY: 10 * GIB}.get(self.status, 0)


def controller(
    counters: Counters, *, topology: Literal["spmd", "single_leader"] = "single_leader", ranks: tuple[int, ...] = (0,)
) -> RolloutController:
    return RolloutController(
        lambda: Beside(counters),
        spec=EngineSpec(name="fake", target="a:B", topology=topology),
        world=World(rank=0, world_size=1, local_rank=0, device=CUDA, group=None),
        group=Axis(ranks=ranks, rank=0, group=None),
        dtype=torch.float32, sleep_level=1, seed=0, tokenize=lambda text: [1],
    )  # fmt: skip


def test_torch_gives_its_cache_back_before_every_wake(counters: Counters) -> None:
    unit = controller(counters)
    unit.maybe_sleep()
    counters.allocate(60 * GIB)
    counters.tensors, counters.cached = 10 * GIB, 50 * GIB
    unit.update_weights(iter(()))
    assert counters.done == ["gives its cache back", "wakes weights"]
    counters.done.clear()
    unit.wake_up()
    assert counters.done == ["gives its cache back", "wakes weights and kv_cache"]
    unit.wake_up()
    assert len(counters.done) == 2, "an engine that is awake costs nothing"


def test_ranks_of_a_leaders_engine_have_given_back_before_it_wakes(counters: Counters) -> None:
    unit = controller(counters, ranks=(0, 1))
    unit.maybe_sleep()
    unit.wake_up()
    assert counters.done == ["gives its cache back"] * 2 + ["wakes weights and kv_cache"], "once for all ranks together, before the leader"


def test_the_peak_is_of_what_is_mapped_around_an_engine_that_sleeps(counters: Counters) -> None:
    unit = controller(counters)
    peak = unit._world.memory
    peak.restart()
    counters.allocate(20 * GIB)
    unit.maybe_sleep()
    counters.allocate(15 * GIB)
    counters.tensors, counters.cached = 5 * GIB, 30 * GIB
    assert peak.gib() == 2 + 40 + 20
    peak.restart()
    assert peak.gib() == 2 + 35, "with the engine asleep"
    peak.restart()
    unit.wake_up()
    assert peak.gib() == 2 + 5 + 40, "the cache was gone before the engine came"
    assert unit.status is EngineStatus.AWAKE


def test_a_peak_between_two_notes_stays(counters: Counters) -> None:
    peak = PeakMemory(CUDA)
    peak.restart()
    counters.allocate(30 * GIB)
    counters.tensors = 0
    peak.note()
    counters.allocate(GIB)
    assert peak.gib() == 32
    assert memory_report(CUDA)["device_gib"] == 3


def segments() -> list[dict[str, Any]]:
    own = {"device": 0, "segment_pool_id": (0, 0), "total_size": 30 * GIB, "allocated_size": 28 * GIB}
    return [own, {"device": 0, "segment_pool_id": (0, 7), "total_size": 40 * GIB, "allocated_size": 40 * GIB}, own | {"device": 1}]


@pytest.mark.parametrize("with_nvml", [True, False])
def test_too_little_memory_says_who_holds_it_and_what_to_do(counters: Counters, monkeypatch: pytest.MonkeyPatch, with_nvml: bool) -> None:
    running = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in ((77, 19 * GIB), (78, None))]
    nvml = SimpleNamespace(
        NVMLError=OSError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: running,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml if with_nvml else None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", segments)
    engine = Beside(counters)
    engine.sleep(1)
    counters.allocate(30 * GIB)
    counters.others = 41 * GIB
    with pytest.raises(EngineError) as caught:
        wake(engine, ALL_TAGS, world=World(rank=0, world_size=1, local_rank=0, device=CUDA, group=None), make_room="lower it")
    told = str(caught.value)
    by_process = "by process: process 77 19.0, process 78 unknown" if with_nvml else "by process not known: nvidia-ml-py is not installed"
    assert "ran out of memory as it woke (weights, kv_cache): cuda:0 has 80.0 GiB, free 9.0" in told
    assert (
        f"training's tensors hold 28.0, torch's cache 2.0, the engine, CUDA's own and other programs 41.0 ({by_process}); lower it" in told
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_another_error_of_waking_stays_what_it_is(counters: Counters) -> None:
    engine = Beside(counters)
    engine.wake_up = lambda tags: (_ for _ in ()).throw(KeyError("weights"))  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        wake(engine, ("weights",), world=World(rank=0, world_size=1, local_rank=0, device=CUDA, group=None), make_room="")
    assert not waking._out_of_memory(KeyError("weights"))


@pytest.mark.parametrize(
    ("settings", "capability", "told"),
    [
        ({}, Capability.OPTIMIZER_OFFLOAD, "set --fsdp_cpu_offload, train adapters (--lora_rank), or take"),
        (
            {"fsdp_cpu_offload": True, "lora_rank": 8},
            Capability.OPTIMIZER_OFFLOAD,
            "to make room lower engine_mem_util (now 0.5), or take more ranks",
        ),
        ({"lora_rank": 8}, Capability.ADAM_OFFLOAD, "(now 0.5), set --adam_offload, or take"),
        ({"lora_rank": 8, "zero_stage": 1}, Capability.ADAM_OFFLOAD, "(now 0.5), or take"),
        ({"lora_rank": 8, "kl_coef": 0.1}, Capability.FROZEN_OFFLOAD, "(now 0.5), set --offload_frozen, or take"),
        ({"lora_rank": 8, "reward": ["model:rm"]}, Capability.FROZEN_OFFLOAD, "(now 0.5), set --offload_frozen, or take"),
        ({"lora_rank": 8, "reward": ["math"]}, Capability.FROZEN_OFFLOAD, "(now 0.5), or take"),
        ({"lora_rank": 8, "kl_coef": 0.1, "offload_frozen": True}, Capability.FROZEN_OFFLOAD, "(now 0.5), or take"),
    ],
)
def test_what_makes_room_is_what_the_run_does_not_do_yet(settings: dict[str, Any], capability: Capability, told: str) -> None:
    assert told in how_to_make_room(make_config({"engine_mem_util": 0.5} | settings), {capability})
