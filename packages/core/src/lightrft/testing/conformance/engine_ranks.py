"""Requirements of one engine that serves a group of several ranks. On two ranks of their own, through the controller, as in a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.distributed.world import World
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability
from lightrft.rollout.setup import make_controller
from lightrft.testing.conformance.engine_kit import EngineKit, Record, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, MEM_UTIL, EngineBench, weights_of
from lightrft.testing.spmd import SpmdError, run_spmd
from lightrft.testing.tiny import tiny_causal_lm

PROMPTS: tuple[list[list[int]], ...] = ([[3, 4, 5], [6, 7, 8, 9]], [[10, 11]])
"""Of each rank."""

Answers = list[list[list[list[int]]]]
"""Of one rank: before and after a sync, of each of its prompts."""


class Groups(EngineKit, kit=True):
    """Several ranks and one engine."""

    @requirement("generate", needs=Capability.TENSOR_PARALLEL)
    def test_two_ranks_share_one_engine(self, shared_bench: EngineBench, record_property: Record) -> None:
        """`engine_tp_size` 2: each rank gets the answers to its own prompts, the model's own, before and after a sync"""
        bench = shared_bench
        if bench.blocked:
            record_property("blocked", bench.blocked)
            pytest.skip(f"blocked by {bench.blocked}")
        if not self._declared(bench, Capability.TENSOR_PARALLEL, record_property):
            return
        if (self.family, self.tie) != (EngineKit.family, EngineKit.tie):
            pytest.skip("asked on the default architecture: a start on two ranks may take a minute")
        models = [bench.models[0], bench.models[1]]
        bench.close()  # where there still is one; of itself this test needs none here
        make: Callable[[], Registry] = type(self).registry
        cuda = torch.cuda.is_available() and torch.cuda.device_count() >= 2
        try:
            found = run_spmd(_answers, 2, self.plugin_name(), make, str(bench.folder), timeout_s=self.timeout_s, cuda=cuda)
        except SpmdError as error:
            raise AssertionError(
                f"two ranks did not come through with one engine, although 'tensor_parallel' is declared: {error}"
            ) from error
        for rank, answers in enumerate(found):
            for when, model, answered in zip(("before", "after"), models, answers, strict=True):
                expected = [[self.judge.greedy(model, p, max_new_tokens=GREEDY.max_new_tokens)] for p in PROMPTS[rank]]
                assert answered == expected, f"rank {rank} of 2 is answered {answered} {when} a sync; its prompts' answers are {expected}"


def _answers(name: str, make_registry: Callable[[], Registry], folder: str) -> Answers:
    world = World.join(need_group=True)
    settings = {
        "strategy": "single",
        "engine_type": name,
        "engine_tp_size": 2,
        "prompt_max_len": 32,
        "generate_max_len": GREEDY.max_new_tokens,
    }
    registry = make_registry()
    if Capability.MEM_UTIL in registry.spec("engine", name).capabilities_on(world.device.type):
        settings["engine_mem_util"] = MEM_UTIL
    controller = make_controller(make_config(settings), registry=registry, world=world, model_path=folder)
    found = []
    for synced in (False, True):
        if synced:
            buckets = weights_of(tiny_causal_lm(seed=1))
            controller.update_weights(buckets, shapes={w.names: tuple(w.tensor.shape) for bucket in buckets for w in bucket})
        outputs = controller.gather_and_generate(
            GREEDY,
            prompt_token_ids=PROMPTS[world.rank],
            prompts=None,
            images=None,
            images_num=None,
            sleep_engine=False,
            logprobs=False,
        )
        found.append(tokens(outputs))
    controller.shutdown()
    world.leave()
    return found
