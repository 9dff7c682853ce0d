"""Videos: the reference engine and vLLM answer as transformers does, and a run on rows with videos is the same on one rank and on two.

Here, since transformers reads videos by torchvision, which comes with vLLM.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from image_answers import GREEDY as GREEDY_SIX
from image_answers import check_answers, engine_on, greedy, inputs_of, with_videos
from image_families import video_folder
from safetensors.torch import load_file

from lightrft.config.load import make_config
from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.engine.image_reader import ImageReader
from lightrft.engine.request_images import RequestImages
from lightrft.errors import CapabilityError, ConfigError, ImageError
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.testing.image_text import END_ID, IMAGE_ID, START_ID, VIDEO_ID, noise
from lightrft.testing.spmd import run_spmd
from lightrft.trainer.prompts import image_problems
from lightrft.trainer.run import train
from lightrft.types import RequestOutput, SamplingParams, Video

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
    """Of this rank's slice of the prompts."""
    unit = controller(folder)
    rank, size = unit.group.rank, unit.group.size
    asked = ASKED[rank * len(ASKED) // size : (rank + 1) * len(ASKED) // size]
    return [list(output.completions[0].token_ids) for output in generate(unit, asked)]


def test_answers_are_those_of_transformers_on_one_rank_and_in_a_group_of_two(tmp_path: Path) -> None:
    model = video_folder(tmp_path, "qwen2.5-vl", 1)
    right = expected(tmp_path, model)
    assert right[0] != right[3], "the frames in reverse are another video"
    assert answers(str(tmp_path)) == right
    first, second = run_spmd(answers, 2, str(tmp_path))
    assert first + second == right


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    video_folder(tmp_path, "qwen2.5-vl", 1)
    unit = controller(str(tmp_path))
    with pytest.raises(ValueError, match=r"request 0: the prompt has 1 video tokens \(<\|video_pad\|>\) for 2 videos; write one for each"):
        generate(unit, [(VIDEO, [], FILMS[:2])])
    without = controller(str(tmp_path), capabilities=HF_CAPABILITIES - {Capability.VIDEO})
    with pytest.raises(CapabilityError, match="videos needs the capability 'video', which engine 'hf' does not have here"):
        generate(without, [(VIDEO, [], FILMS[:1])])


@pytest.mark.long
@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_vllm_s_tokens_and_logprobs_are_those_of_transformers_before_and_after_a_sync(tmp_path: Path, family: str) -> None:
    """What vLLM makes of a prompt, Qwen3-VL's times between the frames too, is compared by the engine with what the trainer makes."""
    check_answers("vllm", family, tmp_path, videos=True)


@pytest.mark.slow
def test_every_frame_is_shown_whatever_the_processor_samples_by_itself(tmp_path: Path) -> None:
    """Qwen3-VL's would take two frames a second of what it is given."""
    model = video_folder(tmp_path, "qwen3-vl", 1)
    reader, asked = ImageReader(str(tmp_path), trust_remote_code=False), with_videos()
    grids = [inputs_of(reader, request)["video_grid_thw"][:, 0].tolist() for request in asked if VIDEO_ID in request.prompt_token_ids]
    assert grids == [[1], [2, 1], [1], [2]], "two frames make one entry in time"
    with engine_on("hf", tmp_path) as engine:
        found = [list(output.completions[0].token_ids) for output in engine.generate(asked, GREEDY_SIX)]
    assert found == [greedy(model, inputs_of(reader, request)) for request in asked]


# ---- runs ----

REWARD = "def odd(samples):\n    return [float(len(s.token_ids) % 3) + sum(s.token_ids) % 2 for s in samples]\n"
COUNTS = [0, 1, 2, 0, 1, 2, 0, 1]


def run(folder: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return dict(train(make_config({
        "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 2, "seed": 3, "mixed_mm_data": True,
        "model_name_or_path": f"{folder}/model", "prompt_data": f"{folder}/rows.jsonl", "reward": [f"{folder}/reward.py:odd"],
        "prompt_max_len": 40, "generate_max_len": 6, "rollout_batch_size": 4, "n_samples_per_prompt": 2, "train_batch_size": 8,
        "micro_train_batch_size": 1, "micro_rollout_batch_size": 2, "learning_rate": 1e-3, "kl_coef": 0.05, "apply_chat_template": True,
        "output_dir": f"{folder}/{name}", "logprob_gap_prompts": 4, **changes,
    })))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with no, one or two videos: an animation, and lists of frames of other lengths."""
    path = tmp_path_factory.mktemp("videos")
    video_folder(path / "model", "qwen2.5-vl", 1)
    (path / "reward.py").write_text(REWARD)
    noise(50).save(path / "film.png", save_all=True, append_images=[noise(51), noise(52)])
    for seed in range(8):
        noise(seed).save(path / f"{seed}.png")
    films: list[Any] = ["film.png", ["0.png", "1.png"], ["2.png", "3.png", "4.png", "5.png"], ["6.png"], ["7.png", "0.png"], "film.png"]
    rows = []
    for number, count in enumerate(COUNTS):
        rows.append({"prompt": f"{number} + 1 =", "answer": "1", "videos": [films.pop() for _ in range(count)] if count else None})
        films = films or [["0.png", "1.png"]]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curve(folder: Path, name: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/loss" in row]


@pytest.mark.long
def test_a_run_on_videos_is_the_same_on_one_rank_and_on_two_padded_packed_and_shared(folder: Path) -> None:
    one = run_spmd(run, 1, str(folder), "one", {"strategy": "single"}, timeout_s=300)
    assert one[0]["steps"] == 2
    steps = curve(folder, "one")
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in steps), steps
    checks = [json.loads(line) for line in (folder / "one" / "metrics.jsonl").read_text().splitlines()]
    assert {row["verify/image_engine"] for row in checks if "verify/image_engine" in row} == {1.0}
    before, weights = (load_file(path / "model.safetensors") for path in (folder / "model", folder / "one" / "model"))
    assert sum("visual" in name and not before[name].equal(weights[name]) for name in before) > 10
    packed = {"packing_samples": True, "max_tokens_per_micro_batch": 96}
    for name, changes in {"two": {}, "two packed": packed, "two packed shared": packed | {"sp_size": 2}}.items():
        run_spmd(run, 2, str(folder), name, {"strategy": "fsdp"} | changes, timeout_s=300)
        for metric in ("rollout/reward", "train/loss", "train/grad_norm", "rollout/kl"):
            found, right = ([row[metric] for row in curve(folder, which)] for which in (name, "one"))
            assert found == pytest.approx(right, rel=2e-4, abs=1e-6), (name, metric)
        mine = load_file(folder / name / "model" / "model.safetensors")
        apart, moved = (torch.cat([(w[n] - weights[n]).flatten() for n in weights]) for w in (mine, before))
        assert float(apart.norm()) < 1e-3 * float(moved.norm()), name


def in_reverse(request: Any) -> Any:
    return replace(request, images=tuple(Video(frames=one.frames[::-1]) for one in request.images))


def test_a_run_whose_engine_sees_other_frames_ends_and_what_one_run_does_not_mix_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = RequestImages.read
    with monkeypatch.context() as patch:
        patch.setattr(RequestImages, "read", lambda self, request: read(self, in_reverse(request)))
        with pytest.raises(ImageError, match="engine 'hf' and the trainer differ by .* on prompts with images"):
            run(str(folder), "reversed", {"strategy": "single"})
    rows = (folder / "rows.jsonl").read_text() + json.dumps({"prompt": "1", "answer": "1", "images": "1.png"}) + "\n"
    (folder / "both.jsonl").write_text(rows)
    with pytest.raises(ConfigError, match="some prompts have images and some videos, which one run does not mix"):
        run(str(folder), "both", {"strategy": "single", "prompt_data": f"{folder}/both.jsonl"})
    without = SimpleNamespace(spec=lambda *_: SimpleNamespace(capabilities=frozenset()), having=lambda *_: ["hf", "vllm"])
    film: Any = SimpleNamespace(images=(Video(frames=()),))
    [problem] = image_problems(make_config({"engine_type": "sglang"}), [film], registry=cast(Any, without))
    assert problem == "the prompts have videos, which engine_type='sglang' does not read; these do: hf, vllm"


@pytest.mark.long
def test_a_run_with_vllm_has_the_trainer_s_logprobs(folder: Path) -> None:
    run(str(folder), "vllm", {"strategy": "single", "engine_type": "vllm"})
    rows = [json.loads(line) for line in (folder / "vllm" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in rows if "train/loss" in row), rows
    assert {row["verify/image_engine"] for row in rows if "verify/image_engine" in row} == {1.0}
