"""A scheduler that dies. A clear error at once, in the trainer's own process, which goes on, without orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from lightrft.engine.base import ALL_TAGS
from lightrft.errors import EngineError, WeightSyncError
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of, weights_of
from lightrft.testing.jobs import still_there
from lightrft.types import EngineStatus, SamplingParams

AT_ONCE_S = 20.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[EngineBench]:
    before = living_children()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    bench = EngineBench("sglang", tmp_path / "model")
    yield bench
    engine: Any = bench.engine_as_it_is
    segments = {Path(path).name for path in engine._process._segments}
    assert any(name.startswith("sgl") for name in segments)
    bench.close()
    assert bystander.poll() is None, "a child of the trainer's own lives on"
    bystander.kill()
    bystander.wait()
    assert living_children() <= before
    assert still_there(segments) == set()


def living_children() -> set[int]:
    """Without Python's own resource tracker of multiprocessing, which lives as long as its process."""
    found = [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
    return {c.pid for c in found if "resource_tracker" not in " ".join(c.cmdline())}


def scheduler(bench: EngineBench) -> Any:
    engine: Any = bench.engine
    return engine._process.children[0]


def test_a_scheduler_killed_while_idle_or_asleep_is_told_at_the_next_call(bench: EngineBench) -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert bench.engine.status is EngineStatus.AWAKE
    assert {number: signal.getsignal(number) for number in kept} == kept, "the trainer's signals are its own"
    os.kill(scheduler(bench).pid, signal.SIGKILL)
    scheduler(bench).join(10)
    start = time.monotonic()
    with pytest.raises(EngineError, match="scheduler has died"):
        bench.engine_as_it_is.generate(requests_of([[3, 4, 5]]), GREEDY)
    asleep: Any = bench.engine_as_it_is
    asleep._status = EngineStatus.ASLEEP  # on the CPU it cannot get there by itself
    with pytest.raises(EngineError, match="scheduler has died, resume_memory_occupation"):
        asleep.wake_up(ALL_TAGS)
    assert time.monotonic() - start < AT_ONCE_S
    assert bench.engine_as_it_is.status is EngineStatus.UNUSABLE


def test_a_scheduler_killed_in_generate_ends_the_call(bench: EngineBench) -> None:
    victim = scheduler(bench).pid
    threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(EngineError, match="scheduler"):
        bench.engine_as_it_is.generate(requests_of([[3, 4, 5]] * 512), SamplingParams(max_new_tokens=200, ignore_eos=True))
    assert time.monotonic() - start < AT_ONCE_S
    assert bench.engine_as_it_is.status is EngineStatus.UNUSABLE


def test_a_scheduler_killed_in_an_update_leaves_no_half_updated_engine(bench: EngineBench) -> None:
    victim, engine = scheduler(bench).pid, cast(Any, bench.engine_as_it_is)

    def call(name: str, **arguments: Any) -> None:
        type(engine)._accepted(engine, name, **arguments)
        if name == "update_weights_from_tensor":  # the first bucket has arrived
            os.kill(victim, signal.SIGKILL)
            time.sleep(0.5)

    engine._accepted = call
    with pytest.raises(WeightSyncError, match="scheduler"):
        engine.update_weights(weights_of(bench.models[1]), version=1)
    assert bench.engine_as_it_is.status is EngineStatus.UNUSABLE


def test_a_folder_that_cannot_be_loaded_is_an_error_and_leaves_no_child(tmp_path: Path) -> None:
    bench = EngineBench("sglang", tmp_path / "model")
    config = bench.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["NoSuchForCausalLM"]}))
    before, segments = living_children(), set(os.listdir("/dev/shm"))
    with pytest.raises(AssertionError, match="the engine does not start: .*EngineError: SGLang did not start") as caught:
        assert bench.engine
    assert isinstance(caught.value.__cause__, EngineError)
    assert living_children() <= before
    assert not still_there({name for name in set(os.listdir("/dev/shm")) - segments if name.startswith("sgl")})


PARENT = """
import multiprocessing, sys, time
from lightrft_sglang.with_parent import children_end_with_us

if __name__ == "__main__":
    with children_end_with_us():
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
        child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_children_end_with_a_parent_that_is_killed_before_they_are_up(tmp_path: Path) -> None:
    script = tmp_path / "a folder" / "parent's.py"
    script.parent.mkdir()
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    left = psutil.wait_procs([child], timeout=AT_ONCE_S)[1]
    for process in left:
        process.kill()
    assert left == []
