"""vLLM reads images as transformers does, in families of different designs, before and after a sync; what it cannot is told."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from image_answers import GREEDY, check_answers, engine_on, greedy, inputs_of, requests
from image_families import FAMILIES, IMAGE
from transformers import AutoModelForImageTextToText

from lightrft.config.load import make_config
from lightrft.engine.image_reader import ImageReader
from lightrft.errors import ImageError, ModelError
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.image_text import noise
from lightrft.testing.spmd import run_spmd
from lightrft.types import EngineStatus, Request

pytestmark = pytest.mark.long  # an engine for each family; the kit asks one of them daily
RIGHT = ("qwen2.5-vl", "qwen3-vl", "idefics3")


@pytest.mark.parametrize("family", RIGHT)
def test_tokens_and_logprobs_are_those_of_transformers_before_and_after_a_sync(tmp_path: Path, family: str) -> None:
    check_answers("vllm", family, tmp_path)


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


def test_a_family_that_vllm_does_not_load_is_told(tmp_path: Path) -> None:
    FAMILIES["llava"](tmp_path, 0)
    words = r"vLLM does not start with model .* \(LlavaForConditionalGeneration, which reads images\): .*--engine_type hf"
    with pytest.raises(ModelError, match=words), engine_on("vllm", tmp_path):
        pass


def on_two_ranks(folder: str, model: str) -> list[bool]:
    """Of this rank's prompts, whether the group's engine answers as transformers does after a sync to the actor's weights."""
    config = make_config({
        "strategy": "fsdp", "engine_type": "vllm", "engine_tp_size": 2, "model_name_or_path": folder, "prompt_max_len": 64,
        "generate_max_len": 8,
    })  # fmt: skip
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    judge = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    actor, _ = strategy.prepare_trainable(copy.deepcopy(judge), optimizer=AdamWSettings(learning_rate=1e-3))
    strategy.update_engine_weights(actor)
    mine = requests()[1:3] if strategy.world.rank == 0 else requests()[3:]
    found = strategy.gather_and_generate(
        GREEDY, all_prompt_token_ids=[r.prompt_token_ids for r in mine], all_images=[i for r in mine for i in r.images],
        images_num=[len(r.images) for r in mine],
    )  # fmt: skip
    strategy.shutdown()
    reader = ImageReader(folder, trust_remote_code=False)
    return [list(o.completions[0].token_ids) == greedy(judge, inputs_of(reader, r)) for o, r in zip(found, mine, strict=True)]


def test_a_group_of_two_ranks_reads_the_images_of_both(tmp_path: Path) -> None:
    for seed in range(2):
        FAMILIES["qwen3-vl"](tmp_path / str(seed), seed)
    assert run_spmd(on_two_ranks, 2, str(tmp_path / "0"), str(tmp_path / "1"), timeout_s=240) == [[True, True], [True, True]]
