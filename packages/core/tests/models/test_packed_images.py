"""Packed rows of prompts with images: the log-probs, the loss and the gradients of padded rows, or an error at start."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers

from lightrft.batch.collect import sequences_of
from lightrft.batch.images import BlankPrompt, ImageInputs, positions_of
from lightrft.batch.micro_batch import MicroBatch, packed, padded
from lightrft.batch.planning import Batching
from lightrft.batch.stages import Sampled
from lightrft.distributed.mesh import Mesh
from lightrft.distributed.world import World
from lightrft.errors import ModelError
from lightrft.models.attention import use_our_attention
from lightrft.models.image_positions import image_positions
from lightrft.models.packing_check import check_packing
from lightrft.models.score import score_tokens
from lightrft.testing import run_spmd
from lightrft.testing.image_text import IMAGE_ID, image_inputs, noise, tiny_image_model
from lightrft.types import Completion

pytest.importorskip("PIL", reason="images are Pillow's")
tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers
CPU, SETTING = torch.device("cpu"), "packing_samples=True"
CLOSE = 1e-5

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip


def llava() -> Any:
    """A random LLaVA in float32: a CLIP of 2 x 2 patches, each of which is a token of a Llama that counts its positions."""
    text, vision = {"model_type": "llama", **TEXT}, {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    more = {"image_token_index": IMAGE_ID, "vision_feature_layer": -1, "tie_word_embeddings": False}
    return tf.LlavaForConditionalGeneration(tf.LlavaConfig(text_config=text, vision_config=vision, **more))


def gemma() -> Any:
    """A random Gemma 3, in which the tokens of an image see each other in both directions."""
    more = {"mm_tokens_per_image": 4, "image_token_index": IMAGE_ID}
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=TEXT, vision_config=VISION, **more))


def of_qwen(ids: list[int], seeds: list[int]) -> tuple[list[int], ImageInputs | None]:
    made = image_inputs(ids, [noise(seed) for seed in seeds])
    features = {name: made[name] for name in ("pixel_values", "image_grid_thw") if name in made}
    marks = {"mm_token_type_ids": made["mm_token_type_ids"][0]} if seeds else {}
    return made["input_ids"][0].tolist(), ImageInputs(marks=marks, features=features) if seeds else None


def of_pixels(ids: list[int], seeds: list[int], *, marks: str = "") -> tuple[list[int], ImageInputs | None]:
    """Each image is four tokens; what stands beside them is `marks`."""
    whole = [token for one in ids for token in [one] * (4 if one == IMAGE_ID else 1)]
    pixels = [torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    kinds = {marks: (torch.tensor(whole) == IMAGE_ID).long()} if marks else {}
    return whole, ImageInputs(marks=kinds, features={"pixel_values": torch.cat(pixels)}) if seeds else None


Reads = Callable[[list[int], list[int]], tuple[list[int], ImageInputs | None]]
MODELS: dict[str, tuple[Callable[[], Any], Reads]] = {"qwen2.5-vl": (tiny_image_model, of_qwen), "llava": (llava, of_pixels)}

PROMPTS = [
    ([5, IMAGE_ID, 6, 7], [1]),
    ([8, 9, 10], []),
    ([IMAGE_ID, 11, IMAGE_ID, 12, IMAGE_ID], [2, 3, 4]),
    ([12], []),
    ([IMAGE_ID, 13], [5]),
]
"""Token ids, and the seeds of the images: one, none, three, none, one."""

ANSWERS = ([20, 21, 22], [23], [24, 25], [26, 27, 28, 29], [30])


@cache
def model_of(name: str) -> Any:
    """In eval mode, its weights large enough that positions count; for padded and for packed rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name][0]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    use_our_attention(model, setting=SETTING)
    return model


def batch_of(name: str) -> Sampled:
    read = [MODELS[name][1](ids, seeds) for ids, seeds in PROMPTS]
    answers = [Completion(token_ids=ids, finish_reason="stop", weight_version=0) for ids in ANSWERS]
    pairs = [(ids, answer) for (ids, _), answer in zip(read, answers, strict=True)]
    return sequences_of(pairs, group_ids=range(len(pairs)), images=[images for _, images in read])


