"""An engine that never returns from generate ends its rank, named, while the others wait for it."""

import threading
from typing import Any

import pytest
import torch

from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.plugins.specs import EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.fake_engine import FakeEngine
from lightrft.testing.spmd import SpmdError, run_spmd
from lightrft.types import SamplingParams


class HangingEngine(FakeEngine):
    """Waits for ever on the world's second rank."""

    def generate(self, requests, sampling):  # type: ignore[no-untyped-def]  # as in the base class
        if torch.distributed.get_rank() == 1:
            threading.Event().wait()
        return super().generate(requests, sampling)


def generate(limit_s: float) -> int:
    world = World.join(need_group=True)
    group = neighbours(world, size=1)
    setup = EngineSetup(
        model_path="", dtype=torch.float32, device=world.device, seed=0, max_model_len=32, max_batch_size=4, mem_util=0.85,
        trust_remote_code=False, rank=group.rank, group_size=1, group=group.group,
    )  # fmt: skip
    unit = RolloutController(
        lambda: HangingEngine(setup), spec=EngineSpec(name="fake", target="a:b"), world=world, group=group, dtype=torch.float32,
        sleep_level=None, seed=3, tokenize=lambda text: [1], generate_timeout_s=limit_s,
    )  # fmt: skip
    arguments: dict[str, Any] = dict(prompts=None, images=None, images_num=None, sleep_engine=False, logprobs=False)
    prompts = {0: [[3], [4], [5]], 1: [[6], [7]]}[world.rank]
    return len(unit.gather_and_generate(SamplingParams(max_new_tokens=2), prompt_token_ids=prompts, **arguments))


def test_a_hanging_engine_ends_its_rank_and_says_what_it_held(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpmdError) as caught:
        run_spmd(generate, 2, 5.0, timeout_s=100)
    assert caught.value.ranks[0] == 1, "the cause first"
    assert "rank 1 ended with exit code 70" in str(caught.value)
    out = capsys.readouterr().out
    assert (
        "[rank 1] EngineError: engine 'fake' on rank 1 did not return from generate within 5 s (generate_timeout_s), "
        "2 prompts outstanding (requests 3 to 4)"
    ) in out
    assert "did not return" not in out[: out.index("--- rank 1 ---")], "rank 0 was in time"
