"""Videos as they may come to `gather_and_generate`, and what is said of those that cannot be read. Answers: test_videos.py of vLLM's."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.engine.image_reader import ImageReader
from lightrft.rollout.image_transport import png_of
from lightrft.rollout.images import MAX_PIXELS, read_picture
from lightrft.rollout.prompts import PromptSource, collect_requests, with_images_read
from lightrft.testing.image_text import VIDEO_ID, noise, tiny_image_folder, tiny_image_model
from lightrft.types import Video

Image: Any = pytest.importorskip("PIL.Image", reason="images are Pillow's")
COLOURS = ["red", "lime", "blue"]


def animation(kind: str) -> bytes:
    frames, file = [Image.new("RGB", (4, 2), colour) for colour in COLOURS], io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def test_a_video_is_the_same_from_frames_an_array_and_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 2), colour) for colour in COLOURS]
    frames[1].save(tmp_path / "1.png")
    (tmp_path / "all.gif").write_bytes(animation("GIF"))
    array = torch.stack([torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8).view(2, 4, 3) for frame in frames])
    for source in [
        tuple(frames), (frames[0], str(tmp_path / "1.png"), frames[2].convert("P")), array, array.numpy(), str(tmp_path / "all.gif"),
        animation("GIF"), animation("PNG"),
    ]:  # fmt: skip
        read = read_picture(Video(frames=source), where="here")
        assert [frame.tobytes() for frame in read.frames] == [frame.tobytes() for frame in frames]
        assert {frame.mode for frame in read.frames} == {"RGB"}


def test_what_is_no_video_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightrft.rollout.images.MAX_VIDEO_PIXELS", 20)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" * 9)
    small, whole = Image.new("RGB", (4, 2)), animation("GIF")
    for source, words in [
        ((), "here: a video of no frames; give one or more of one size"),
        ((small, Image.new("RGB", (2, 2))), r"here: a video of frames of 2 sizes, \[\(2, 2\), \(4, 2\)\]"),
        ((small, b"torn"), "here, frame 1: no image that can be read: Pillow finds no image in its 4 bytes"),
        (torch.zeros(3, 2, 4), r"here: a video of shape \[3, 2, 4\], torch.float32; give uint8 of \[frames, height, width, 3\]"),
        (
            str(tmp_path / "film.mp4"),
            r"here \(an animation that Pillow reads; of other videos bring the frames, as a list of images\) .*mp4",
        ),
        ((small,) * 3, "here: a video of more than 20 pixels in all its frames; bring fewer, or smaller ones"),
        (whole[: len(whole) // 2], "here"),
        (png_of(noise(1)), "here: a file of one frame, no animation; bring the frames of a video as a list"),
        (7, "here, frame 0: no image that can be read: found int"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            read_picture(Video(frames=source), where="here")
        assert "\n" not in str(caught.value)
    assert MAX_PIXELS > 20


def asked(**changes: Any) -> PromptSource:
    given: dict[str, Any] = dict(prompt_token_ids=[[1], [2]], prompts=None, images=None, images_num=None, logprobs=False)
    return PromptSource(**given | changes)


def test_videos_are_dealt_to_their_prompts_and_named_in_errors() -> None:
    one, two = [noise(1), noise(2)], [noise(3)]
    found = with_images_read(collect_requests(
        asked(images=[noise(5)], images_num=[0, 1], videos=[one, two, one], videos_num=[1, 2]), tokenize=lambda text: [1]
    ))  # fmt: skip
    shown = [[[f.tobytes() for f in i.frames] if isinstance(i, Video) else i.tobytes() for i in r.images] for r in found]
    of = [noise(seed).tobytes() for seed in range(6)]
    assert shown == [[[of[1], of[2]]], [of[5], [of[3]], [of[1], of[2]]]]
    with pytest.raises(ValueError, match=r"videos_num=\[1, 2\] does not fit 2 prompts and 1 videos"):
        collect_requests(asked(videos=[one], videos_num=[1, 2]), tokenize=lambda text: [1])
    torn = collect_requests(asked(images=[noise(5)], images_num=[0, 1], videos=[one, [b"torn"]], videos_num=[0, 2]), tokenize=len)
    with pytest.raises(ValueError, match="^all_videos, prompt 1, video 1, frame 0: no image that can be read"):
        with_images_read(torn)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here, and videos are read")
def test_without_torchvision_a_video_is_refused_in_one_line(tmp_path: Path) -> None:
    reader = ImageReader(str(tiny_image_folder(tmp_path, tiny_image_model())), trust_remote_code=False)
    words = "request 7 has 1 videos, and Qwen2_5_VLProcessor reads none here; name a model that does, or install torchvision"
    with pytest.raises(ValueError, match=words):
        reader.read([VIDEO_ID], [Video(frames=(noise(1),))], where="request 7")
