"""The reference engine reads images as transformers does, in families of different designs, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.testing.image_text import END_ID, IMAGE_ID, SIDE, START_ID, image_tokenizer, noise, tiny_image_folder, tiny_image_model
from lightrft.testing.tiny import EOS_ID, PAD_ID, tiny_causal_lm
from lightrft.types import Request, SamplingParams
from lightrft.weights.model_class import reads_images

pytest.importorskip("PIL", reason="images are Pillow's")
tf: Any = transformers
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=6, ignore_eos=True)
TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32,
    "num_key_value_heads": 1, "max_position_embeddings": 1024, "pad_token_id": PAD_ID, "bos_token_id": None, "eos_token_id": EOS_ID,
}  # fmt: skip
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": SIDE // 2,
}


def qwen_vl(folder: Path) -> Any:
    model = tiny_image_model(seed=1)
    tiny_image_folder(folder, model)
    return model


def llava(folder: Path) -> Any:
    """An image is its patches, projected, and a token of the class that is dropped."""
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**VISION), image_token_id=IMAGE_ID, image_token_index=IMAGE_ID
    )
    torch.manual_seed(1)
    model = tf.LlavaForConditionalGeneration(config).eval()
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return _saved(folder, model, tf.LlavaProcessor(
        images, image_tokenizer(), patch_size=SIDE // 2, vision_feature_select_strategy="default", image_token="<|image_pad|>",
        num_additional_image_tokens=1,
    ))  # fmt: skip


def _saved(folder: Path, model: Any, processor: Any) -> Any:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


FAMILIES = {"qwen2.5-vl": (qwen_vl, [START_ID, IMAGE_ID, END_ID]), "llava": (llava, [IMAGE_ID])}


def engine_on(folder: Path, **changes: Any) -> HFEngine:
    values: dict[str, Any] = dict(
        model_path=str(folder), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=64, max_batch_size=3, mem_util=0.85,
        trust_remote_code=False, rank=0, group_size=1, group=None,
    )  # fmt: skip
    return HFEngine(EngineSetup(**values | changes))


def inputs_of(folder: Path, kind: str, prompt: list[int], images: list[Any]) -> dict[str, torch.Tensor]:
    """What the forward pass takes, written out here: each image's four tokens, one after the other, and what the image processor says."""
    ids = torch.tensor([[t for token in prompt for t in [token] * (4 if token == IMAGE_ID else 1)]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not images:
        return inputs
    seen = dict(tf.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt"))
    return inputs | seen | ({"mm_token_type_ids": (ids == IMAGE_ID).long()} if kind == "qwen2.5-vl" else {})


@pytest.mark.parametrize("kind", FAMILIES)
def test_answers_and_logprobs_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    make, image = FAMILIES[kind]
    model = make(tmp_path)
    engine = engine_on(tmp_path)
    a, b, c = noise(1), noise(2), noise(3)
    asked: list[tuple[list[int], list[Any]]] = [
        ([*image, 5, 6], [a]), ([5, 6, 7], []), ([3, *image, 5, *image, 6, *image], [a, b, c]), ([*image, 5, 6], [b]), ([9], []),
    ]  # fmt: skip
    requests = [Request(id=i, prompt_token_ids=p, seed=i, logprobs=True, images=tuple(seen)) for i, (p, seen) in enumerate(asked)]
    outputs = engine.generate(requests, GREEDY)
    assert [output.id for output in outputs] == list(range(5))
    for (prompt, images), output in zip(asked, outputs, strict=True):
        inputs = inputs_of(tmp_path, kind, prompt, images)
        made = model.generate(**inputs, max_new_tokens=6, eos_token_id=-1, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert list(output.completions[0].token_ids) == made.tolist()
        assert list(output.prompt_token_ids) == prompt
    compared = 0
    sampled = engine.generate(requests, SamplingParams(n=2, max_new_tokens=6, ignore_eos=True))
    for output, (prompt, images) in zip(sampled, asked, strict=True):
        assert output.completions[0].token_ids != output.completions[1].token_ids
        for completion in output.completions:
            inputs = inputs_of(tmp_path, kind, prompt, images)
            width = inputs["input_ids"].shape[1]
            answer = torch.tensor([list(completion.token_ids)])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 6))
            if IMAGE_ID in completion.token_ids:
                continue  # the model takes it for a place of an image, and wants one
            with torch.no_grad():
                expected = model(**inputs).logits[0, width - 1 : -1].log_softmax(-1).gather(-1, answer[0][:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)
            compared += 1
    assert compared >= 6


def test_another_image_gives_another_distribution(tmp_path: Path) -> None:
    make, image = FAMILIES["llava"]
    make(tmp_path)
    engine = engine_on(tmp_path)
    asked = SamplingParams(temperature=0.0, max_new_tokens=1)
    found = [
        engine.generate([Request(id=0, prompt_token_ids=[*image, 5], seed=0, logprobs=True, images=(noise(seed),))], asked)[0]
        for seed in (1, 2, 1)
    ]
    first, second, again = (output.completions[0].logprobs for output in found)
    assert first == again and first != second


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([5, 6], r"request 7: the prompt has 0 image tokens \(<\|image_pad\|>\) for 1 images; write one for each image"),
        ([IMAGE_ID, IMAGE_ID], r"the prompt has 2 image tokens .* for 1 images"),
        ([5] * 58 + [IMAGE_ID] + [6] * 2, r"a prompt of 64 tokens, its 1 images included, leaves no room in a context of 64"),
    ],
)
def test_prompts_that_do_not_fit_their_images_are_refused(tmp_path: Path, prompt: list[int], words: str) -> None:
    qwen_vl(tmp_path)
    with pytest.raises(ValueError, match=words):
        engine_on(tmp_path).generate([Request(id=7, prompt_token_ids=prompt, seed=0, images=(noise(0),))], GREEDY)


def test_images_side_by_side_are_refused_where_the_model_takes_them_for_one_and_read_where_not(tmp_path: Path) -> None:
    """Without a chat template nothing stands between them; transformers' own error was about the shape of a tensor."""
    asked = Request(id=7, prompt_token_ids=[IMAGE_ID, IMAGE_ID, 5], seed=0, images=(noise(0), noise(1)))
    qwen_vl(tmp_path / "qwen")
    words = "^request 7: two images stand side by side, and a model of type 'qwen2_5_vl' tells them apart by .*; set apply_chat_template"
    with pytest.raises(ValueError, match=words):
        engine_on(tmp_path / "qwen").generate([asked], GREEDY)
    llava(tmp_path / "llava")
    assert len(engine_on(tmp_path / "llava").generate([asked], GREEDY)[0].completions[0].token_ids) == 6


def test_a_text_model_and_a_folder_without_processor_refuse_images(tmp_path: Path) -> None:
    request = Request(id=7, prompt_token_ids=[IMAGE_ID], seed=0, images=(noise(0),))
    tiny_causal_lm(vocab_size=64).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="request 7 has 1 images, but Qwen3ForCausalLM of .* reads text alone"):
        engine_on(tmp_path / "text").generate([request], GREEDY)
    tiny_image_model().save_pretrained(tmp_path / "bare")
    image_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no processor for images: .*preprocessor_config.json"):
        engine_on(tmp_path / "bare").generate([request], GREEDY)


def test_of_a_family_whose_text_part_alone_is_loaded_no_images_are_read() -> None:
    """Llama 4 was loaded without its vision model, and images were refused for the names of its weights."""
    assert reads_images(tf.Qwen2_5_VLConfig()) and reads_images(tf.Gemma3Config()) and reads_images(tf.Mistral3Config())
    assert not reads_images(tf.Llama4Config()) and not reads_images(tf.Qwen3_5Config()) and not reads_images(tf.Qwen3Config())
