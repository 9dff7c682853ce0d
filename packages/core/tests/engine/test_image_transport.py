"""What images cost between the ranks of an engine group: each different one once, as a PNG, whatever the number of prompts and samples."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.distributed import collectives
from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.rollout.image_transport import png_of
from lightrft.rollout.images import rgb_image
from lightrft.rollout.prompts import PromptSource, collect_requests, with_images_read
from lightrft.testing.fake_engine import FakeEngine, digests, next_token
from lightrft.testing.image_text import noise
from lightrft.testing.spmd import run_spmd
from lightrft.types import SamplingParams

pytest.importorskip("PIL", reason="images are Pillow's")
SHOWN = [[[1], [1, 2], [1], []], [[2], [1], [3, 3, 3]]]
"""Of each of two ranks: the seeds of each prompt's images."""

TRAVEL = {"single_leader": [[], [3]], "spmd": [[1, 2], [3]]}
"""What each rank sends: to the one rank with an engine the images that it lacks; to engines on all ranks all of them, once."""


def controller(topology: str) -> RolloutController:
    world = World.join(need_group=True)
    group = neighbours(world, size=2)
    setup = EngineSetup(
        model_path="", dtype=torch.float32, device=world.device, seed=0, max_model_len=32, max_batch_size=4, mem_util=0.85,
        trust_remote_code=False, rank=group.rank, group_size=2, group=group.group,
    )  # fmt: skip
    capabilities = frozenset({Capability.TENSOR_PARALLEL, Capability.MULTIMODAL})
    spec = EngineSpec(name="fake", target="a:b", capabilities=capabilities, topology=topology)  # type: ignore[arg-type]  # a parameter
    return RolloutController(
        lambda: FakeEngine(setup), spec=spec, world=world, group=group, dtype=torch.float32, sleep_level=None, seed=3,
        tokenize=lambda text: [1],
    )  # fmt: skip


class Wire:
    """Counts what this rank brings to the collectives: bytes of tensors of eight bits, and of everything that is pickled."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.images = self.pickled = 0
        pickled, gather, all_gather = torch.distributed.all_gather_object, torch.distributed.gather, collectives._all_gather

        def counted_objects(out: Any, data: Any, **more: Any) -> None:
            self.pickled += len(pickle.dumps(data))
            pickled(out, data, **more)

        def counted_gather(tensor: torch.Tensor, rows: Any, **more: Any) -> None:
            self.images += tensor.numel() * (tensor.dtype is torch.uint8)
            gather(tensor, rows, **more)

        def counted_all_gather(rows: Any, tensor: torch.Tensor, **more: Any) -> None:
            self.images += tensor.numel() * (tensor.dtype is torch.uint8)
            all_gather(rows, tensor, **more)

        patch.setattr(torch.distributed, "all_gather_object", counted_objects)
        patch.setattr(torch.distributed, "gather", counted_gather)
        patch.setattr(collectives, "_all_gather", counted_all_gather)


def asked(topology: str, n: int) -> tuple[list[list[int]], int, int]:
    unit, rank = controller(topology), torch.distributed.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        wire = Wire(patch)
        outputs = unit.gather_and_generate(
            SamplingParams(temperature=0.0, max_new_tokens=4, ignore_eos=True, n=n),
            prompt_token_ids=[[3 + i] for i in range(len(SHOWN[rank]))],
            prompts=None,
            images=[noise(seed) for seeds in SHOWN[rank] for seed in seeds],
            images_num=[len(seeds) for seeds in SHOWN[rank]],
            sleep_engine=False,
            logprobs=False,
        )
    return [list(output.completions[0].token_ids) for output in outputs], wire.images, wire.pickled


def on_two_ranks() -> dict[tuple[str, int], tuple[list[list[int]], int, int]]:
    return {(topology, n): asked(topology, n) for topology in TRAVEL for n in (1, 8)}


def foretold(rank: int) -> list[list[int]]:
    found = []
    for i, seeds in enumerate(SHOWN[rank]):
        tokens: list[int] = []
        for _ in range(4):
            tokens.append(next_token(0, [3 + i], tokens, draw=None, support=16, images=digests([noise(seed) for seed in seeds])))
        found.append(tokens)
    return found


def test_each_image_travels_once_as_a_png_whatever_the_samples() -> None:
    first, second = run_spmd(on_two_ranks, 2)
    for topology, travel in TRAVEL.items():
        # 40 bytes stand before each; ranks are padded to the longest.
        most = max(sum(len(png_of(noise(seed))) + 40 for seed in seeds) for seeds in travel)
        for n in (1, 8):
            assert [first[topology, n][0], second[topology, n][0]] == [foretold(0), foretold(1)]
            assert [first[topology, n][1], second[topology, n][1]] == [most, most]
            assert max(first[topology, n][2], second[topology, n][2]) < 2000, "one image alone has 9408 bytes of pixels"


def test_what_comes_again_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(1).save(tmp_path / "1.png")
    path, data, image = str(tmp_path / "1.png"), png_of(noise(2)), noise(3)
    read: list[Any] = []

    def counted(source: Any, *, where: str) -> Any:
        read.append(source)
        return rgb_image(source, where=where)

    monkeypatch.setattr("lightrft.rollout.prompts.read_picture", counted)
    source = PromptSource(
        prompt_token_ids=[[1], [2]], prompts=None, images=[path, data, image, path, bytes(bytearray(data)), image], images_num=[2, 4],
        logprobs=False,
    )  # fmt: skip
    first, second = with_images_read(collect_requests(source, tokenize=lambda text: [1]))
    assert read == [path, data, image]
    assert [i.tobytes() for i in (*first.images, *second.images)] == [noise(seed).tobytes() for seed in (1, 2, 3, 1, 2, 3)]
