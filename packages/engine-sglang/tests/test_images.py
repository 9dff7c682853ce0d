"""SGLang reads images as transformers does, in families of different designs, before and after a sync; what it cannot is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from image_answers import GREEDY, check_answers, engine_on, on_two_ranks, requests
from image_families import FAMILIES, IMAGE

from lightrft.engine.image_reader import ImageReader
from lightrft.errors import ModelError
from lightrft.testing.image_text import noise
from lightrft.testing.spmd import run_spmd
from lightrft.types import EngineStatus, Request

pytest.importorskip("sglang")
pytestmark = pytest.mark.long  # an engine for each family; the kit asks one of them daily
RIGHT = ("qwen2.5-vl", "qwen3-vl")


@pytest.mark.parametrize("family", RIGHT)
def test_tokens_and_logprobs_are_those_of_transformers_before_and_after_a_sync(tmp_path: Path, family: str) -> None:
    check_answers("sglang", family, tmp_path)


def test_prompts_that_do_not_fit_are_refused_and_leave_the_engine_as_it_was(tmp_path: Path) -> None:
    FAMILIES["qwen2.5-vl"](tmp_path, 0)
    asked = requests()
    with engine_on("sglang", tmp_path) as engine:
        before = engine.generate(asked, GREEDY)
        with pytest.raises(ValueError, match=r"request 7: the prompt has 2 image tokens .* for 1 images"):
            engine.generate([Request(id=7, prompt_token_ids=[*IMAGE, *IMAGE], seed=0, images=(noise(0),))], GREEDY)
        many = Request(id=9, prompt_token_ids=[*IMAGE] * 50, seed=0, images=(noise(0),) * 50)
        with pytest.raises(
            ValueError, match="^request 9: a prompt of 300 tokens, its 50 images included, leaves no room in a context of 256"
        ):
            engine.generate([*asked, many], GREEDY)
        assert engine.status is EngineStatus.AWAKE
        assert [o.completions[0].token_ids for o in engine.generate(asked, GREEDY)] == [o.completions[0].token_ids for o in before]


def test_a_family_that_sglang_does_not_load_is_told(tmp_path: Path) -> None:
    FAMILIES["llava"](tmp_path, 0)
    words = r"\(LlavaForConditionalGeneration\) reads images, and this SGLang does not start with it: .*--engine_type hf"
    with pytest.raises(ModelError, match=words), engine_on("sglang", tmp_path):
        pass


def test_each_of_two_ranks_has_an_engine_that_reads_its_own_images(tmp_path: Path) -> None:
    for seed in range(2):
        FAMILIES["qwen2.5-vl"](tmp_path / str(seed), seed)
    found = run_spmd(on_two_ranks, 2, "sglang", 1, str(tmp_path / "0"), str(tmp_path / "1"), timeout_s=300)
    assert found == [[True, True], [True, True]]


def test_a_family_whose_images_sglang_does_not_take_is_told_without_its_pixels(tmp_path: Path) -> None:
    """On text alone it answers, before and after."""
    FAMILIES["idefics3"](tmp_path, 0)
    reader = ImageReader(str(tmp_path), trust_remote_code=False)
    asked = requests(min(reader.reserved))
    with engine_on("sglang", tmp_path) as engine:
        with pytest.raises(ModelError) as told:
            engine.generate(asked, GREEDY)
        words = (
            r"^SGLang does not take what the processor of model '.*' \(Idefics3ForConditionalGeneration\) makes of images: ValueError: Inv"
        )
        assert re.match(words, str(told.value)) and len(str(told.value)) < 300 + len(str(tmp_path)) and "\n" not in str(told.value)
        assert told.value.__suppress_context__, "no second traceback brings them"
        assert len(engine.generate(asked[:1], GREEDY)[0].completions[0].token_ids) == 6