def blank_of(name: str) -> BlankPrompt:
    ids, images = MODELS[name][1]([IMAGE_ID], [99])
    assert images is not None
    return BlankPrompt(token_ids=torch.tensor(ids), images=images)


def measured(model: Any, micro: MicroBatch) -> tuple[list[torch.Tensor], float, dict[str, torch.Tensor]]:
    """Log-probs of each sequence; a loss in which each token has its own weight; and its gradients."""
    model.zero_grad()
    logprobs = micro.grid.spread(score_tokens(model, micro, temperatures=(1.0,)).logprobs[0])
    loss = -(logprobs * torch.arange(1.0, logprobs.numel() + 1).view_as(logprobs)).sum() / 100
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return list(logprobs.detach()), loss.item(), gradients


def largest(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_are_padded_rows(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    order = torch.tensor([3, 0, 2, 1, 4])
    expected, loss, gradients = measured(model, padded(batch, order, device=CPU))
    positions = image_positions(model)
    assert (positions is None) == (name == "llava"), "asked of the model itself"
    found, same_loss, same_gradients = measured(model, packed(batch, order, device=CPU, positions=positions))
    assert largest(found, expected) < CLOSE
    assert same_loss == pytest.approx(loss, abs=CLOSE)
    for part, gradient in gradients.items():
        assert float((same_gradients[part] - gradient).abs().max()) < CLOSE * max(1.0, float(gradient.abs().max())), part
    assert float(max(g.abs().max() for p, g in gradients.items() if "vis" in p)) > 100 * CLOSE, "images are trained"


@pytest.mark.parametrize("name", MODELS)
def test_positions_that_count_on_from_the_neighbour_are_seen(name: str) -> None:
    """Planted: positions of the whole row, as the model would make them of one long prompt."""
    model, batch = model_of(name), batch_of(name)
    order = torch.tensor([0, 2])
    expected, _, _ = measured(model, padded(batch, order, device=CPU))
    micro = packed(batch, order, device=CPU, positions=image_positions(model))
    first, second = batch.lengths[order].tolist()
    at = micro.inputs["position_ids"].clone()
    at[..., first:] += at[..., first - 1 : first] + torch.arange(second) % 2  # restarted positions alone differ by a constant
    faulty, _, _ = measured(model, MicroBatch(**vars(micro) | {"inputs": {**micro.inputs, "position_ids": at}}))
    assert largest(faulty[:1], expected[:1]) < CLOSE < 1e-3 < largest(faulty[1:], expected[1:])


def shared() -> dict[str, tuple[float, float]]:
    """For each model how far log-probs, and gradients relative to the largest, are from those of padded rows in one process."""
    axis = Mesh.of(World.join(need_group=True), sequence=2).sequence
    found = {}
    for name in MODELS:
        model, batch, text = model_of(name), batch_of(name), torch.tensor([1, 3])
        positions, blank = image_positions(model), blank_of(name)
        check_packing(lambda model=model, **inputs: model(**inputs).logits, model.config, device=CPU, setting="sp_size=2", axis=axis,
                      blank=blank, positions=positions)  # fmt: skip
        apart, moved = 0.0, 0.0
        for order in (torch.tensor([3, 0, 2, 1, 4]), text):
            expected, _, gradients = measured(model, padded(batch, order, device=CPU))
            micro = packed(batch, order, device=CPU, axis=axis, positions=positions, blank=blank)
            logprobs, _, parts = measured(model, micro)
            apart = max(apart, largest(logprobs, expected))
            for part in parts.values():
                dist.all_reduce(part, group=axis.group)
            most = max(float(one.abs().max()) for one in gradients.values())
            moved = max(moved, largest(list(parts.values()), list(gradients.values())) / most)
        found[name] = (apart, moved)
    return found


def test_ranks_that_share_a_row_with_images_compute_what_one_process_computes() -> None:
    for rank in run_spmd(shared, 2, timeout_s=240.0):
        for name, (logprobs, gradients) in rank.items():
            assert logprobs < CLOSE and gradients < CLOSE, name


def test_positions_by_hand() -> None:
    """An image of 2 x 2 tokens turns height and width alone, and what follows goes on after the larger of them."""
    batch = batch_of("qwen2.5-vl")
    micro = packed(batch, torch.tensor([1, 0]), device=CPU, positions=image_positions(model_of("qwen2.5-vl")))
    time = [0, 1, 2, 3, 0, 1, 1, 1, 1, 3, 4, 5, 6, 7]
    height = [0, 1, 2, 3, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7]
    width = [0, 1, 2, 3, 0, 1, 2, 1, 2, 3, 4, 5, 6, 7]
    assert micro.inputs["position_ids"].tolist() == [[time], [height], [width]]
    assert micro.inputs["mm_token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]]
    assert micro.inputs["cu_seq_lens_q"].tolist() == [0, 4, 14] and micro.inputs["max_length_q"] == 10
    assert len(micro.inputs["image_grid_thw"]) == 1
    plain = positions_of(torch.arange(4), torch.tensor([0, 3, 4]), [None, None], image_positions(model_of("qwen2.5-vl")))
    assert plain.tolist() == [[0, 1, 2, 0]]


def test_a_row_without_images_has_a_blank_one_that_trains_nothing() -> None:
    name = "qwen2.5-vl"
    model, batch, blank = model_of(name), batch_of(name), blank_of(name)
    text = torch.tensor([1, 3])
    batching = Batching(train_batch_size=1, micro_batch_size=1, token_budget=14, blank=blank, positions=image_positions(model))
    micro = batching.micro(batch, text, device=CPU)
    assert micro.inputs["cu_seq_lens_q"].tolist() == [0, 4, 9, 13] and len(micro.labels) == 5
    expected, _, gradients = measured(model, padded(batch, text, device=CPU))
    found, _, same = measured(model, micro)
    assert largest(found, expected) < CLOSE and largest(list(same.values()), list(gradients.values())) < CLOSE
    nothing = batching.micro(batch, text[:0], device=CPU)
    assert nothing.inputs["input_ids"].tolist() == [[IMAGE_ID] * 4] and len(nothing.labels) == 0
    assert batching.micro(batch, torch.tensor([0, 1]), device=CPU).num_tokens == 14, "one with an image needs no other"
    assert [part.tolist() for part in batching.micro_batches(batch, text)] == [[3, 1]], "9 of the 14 - 4 tokens that are left"
    assert [part.tolist() for part in batching.micro_batches(batch, torch.tensor([1, 4, 3]))] == [[4, 1], [3]]


def check(model: Any, name: str, forward: Any = None) -> None:
    use_our_attention(model, setting=SETTING)
    run = forward or (lambda **inputs: model(**inputs).logits)
    check_packing(run, model.config, device=CPU, setting=SETTING, blank=blank_of(name), positions=image_positions(model))


@pytest.mark.parametrize("name", MODELS)
def test_the_check_before_the_first_pass_lets_them_through(name: str) -> None:
    check(model_of(name), name)


def test_the_check_finds_positions_that_are_not_the_models() -> None:
    """Planted: a model of M-RoPE whose images count on like text."""
    model = model_of("qwen2.5-vl")
    config, blank = model.config, blank_of("qwen2.5-vl")
    with pytest.raises(ModelError, match="cannot be packed, where prompts have images: at the positions that it makes by itself"):
        check_packing(lambda **inputs: model(**inputs).logits, config, device=CPU, setting=SETTING, blank=blank, positions=None)


def test_images_that_see_in_both_directions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "gemma3", (gemma, lambda ids, seeds: of_pixels(ids, seeds, marks="token_type_ids")))
    model = gemma().eval()
    use_our_attention(model, setting=SETTING)
    check_packing(lambda **inputs: model(**inputs).logits, model.config, device=CPU, setting=SETTING)  # text alone can be
    words = (
        r"^packing_samples=True: models of type 'gemma3_text' cannot be packed, where prompts have images: .* in both directions "
        "or in blocks, which only their masks know; leave packing_samples out$"
    )
    with pytest.raises(ModelError, match=words):
        check(model, "gemma3")
