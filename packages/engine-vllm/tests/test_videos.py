"""The reference engine reads videos as transformers does. Here, since transformers reads them by torchvision, which comes with vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.errors import CapabilityError
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.image_text import END_ID, IMAGE_ID, PATCH, SIDE, START_ID, VIDEO_ID, noise, tiny_image_folder, tiny_image_model
from lightrft.testing.spmd import run_spmd
from lightrft.types import RequestOutput, SamplingParams

pytest.importorskip("torchvision", reason="transformers reads videos by it")
tf: Any = transformers
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=5, ignore_eos=True)
IMAGE, VIDEO = [START_ID, IMAGE_ID, END_ID], [START_ID, VIDEO_ID, END_ID]
FILMS = [[noise(seed) for seed in seeds] for seeds in ((1, 2), (3, 4, 5, 6), (2, 1))]
ASKED: list[tuple[list[int], list[Any], list[Any]]] = [
    ([*VIDEO, 5, 6], [], FILMS[:1]), ([5, 6, 7], [], []), ([3, *VIDEO, 5, *IMAGE, 6, *VIDEO], [noise(9)], FILMS[1:]),
    ([*VIDEO, 5, 6], [], FILMS[2:]),
]  # fmt: skip
"""Token ids, images and videos of each prompt."""


def video_folder(path: Path) -> Any:
    """A folder as `tiny_image_folder`, and what transformers reads videos by; returns the model."""
    model = tiny_image_model(seed=1)
    tiny_image_folder(path, model)
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    tf.Qwen2VLVideoProcessor(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size, cap_pixels_per_frame=False
    ).save_pretrained(path)  # fmt: skip
    return model


def expected(folder: Path, model: Any) -> list[list[int]]:
    """What transformers answers, by its own processor."""
    processor = tf.AutoProcessor.from_pretrained(folder)
    found = []
    for prompt, images, videos in ASKED:
        text = processor.tokenizer.decode(prompt)
        inputs = processor(text=[text], images=images or None, videos=videos or None, add_special_tokens=False, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=5, eos_token_id=-1, do_sample=False)
        found.append(made[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def controller(folder: str, *, capabilities: frozenset[Capability] = HF_CAPABILITIES) -> RolloutController:
    world = World.join(need_group=False)
    group = neighbours(world, size=world.world_size)
    setup = EngineSetup(
        model_path=folder, dtype=torch.float32, device=world.device, seed=0, max_model_len=64, max_batch_size=4, mem_util=0.85,
        trust_remote_code=False, rank=group.rank, group_size=group.size, group=group.group,
    )  # fmt: skip
    spec = EngineSpec(name="hf", target="a:b", capabilities=capabilities)
    return RolloutController(
        lambda: HFEngine(setup), spec=spec, world=world, group=group, dtype=torch.float32, sleep_level=None, seed=3, tokenize=lambda _: [1]
    )


def generate(unit: RolloutController, asked: list[tuple[list[int], list[Any], list[Any]]]) -> list[RequestOutput]:
    return unit.gather_and_generate(
        GREEDY, prompt_token_ids=[prompt for prompt, _, _ in asked], prompts=None, sleep_engine=False, logprobs=False,
        images=[one for _, images, _ in asked for one in images], images_num=[len(images) for _, images, _ in asked],
        videos=[one for _, _, videos in asked for one in videos], videos_num=[len(videos) for _, _, videos in asked],
    )  # fmt: skip


def answers(folder: str) -> list[list[int]]:
    """Of this rank's share of the prompts."""
    unit = controller(folder)
    rank, size = unit.group.rank, unit.group.size
    asked = ASKED[rank * len(ASKED) // size : (rank + 1) * len(ASKED) // size]
    return [list(output.completions[0].token_ids) for output in generate(unit, asked)]


def test_answers_are_those_of_transformers_on_one_rank_and_in_a_group_of_two(tmp_path: Path) -> None:
    model = video_folder(tmp_path)
    right = expected(tmp_path, model)
    assert right[0] != right[3], "the frames in reverse are another video"
    assert answers(str(tmp_path)) == right
    first, second = run_spmd(answers, 2, str(tmp_path))
    assert first + second == right


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    video_folder(tmp_path)
    unit = controller(str(tmp_path))
    with pytest.raises(ValueError, match=r"request 0: the prompt has 1 video tokens \(<\|video_pad\|>\) for 2 videos; write one for each"):
        generate(unit, [(VIDEO, [], FILMS[:2])])
    without = controller(str(tmp_path), capabilities=HF_CAPABILITIES - {Capability.VIDEO})
    with pytest.raises(CapabilityError, match="videos needs the capability 'video', which engine 'hf' does not have here"):
        generate(without, [(VIDEO, [], FILMS[:1])])
