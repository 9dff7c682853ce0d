"""What an engine with images is asked, and what transformers answers: the same for every engine and family."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from image_families import FAMILIES, IMAGE, VIDEO, video_folder
from transformers import AutoModelForImageTextToText

from lightrft.config.load import make_config
from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.engine.image_reader import ImageReader
from lightrft.plugins import Registry
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.engine_bench import weights_of
from lightrft.testing.image_text import IMAGE_ID, noise
from lightrft.types import Request, SamplingParams, Video

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_p=0.9, n=3, max_new_tokens=5, ignore_eos=True)
CLOSE = 1e-4
PROMPTS = [([5, 6, 7], []), ([*IMAGE, 5, 6], [0]), ([3, *IMAGE, 5, *IMAGE, 6, *IMAGE], [0, 1, 2]), ([*IMAGE, 5, 6], [1]), ([9], [])]
"""Token ids, and the seeds of their images: none, one, three, another one, none."""


def requests(token: int = IMAGE_ID) -> list[Request]:
    """`token` stands for an image; where it is one of those around it, it stands there once."""
    pictures = [noise(0), noise(1).resize((24, 16)), noise(2)]
    return [
        Request(id=i, prompt_token_ids=ids, seed=100 + i, logprobs=True, images=tuple(pictures[s] for s in seeds))
        for i, (ids, seeds) in enumerate(
            ([token if t == IMAGE_ID else t for t in ids if t == IMAGE_ID or t != token], seeds) for ids, seeds in PROMPTS
        )
    ]


def with_videos() -> list[Request]:
    """Videos of two, four and three frames, one with the frames of another in reverse, beside an image, and text alone."""
    films = [Video(frames=tuple(noise(seed) for seed in seeds)) for seeds in ((1, 2), (3, 4, 5, 6), (2, 1), (7, 8, 9))]
    prompts: list[tuple[list[int], tuple[Any, ...]]] = [
        ([*VIDEO, 5, 6], (films[0],)), ([5, 6, 7], ()), ([3, *VIDEO, 5, *IMAGE, 6, *VIDEO], (noise(9), films[1], films[2])),
        ([*VIDEO, 5, 6], (films[2],)), ([*VIDEO, 5], (films[3],)),
    ]  # fmt: skip
    return [Request(id=i, prompt_token_ids=ids, seed=i, logprobs=True, images=shown) for i, (ids, shown) in enumerate(prompts)]


@contextmanager
def engine_on(name: str, folder: Path, **options: Any) -> Iterator[InferenceEngine]:
    engine = Registry.discover().load("engine", name)(
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


def check_answers(name: str, family: str, folder: Path, *, unused: tuple[str, ...] = (), videos: bool = False) -> None:
    """Tokens and log-probs are those of transformers before and after a sync, in which every weight is verified but those whose names begin
    with `unused`, which no answer depends on and the engine leaves out. `videos`: of prompts with videos beside images.
    """
    made = partial(video_folder, family=family) if videos else FAMILIES[family]
    models = [made(folder / str(seed), seed=seed) for seed in range(2)]
    reader = ImageReader(str(folder / "0"), trust_remote_code=False)
    asked = with_videos() if videos else requests(IMAGE_ID if IMAGE_ID in reader.reserved else min(reader.reserved))
    compared = 0
    with engine_on(name, folder / "0") as engine:
        for version, model in enumerate(models):
            if version:
                engine.update_weights(weights_of(model), version=version)
                engine.reset_cache()
            proved = {name for names in engine.weight_checksums() for name in names}
            held = {name for name in engine.weight_shapes() if not name.startswith(unused)}
            assert proved == held, "a sync of every weight is verified, those that read images too"
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


def on_two_ranks(name: str, engine_tp_size: int, folder: str, model: str) -> list[bool]:
    """Of this rank's prompts, whether the engine of its group answers as transformers does after a sync to the actor's weights."""
    config = make_config({
        "strategy": "fsdp", "engine_type": name, "engine_tp_size": engine_tp_size, "model_name_or_path": folder, "prompt_max_len": 64,
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
