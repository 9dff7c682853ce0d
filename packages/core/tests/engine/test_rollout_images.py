"""Images as they may come to `gather_and_generate`, and what is said of those that cannot be read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.rollout.images import MAX_PIXELS, rgb_image
from lightrft.testing.image_text import END_ID, IMAGE_ID, START_ID, noise, tiny_image_folder, tiny_image_model
from lightrft.testing.judge import greedy_tokens
from lightrft.testing.spmd import run_spmd
from lightrft.types import SamplingParams

Image: Any = pytest.importorskip("PIL.Image", reason="images are Pillow's")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(source: Any, at: tuple[int, int] = (0, 0)) -> Any:
    image = rgb_image(source, where="here")
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_an_image_is_the_same_from_pil_path_and_bytes(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), RED)
    image.save(tmp_path / "red.png")
    for source in (image, tmp_path / "red.png", str(tmp_path / "red.png"), encoded(image)):
        assert rgb_image(source, where="here").tobytes() == image.tobytes()


def test_every_mode_becomes_rgb_of_eight_bits() -> None:
    assert pixel(encoded(Image.new("RGB", (2, 2), RED).convert("P"))) == RED
    assert pixel(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)
    assert pixel(Image.new("RGBA", (2, 2), (*RED, 0))) == (255, 255, 255), "what is transparent is white, not the colour behind it"
    assert pixel(Image.new("LA", (2, 2), (7, 255))) == (7, 7, 7)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)


@pytest.mark.parametrize(("deep", "expected"), [(0, 0), (257 * 100, 100), (65535, 255)])
def test_sixteen_bits_are_scaled(deep: int, expected: int) -> None:
    image = Image.new("I;16", (2, 2), deep)
    assert pixel(image) == pixel(encoded(image)) == (expected, expected, expected)


@pytest.mark.parametrize(("white", "kind"), [(1.0, "floats"), (255.0, "floats"), (255, "integers"), (65535, "integers")])
def test_pixels_of_32_bits_which_would_be_black_or_not_as_their_maker_meant_are_refused(white: float, kind: str) -> None:
    image = Image.new("F" if kind == "floats" else "I", (2, 2), white)
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(ValueError, match=f"here: no image that can be read: its pixels are {kind} of 32 bits, and nothing says which"):
            rgb_image(source, where="here")


def test_the_camera_s_turn_is_undone_and_of_an_animation_the_first_frame_counts() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned = rgb_image(encoded(image, exif=exif), where="here")
    assert turned.size == (1, 2) and turned.getpixel((0, 0)) == RED and turned.getpixel((0, 1)) == BLUE
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, BLUE)]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == RED


def gigantic() -> bytes:
    """A PNG of some 60 bytes that says that it has MAX_PIXELS + 8000 of them."""
    head = struct.pack(">IIBBBBB", 8000, MAX_PIXELS // 8000 + 1, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    whole = encoded(Image.frombytes("RGB", (64, 64), bytes(range(256)) * 48), "JPEG")
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for source, words in [
        (tmp_path / "absent.png", r"here \(.*absent.png\): no image that can be read: .*No such file"),
        (tmp_path / "torn.jpg", r"here \(.*torn.jpg\): no image that can be read: .*truncated"),
        (b"no image", "here: no image that can be read: Pillow finds no image in its 8 bytes, which begin with b'no image'"),
        (tmp_path / "empty.png", r"here \(.*empty.png\): no image that can be read: it is empty"),
        (Image.new("RGB", (0, 5)), "here: no image that can be read: it has 0 x 5 pixels, and 1 to 64000000 are read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "here: .*it is PostScript, a program, which is not run"),
        (torch.zeros(4, 4, 3).numpy(), r"here: .*found ndarray; bring a PIL image, .*; PIL.Image.fromarray makes one of uint8 \[height, w"),
        (gigantic(), r"here: no image that can be read: it has 8000 x 8001 pixels, and 1 to 64000000 are read; make it smaller"),
        (7, "here: no image that can be read: found int; bring a PIL image, a path, or the bytes of an image's file"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            rgb_image(source, where="here")
        assert "\n" not in str(caught.value)


PICTURE = [START_ID, IMAGE_ID, END_ID]
ASKED = [
    [([*PICTURE, 5], [1]), ([5, 6], []), ([*PICTURE, 5, *PICTURE, 6, *PICTURE], [2, 3, 1])],
    [([7], []), ([*PICTURE, 5], [4])],
]
"""Of each of two ranks: prompts, and the seeds of their images."""


def answers(folder: str, files: str) -> list[list[int]]:
    """Images come as paths on the first rank, as PIL images on the second."""
    world = World.join(need_group=True)
    group = neighbours(world, size=2)
    setup = EngineSetup(
        model_path=folder, dtype=torch.float32, device=world.device, seed=0, max_model_len=64, max_batch_size=4, mem_util=0.85,
        trust_remote_code=False, rank=group.rank, group_size=2, group=group.group,
    )  # fmt: skip
    unit = RolloutController(
        lambda: HFEngine(setup),
        spec=EngineSpec(name="hf", target="a:b", capabilities=HF_CAPABILITIES),
        world=world, group=group, dtype=torch.float32, sleep_level=1, seed=3, tokenize=lambda text: [1],
    )  # fmt: skip
    mine = ASKED[world.rank]
    outputs = unit.gather_and_generate(
        SamplingParams(temperature=0.0, max_new_tokens=4),
        prompt_token_ids=[prompt for prompt, _ in mine],
        prompts=None,
        images=[f"{files}/{seed}.png" if world.rank == 0 else noise(seed) for _, seeds in mine for seed in seeds],
        images_num=[len(seeds) for _, seeds in mine],
        sleep_engine=True,
        logprobs=False,
    )
    return [list(output.completions[0].token_ids) for output in outputs]


def test_each_rank_s_prompts_are_answered_with_their_own_images(tmp_path: Path) -> None:
    model = tiny_image_model(seed=1)
    folder = tiny_image_folder(tmp_path / "model", model)
    for seed in (1, 2, 3):
        noise(seed).save(tmp_path / f"{seed}.png")
    found = run_spmd(answers, 2, str(folder), str(tmp_path))
    for rank, asked in enumerate(ASKED):
        expected = [greedy_tokens(model, prompt, max_new_tokens=4, images=[noise(seed) for seed in seeds]) for prompt, seeds in asked]
        assert found[rank] == expected
