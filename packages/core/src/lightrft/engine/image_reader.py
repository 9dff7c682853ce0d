"""What a transformers model is given for a prompt with images: its processor's own tokens and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from lightrft.types import Video, frames_of
from lightrft.weights.model_class import tells_images_by_runs


@dataclass(frozen=True, kw_only=True)
class PromptWithImages:
    """`token_ids` [P'], in which each image has all of its tokens. Beside them the forward pass takes `marks` [1, P'] of the tokens' kinds
    and `features` (pixels, grids, sizes), whose first axis counts images or their patches.
    """

    token_ids: list[int]
    marks: Mapping[str, torch.Tensor]
    features: Mapping[str, torch.Tensor]


class ImageReader:
    """The processor of a model folder. Raises ValueError where there is none that reads images."""

    def __init__(self, model_path: str, *, trust_remote_code: bool) -> None:
        self._processor = _load_processor(model_path, trust_remote_code=trust_remote_code)
        self._path, self._trusted = model_path, trust_remote_code
        self.token = str(getattr(self._processor, "image_token", None) or "")
        """The text that stands for an image in a prompt."""
        if not self.token:
            raise ValueError(f"{model_path!r}: {type(self._processor).__name__} names no image token; images cannot be placed in a prompt")
        self.video_token = str(getattr(self._processor, "video_token", None) or "")
        """The same of a video; empty where the model reads none, or the processor's part for them is not there."""
        if getattr(self._processor, "video_processor", None) is None:
            self.video_token = ""
        tokenizer = self._processor.tokenizer
        self._token_id = int(tokenizer.convert_tokens_to_ids(self.token))
        self._video_id = int(tokenizer.convert_tokens_to_ids(self.video_token)) if self.video_token else None
        kinds = [getattr(self._processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        self.reserved = frozenset(int(tokenizer.convert_tokens_to_ids(str(token))) for token in kinds if token)
        """The tokens that models take for a place of an image (a video, a sound), wherever they stand."""
        self._between, self._between_id = tokenizer.eos_token, tokenizer.eos_token_id

    def count(self, token_ids: Sequence[int]) -> int:
        """The image tokens of a prompt."""
        return sum(token == self._token_id for token in token_ids)

    def check_count(self, token_ids: Sequence[int], images: Sequence[Any], *, where: str) -> None:
        """Raises ValueError where there are not as many image tokens as images, or video tokens as videos."""
        videos = sum(isinstance(one, Video) for one in images)
        if videos and not self.video_token:
            raise ValueError(
                f"{where} has {videos} videos, and {type(self._processor).__name__} reads none here; name a model that does, or install "
                "torchvision, which transformers reads them by"
            )
        counts = [("image", self.token, self.count(token_ids), len(images) - videos)]
        counts += [("video", self.video_token, sum(token == self._video_id for token in token_ids), videos)] if videos else []
        for kind, token, number, brought in counts:
            if number != brought:
                raise ValueError(
                    f"{where}: the prompt has {number} {kind} tokens ({token}) for {brought} {kind}s; write one for each {kind}"
                )

    def read(self, token_ids: Sequence[int], images: Sequence[Any], *, where: str) -> PromptWithImages:
        """Puts an image's tokens in the place of its image token. The prompt's own tokens stay as they are: no text is encoded again.

        `images` are PIL images in RGB and videos of such frames, each kind in the order of its tokens; `where` names the prompt in errors.

        Raises:
            ValueError: as `check_count`; the processor refuses them; or two stand side by side, which the model takes for one.
        """
        self.check_count(token_ids, images, where=where)
        videos = [list(one.frames) for one in images if isinstance(one, Video)]
        places = {self._token_id: self.token} | ({self._video_id: self.video_token} if videos else {})
        given: dict[str, Any] = {"videos": videos, "videos_kwargs": _as_they_are(videos)} if videos else {}
        if len(videos) < len(images):
            given["images"] = [[one for one in images if not isinstance(one, Video)]]
        text = self._between.join(places[token] for token in token_ids if token in places)
        try:
            made = self._processor(**given, text=[text], add_special_tokens=False, return_tensors="pt")
        except Exception as error:  # a library's own, of any kind
            sizes = ", ".join("{} x {}".format(*frames_of(one)[0].size) for one in images[:MANY])
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            raise ValueError(f"{where}: the model's processor refuses its images (pixels: {sizes}): {reason}") from error
        row = made["input_ids"]
        pieces = iter(_pieces(row[0].tolist(), self._between_id))
        own = row.shape[1]  # stands for a token of the prompt in `source`, which has places in `row`
        source = [place for t in token_ids for place in (next(pieces) if t in places else [own])]
        prompt = iter([t for t in token_ids if t not in places])
        whole = [next(prompt) if place == own else int(row[0, place]) for place in source]
        named = {name: made[name] for name in made if name not in _TEXT}
        # What has an entry for each token of `row` gets one for each token of the prompt, 0 where that is text.
        marks = {name: torch.nn.functional.pad(v, (0, 1))[:, source] for name, v in named.items() if v.shape == row.shape}
        joined = [at for at in range(1, len(source)) if source[at - 1] != own != source[at] and source[at] != source[at - 1] + 1]
        if any(kind[0, at - 1] == kind[0, at] != 0 for kind in marks.values() for at in joined):
            self._refuse_side_by_side(where)
        return PromptWithImages(token_ids=whole, marks=marks, features={name: v for name, v in named.items() if name not in marks})

    def _refuse_side_by_side(self, where: str) -> None:
        """Raises ValueError where the model could not tell two images apart that have no token between them."""
        config = AutoConfig.from_pretrained(self._path, trust_remote_code=self._trusted)
        if tells_images_by_runs(config):
            raise ValueError(
                f"{where}: two images stand side by side, and a model of type {config.model_type!r} tells them apart by the tokens between "
                "them; set apply_chat_template, which writes some, or write text between"
            )

    def blank(self) -> PromptWithImages:
        """A white image, and nothing else."""
        from PIL import Image

        return self.read([self._token_id], [Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), "white")], where="a blank image")


