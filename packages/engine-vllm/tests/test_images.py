"""vLLM reads images as transformers does, in families of different designs, before and after a sync; what it cannot is told."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from image_families import FAMILIES, IMAGE
from transformers import AutoModelForImageTextToText

from lightrft.config.load import make_config
from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.engine.image_reader import ImageReader
from lightrft.errors import ImageError, ModelError
from lightrft.plugins import Registry
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.engine_bench import weights_of
from lightrft.testing.image_text import noise
from lightrft.testing.spmd import run_spmd
from lightrft.types import Request, SamplingParams

pytestmark = pytest.mark.long  # an engine for each family; the kit asks one of them daily
RIGHT = ("qwen2.5-vl", "qwen3-vl")
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_p=0.9, n=3, max_new_tokens=5, ignore_eos=True)
CLOSE = 1e-4
PROMPTS = [([5, 6, 7], []), ([*IMAGE, 5, 6], [0]), ([3, *IMAGE, 5, *IMAGE, 6, *IMAGE], [0, 1, 2]), ([*IMAGE, 5, 6], [1]), ([9], [])]
"""Token ids, and the seeds of their images: none, one, three, another one, none."""


def requests() -> list[Request]:
    pictures = [noise(0), noise(1).resize((24, 16)), noise(2)]
    return [
        Request(id=i, prompt_token_ids=ids, seed=100 + i, logprobs=True, images=tuple(pictures[s] for s in seeds))
        for i, (ids, seeds) in enumerate(PROMPTS)
    ]


@contextmanager
def engine_on(folder: Path, **options: Any) -> Iterator[InferenceEngine]:
    engine = Registry.discover().load("engine", "vllm")(
        EngineSetup(
            model_path=str(folder), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=256, max_batch_size=8,
            mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None, options=options,
        )
    )  # fmt: skip
    try:
        yield engine
    finally:
        engine.shutdown()


def inputs_of(reader: ImageReader, request: Request) -> dict[str, torch.Tensor]:
    if not request.images:
        return {"input_ids": torch.tensor([list(request.prompt_token_ids)])}
    made = reader.read(request.prompt_token_ids, request.images, where="")
    return {"input_ids": torch.tensor([made.token_ids]), **made.marks, **made.features}


@torch.no_grad()
def greedy(model: Any, inputs: dict[str, torch.Tensor]) -> list[int]:
    ids = inputs["input_ids"]
    made = model.generate(
        **inputs, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None
    )
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens


@torch.no_grad()
def logprobs(model: Any, inputs: dict[str, torch.Tensor], answer: list[int]) -> torch.Tensor:
    """Of an answer without image tokens, in one pass."""
    prompt = inputs["input_ids"]
    added = {n: torch.cat([v, torch.zeros(1, len(answer), dtype=v.dtype)], 1) for n, v in inputs.items() if v.shape == prompt.shape}
    ids = torch.cat([prompt, torch.tensor([answer])], 1)
    logits = model(**inputs | added | {"input_ids": ids}).logits[0, prompt.shape[1] - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)


@pytest.mark.parametrize("family", RIGHT)
def test_tokens_and_logprobs_are_those_of_transformers_before_and_after_a_sync(tmp_path: Path, family: str) -> None:
    models = [FAMILIES[family](tmp_path / str(seed), seed) for seed in range(2)]
    reader, asked = ImageReader(str(tmp_path / "0"), trust_remote_code=False), requests()
    compared = 0
    with engine_on(tmp_path / "0") as engine:
        for version, model in enumerate(models):
            if version:
                engine.update_weights(weights_of(model), version=version)
                engine.reset_cache()
            proved = {name for names in engine.weight_sums() for name in names}
            assert proved == set(engine.weight_shapes()), "a sync of every weight is verified, those that read images too"
            for request, output in zip(asked, engine.generate(asked, GREEDY), strict=True):
                assert list(output.completions[0].token_ids) == greedy(model, inputs_of(reader, request)), request.id
            for request, output in zip(asked, engine.generate(asked, DRAWN), strict=True):
                for drawn in output.completions:
                    answer = list(drawn.token_ids)
                    if reader.reserved.isdisjoint(answer):
                        compared += 1
                        found = torch.tensor(drawn.logprobs, dtype=torch.float64)
                        assert float((found - logprobs(model, inputs_of(reader, request), answer)).abs().max()) < CLOSE
    assert compared > 10


def test_prompts_that_do_not_fit_and_tokens_that_differ_are_told(tmp_path: Path) -> None:
    FAMILIES["qwen2.5-vl"](tmp_path, 0)
    with engine_on(tmp_path) as engine:
        with pytest.raises(ValueError, match=r"request 7: the prompt has 2 image tokens .* for 1 images"):
            engine.generate([Request(id=7, prompt_token_ids=[*IMAGE, *IMAGE], seed=0, images=(noise(0),))], GREEDY)
        read = ImageReader.read
        twice = {"images": (noise(0).resize((48, 48)),)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageReader, "read", lambda self, ids, images, *, where: read(self, [*ids, 5], images, where=where))
            with pytest.raises(ImageError, match=r"engine's preprocessing makes 8 tokens of its prompt, \[62, 60, .*, the trainer's 9, "):
                engine.generate([Request(id=7, prompt_token_ids=[*IMAGE, 5, 6], seed=0, **twice)], GREEDY)


def test_a_family_that_vllm_does_not_load_is_told(tmp_path: Path) -> None:
    FAMILIES["llava"](tmp_path, 0)
    words = r"\(LlavaForConditionalGeneration\) reads images, and this vLLM does not load it: .*--engine_type hf"
    with pytest.raises(ModelError, match=words), engine_on(tmp_path):
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
