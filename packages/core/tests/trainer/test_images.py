"""Training on prompts with images: what the models are given, what rewards see, and the same numbers on one rank and on two."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lightrft
from lightrft.demo.colours import write_colours
from lightrft.distributed.world import World
from lightrft.engine.hf import HFEngine
from lightrft.engine.image_reader import ImageReader
from lightrft.engine.request_images import RequestImages
from lightrft.errors import DataError, ImageError, UserError
from lightrft.experience.images import PromptImages
from lightrft.plugins.registry import Registry
from lightrft.testing.image_text import IMAGE_ID, SIDE, image_rows, noise, tiny_image_folder, tiny_image_model
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer.base_model import prepare_base_model
from lightrft.trainer.given import write_rows
from lightrft.types import Completion, RequestOutput, Sample

Image: Any = pytest.importorskip("PIL.Image", reason="images are Pillow's")


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "rows.jsonl"), "output_dir": str(folder / "run"),
        "strategy": "single", "engine_type": "hf", "rollout_batch_size": 4, "train_batch_size": 4, "n_samples_per_prompt": 2,
        "micro_train_batch_size": 2, "prompt_max_len": 24, "generate_max_len": 6, "learning_rate": 1e-3, "max_steps": 2, "plot_every": 0,
        "mixed_mm_data": True, "apply_chat_template": True, "kl_coef": 0.1, "logprob_gap_prompts": 4,
    } | more  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_image_folder(tmp_path / "model", tiny_image_model())
    image_rows(tmp_path, counts=[0, 1, 2, 0, 1, 2, 0, 1])
    return tmp_path


def test_a_run_on_text_and_images(folder: Path) -> None:
    seen: list[Any] = []

    def reward(samples: list[Any]) -> list[float]:
        seen.extend(samples)
        return [float(len(sample.token_ids) % 3) for sample in samples]

    summary = lightrft.train(lightrft.make_config(settings(folder)), rewards=[reward])
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "rollout/logprob_gap" in row]
    assert len(steps) == 2 and all(row["rollout/logprob_gap"] < 1e-5 for row in steps), steps
    assert all(row["train/grad_norm"] > 0 for row in steps)
    assert summary["steps"] == 2
    assert {len(sample.images) for sample in seen} == {0, 1, 2}
    assert all(sample.images[0].size == (SIDE, SIDE) for sample in seen if sample.images)


def engine_gets(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    read = RequestImages.read
    monkeypatch.setattr(RequestImages, "read", lambda self, request: read(self, replace(request, images=change(request))))


def white(request: Any) -> tuple[Any, ...]:
    return tuple(Image.new("RGB", image.size, "white") for image in request.images)


def blind_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_gets(monkeypatch, white)


def turned_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_gets(monkeypatch, lambda request: request.images[::-1])


def repeated_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_gets(monkeypatch, lambda request: request.images[:1] * len(request.images))


def of_another_prompt_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    last: list[Any] = []

    def change(request: Any) -> tuple[Any, ...]:
        last.append(request.images[0])
        return (last[-2] if len(last) > 1 else last[-1], *request.images[1:])

    engine_gets(monkeypatch, change)


def blind_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PromptImages._read
    monkeypatch.setattr(PromptImages, "_read", lambda self, prompt, pictures: made(self, prompt, white(Sample(images=pictures, **NOTHING))))


def no_image_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = ImageReader.read
    monkeypatch.setattr(
        ImageReader, "read", lambda self, ids, images, where: processor(self, ids, white(Sample(images=images, **NOTHING)), where=where)
    )


NOTHING: dict[str, Any] = {"prompt": "", "completion": ""}
DIFFER = r"engine 'hf' and the trainer differ by .* on prompts with images .*: one of them gets other images, or in another order"


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (blind_engine, "^engine 'hf' does not see the images: with a blank one in the place of the true one no log-prob of 3 answers"),
        (blind_trainer, "^the trainer does not see the images: with a blank one"),
        (no_image_at_all, "^the trainer and engine 'hf' do not see the images"),
        (turned_in_the_engine, DIFFER),
        (repeated_in_the_engine, DIFFER),
        (of_another_prompt_in_the_engine, DIFFER),
    ],
)
def test_a_run_that_does_not_see_its_images_ends_before_it_learns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plant: Any, words: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(ImageError, match=words):
        lightrft.train(lightrft.make_config(settings(folder)), rewards=[lambda samples: [1.0] * len(samples)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_mm_data": False}, r"rows.jsonl:1: the row has no image, and 5 of 8 rows have; if that is meant, set --mixed_mm_data"),
        ({"environment": "guess_number", "max_turns": 2}, "the prompts have images, which episodes do not show"),
        ({"prompt_max_len": 12}, r"rows.jsonl:2: the prompt has 13 tokens with those of its images, more than prompt_max_len=12"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_loads(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, words: str) -> None:
    monkeypatch.setattr(HFEngine, "__init__", None)  # never made
    with pytest.raises(UserError) as caught:
        lightrft.train(lightrft.make_config(settings(folder, **changes)), rewards=[lambda samples: [1.0] * len(samples)])
    assert re.search(words, "\n".join([str(caught.value), *getattr(caught.value, "problems", [])]))


@pytest.mark.parametrize("where", ["prompt_data", "eval_data"])
def test_a_text_model_with_rows_of_images_names_the_row_and_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(HFEngine, "__init__", None)  # never made
    tiny_model_folder(folder / "text")
    (folder / "plain.jsonl").write_text(json.dumps({"prompt": "1 =", "answer": "1"}) + "\n")
    named = {"prompt_data": str(folder / "plain.jsonl"), "eval_data": [str(folder / "rows.jsonl")]} if where == "eval_data" else {}
    config = settings(folder, model_name_or_path=str(folder / "text"), apply_chat_template=False, **named)
    with pytest.raises(DataError) as caught:
        lightrft.train(lightrft.make_config(config), rewards=[lambda samples: [1.0] * len(samples)])
    assert str(caught.value) == (
        f"{folder / 'rows.jsonl'}:2: the prompt has images (1), and the model {str(folder / 'text')!r} reads text alone; name an "
        "image-text model, or leave them out (images_key '')"
    )


def test_images_in_the_evaluation_alone_are_read_and_leave_nothing_to_check(folder: Path) -> None:
    (folder / "text.jsonl").write_text("".join(json.dumps({"prompt": f"{i} =", "answer": "1"}) + "\n" for i in range(4)))
    config = settings(folder, prompt_data=str(folder / "text.jsonl"), eval_data=[str(folder / "rows.jsonl")], max_steps=1)
    summary = lightrft.train(lightrft.make_config(config), rewards=[lambda samples: [float(len(s.images)) for s in samples]])
    assert summary["eval_after"]["reward"] == pytest.approx(7 / 8)


def test_a_damaged_file_is_named_with_its_row(folder: Path) -> None:
    (folder / "pictures" / "1-0.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match=r"rows.jsonl:2, image 0 \(.*1-0.png\): no image that can be read"):
        lightrft.train(lightrft.make_config(settings(folder)), rewards=[lambda samples: [1.0] * len(samples)])


def test_what_the_processor_refuses_is_told_with_row_file_and_size(folder: Path) -> None:
    Image.new("RGB", (500, 1)).save(folder / "pictures" / "1-0.png")
    words = r"rows.jsonl:2 \(1-0.png\): the model's processor refuses its images \(pixels: 500 x 1\): ValueError: absolute aspect ratio"
    with pytest.raises(DataError, match=words):
        lightrft.train(lightrft.make_config(settings(folder)), rewards=[lambda samples: [1.0] * len(samples)])


def test_images_in_memory_are_kept_as_they_are_read(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    write_rows(tmp_path / "rows.jsonl", [{"images": picture}])
    uri = json.loads((tmp_path / "rows.jsonl").read_text())["images"]
    kept = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (kept.mode, kept.size, kept.getpixel((0, 0))) == ("RGB", (1, 2), (255, 0, 0))
    for value, words in [(Image.new("F", (2, 2), 1.0), "its pixels are floats of 32 bits"), (object(), "a object is no JSON")]:
        with pytest.raises(DataError, match=f"row 1 of rows holds what is no JSON .*{words}"):
            write_rows(tmp_path / "rows.jsonl", [{}, {"images": [value]}])


def test_large_images_are_made_smaller(folder: Path) -> None:
    images = PromptImages(None, world=World.alone(), max_pixels=50)
    assert images._small(Image.new("RGB", (20, 10))).size == (10, 5)
    assert images._small(Image.new("RGB", (5, 10))).size == (5, 10)


def test_completions_end_before_a_token_that_stands_for_an_image(folder: Path) -> None:
    images = PromptImages(ImageReader(str(folder / "model"), trust_remote_code=False), world=World.alone())
    drawn = [
        Completion(token_ids=ids, finish_reason="stop", weight_version=0, logprobs=[-1.0] * 3) for ids in ([5, IMAGE_ID, 6], [5, 6, 7])
    ]
    [output], number = images.without_reserved([RequestOutput(id=0, prompt_token_ids=[3], completions=tuple(drawn))])
    assert number == 1
    assert [(list(c.token_ids), c.finish_reason, len(c.logprobs or ())) for c in output.completions] == [
        ([5], "abort", 1),
        ([5, 6, 7], "stop", 3),
    ]


def test_generate_evaluate_and_a_row_in_memory(folder: Path) -> None:
    config = {key: value for key, value in settings(folder).items() if key in CHOSEN}
    picture = noise(3)
    rows = [{"prompt": "2 + 1 =", "images": [picture]}, {"prompt": "2 + 1 =", "images": []}]
    [[seen], [plain]] = lightrft.generate(config, rows, greedy=True)
    assert seen.images[0].tobytes() == picture.tobytes() and plain.images == ()
    assert list(seen.token_ids) != list(plain.token_ids)


CHOSEN = ("model_name_or_path", "strategy", "engine_type", "prompt_max_len", "generate_max_len", "mixed_mm_data", "apply_chat_template")


def test_a_warm_up_sees_the_images(folder: Path) -> None:
    """Answers that only the image tells are imitated: the loss falls below what a guess among eight can reach."""
    write_colours(folder / "colours", seed=0, num_train=48, num_eval=4)
    lines = []
    config = settings(
        folder, prompt_data=str(folder / "colours" / "train.jsonl"), model_name_or_path=str(folder / "colours" / "model"), sft_steps=120,
        sft_batch_size=16, sft_learning_rate=2e-3, mixed_mm_data=False, max_steps=1, prompt_max_len=32,
    )  # fmt: skip
    path = prepare_base_model(lightrft.make_config(config), folder=folder / "base", registry=Registry.discover(), log=lines.append)
    loss = float(lines[-1].split("loss ")[1].split(",")[0])
    assert loss < 0.5 < math.log(8) / 2, "of two tokens, the letter and the end"
    assert (path / "preprocessor_config.json").is_file()
