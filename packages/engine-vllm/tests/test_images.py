"""vLLM reads images as transformers does, in families of different designs, before and after a sync; what it cannot is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_answers import GREEDY, check_answers, engine_on, on_two_ranks, requests
from image_families import FAMILIES, IMAGE

from lightrft.engine.image_reader import ImageReader
from lightrft.errors import ImageError, ModelError
from lightrft.testing.image_text import noise
from lightrft.testing.spmd import run_spmd
from lightrft.types import EngineStatus, Request

pytestmark = pytest.mark.long  # an engine for each family; the kit asks one of them daily
UNUSED = {"llava": ("model.vision_tower.encoder.layers.1.", "model.vision_tower.post_layernorm.")}
"""LLaVA takes the features before the last layer."""


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "idefics3", *UNUSED])
def test_tokens_and_logprobs_are_those_of_transformers_before_and_after_a_sync(tmp_path: Path, family: str) -> None:
    check_answers("vllm", family, tmp_path, unused=UNUSED.get(family, ()))


def test_prompts_that_do_not_fit_and_tokens_that_differ_are_told(tmp_path: Path) -> None:
    FAMILIES["qwen2.5-vl"](tmp_path, 0)
    with engine_on("vllm", tmp_path) as engine:
        with pytest.raises(ValueError, match=r"request 7: the prompt has 2 image tokens .* for 1 images"):
            engine.generate([Request(id=7, prompt_token_ids=[*IMAGE, *IMAGE], seed=0, images=(noise(0),))], GREEDY)
        read = ImageReader.read
        twice = {"images": (noise(0).resize((48, 48)),)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageReader, "read", lambda self, ids, images, *, where: read(self, [*ids, 5], images, where=where))
            with pytest.raises(ImageError, match=r"engine's preprocessing makes 8 tokens of its prompt, \[62, 60, .*, the trainer's 9, "):
                engine.generate([Request(id=7, prompt_token_ids=[*IMAGE, 5, 6], seed=0, **twice)], GREEDY)


def test_a_prompt_that_is_too_long_with_its_images_is_refused_and_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    FAMILIES["qwen2.5-vl"](tmp_path, 0)
    asked = requests()
    many = Request(id=9, prompt_token_ids=[*IMAGE] * 50, seed=0, images=(noise(0),) * 50)
    with engine_on("vllm", tmp_path) as engine:
        before = engine.generate(asked, GREEDY)
        for _ in range(2):
            with pytest.raises(
                ValueError, match="^request 9: a prompt of 300 tokens, its 50 images included, leaves no room in a context of 256"
            ):
                engine.generate([*asked, many, asked[1]], GREEDY)
            assert engine.status is EngineStatus.AWAKE
            assert engine.generate(asked, GREEDY) == before


def test_a_family_that_vllm_does_not_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAMILIES["llava"](tmp_path, 0)
    monkeypatch.setattr("lightrft_vllm.nesting.sole_level", lambda module: None)  # the names as transformers saves them
    words = r"vLLM does not start with model .* \(LlavaForConditionalGeneration, which reads images\): .*--engine_type hf"
    with pytest.raises(ModelError, match=words), engine_on("vllm", tmp_path):
        pass


def test_a_group_of_two_ranks_reads_the_images_of_both(tmp_path: Path) -> None:
    for seed in range(2):
        FAMILIES["qwen3-vl"](tmp_path / str(seed), seed)
    assert run_spmd(on_two_ranks, 2, "vllm", 2, str(tmp_path / "0"), str(tmp_path / "1"), timeout_s=240) == [[True, True], [True, True]]