_TEXT = ("input_ids", "attention_mask")
MANY = 8
"""Images whose sizes an error says."""

BLANK_SIDE = 56
"""Pixels; processors that want more make it larger."""


FRAMES_PER_SECOND = 24.0
"""Of videos, whose frames say no time: what transformers takes where nothing is told."""


def video_facts(frames: Sequence[Any]) -> dict[str, Any]:
    """What a library is told of a video's frames: all of them are shown, at `FRAMES_PER_SECOND`."""
    number = len(frames)
    seconds = number / FRAMES_PER_SECOND
    return {"total_num_frames": number, "fps": FRAMES_PER_SECOND, "duration": seconds, "frames_indices": list(range(number))}


def _as_they_are(videos: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"do_sample_frames": False, "video_metadata": [video_facts(frames) for frames in videos]}


def _pieces(tokens: list[int], between: int) -> list[list[int]]:
    """The places of each image's tokens."""
    pieces: list[list[int]] = [[]]
    for place, token in enumerate(tokens):
        if token == between:
            pieces.append([])
        else:
            pieces[-1].append(place)
    return pieces


def _load_processor(model_path: str, *, trust_remote_code: bool) -> Any:
    automatic: Any = AutoProcessor
    try:
        try:
            return automatic.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        except ImportError:
            return _without_videos(model_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        missing = isinstance(error, ImportError) or "to be installed" in reason
        remedy = "install what it asks for" if missing else "copy the model's preprocessor_config.json"
        raise ValueError(f"{model_path!r} has no processor for images: {reason:.200}; {remedy}") from error


def _without_videos(model_path: str, *, trust_remote_code: bool) -> Any:
    """The processor for images and text, where that for videos needs a library (torchvision) that is not here."""
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    mapping: Any = PROCESSOR_MAPPING
    known: Any = mapping[type(config)]
    unchecked: Any = type(known.__name__, (known,), {"check_argument_for_proper_class": lambda self, name, part: type(part)})
    load: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    names = unchecked.get_attributes()
    parts = [load[n].from_pretrained(model_path, trust_remote_code=trust_remote_code) if n in load else None for n in names]
    settings, _ = unchecked.get_processor_dict(model_path)
    return unchecked.from_args_and_dict(parts, settings)
