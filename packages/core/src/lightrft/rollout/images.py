"""Images as callers bring them become what every processor takes: upright RGB images of 8 bits a channel."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightrft.types import Video

MAX_PIXELS = 64_000_000
"""More than any camera's; a file of a few kB can claim far more, and would fill the memory."""

TORN = (OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError)
"""What Pillow's readers raise over damaged files."""

MAX_VIDEO_PIXELS = 4 * MAX_PIXELS
"""Of all frames together: 300 of 720 x 1280."""


def rgb_image(source: Any, *, where: str) -> Any:
    """A PIL image in RGB: of an animation the first frame, turned as its EXIF says, on white where it is transparent, 16 bits scaled to 8.

    `source` is a PIL image, a path, or the bytes of an image's file; `where` names it in errors.

    Raises:
        ValueError: anything else; a file that is missing, broken or cut off; pixels of 32 bits, or none, or more than `MAX_PIXELS`;
            Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ValueError(f"{where}: images are read by Pillow, which is not installed; pip install 'lightrft[vision]'") from error
    name = f" ({os.fspath(source)})" if isinstance(source, (str, os.PathLike)) else ""
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_file(source))
        _check_pixels(image)
        return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError(f"{where}{name}: no image that can be read: {_unknown(source)}") from None
    except (*TORN, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}{name}: no image that can be read: {' '.join(str(error).split()):.200}") from error


def read_picture(source: Any, *, where: str) -> Any:
    """An image as `rgb_image`; of a `Video` one whose frames are such images. Raises ValueError as `rgb_image`, or as follows.

    Raises:
        ValueError: no frames, frames of different sizes, more than `MAX_VIDEO_PIXELS`, or a file that is no animation.
    """
    if not isinstance(source, Video):
        return rgb_image(source, where=where)
    frames = tuple(_frames(source.frames, where=where))
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        found = f"frames of {len(sizes)} sizes, {sorted(sizes)[:3]}" if sizes else "no frames"
        raise ValueError(f"{where}: a video of {found}; give one or more of one size")
    return Video(frames=frames)


def _frames(source: Any, *, where: str) -> Iterator[Any]:
    one_file = isinstance(source, (str, os.PathLike, bytes, bytearray))
    images = _animation(source, where=where) if one_file else _of_array(source, where=where)
    pixels = 0
    for number, image in enumerate(images):
        frame = rgb_image(image, where=f"{where}, frame {number}")
        pixels += frame.size[0] * frame.size[1]
        if pixels > MAX_VIDEO_PIXELS:
            raise ValueError(f"{where}: a video of more than {MAX_VIDEO_PIXELS} pixels in all its frames; bring fewer, or smaller ones")
        yield frame


def _animation(source: Any, *, where: str) -> Iterator[Any]:
    """The frames of a GIF, WebP or PNG."""
    rgb_image(source, where=f"{where} (an animation that Pillow reads; of other videos bring the frames, as a list of images)")
    from PIL import Image, ImageSequence

    with Image.open(_file(source)) as image:
        with _readable(where):
            number = getattr(image, "n_frames", 1)
        if number == 1:
            raise ValueError(f"{where}: a file of one frame, no animation; bring the frames of a video as a list")
        frames = ImageSequence.Iterator(image)
        for _ in range(number):
            with _readable(where):
                frame = next(frames).copy()
            yield frame


@contextmanager
def _readable(where: str) -> Iterator[None]:
    from PIL import Image

    try:
        yield
    except (*TORN, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: an animation that cannot be read to its end: {' '.join(str(error).split()):.200}") from error


def _of_array(source: Any, *, where: str) -> Iterable[Any]:
    """The frames of a list as they are, of an array uint8 [T, H, W, 3] as PIL images."""
    if not hasattr(source, "shape"):
        return source if isinstance(source, (list, tuple)) else [source]
    from PIL import Image

    if len(source.shape) != 4 or source.shape[-1] != 3 or not str(source.dtype).endswith("uint8"):
        shape = list(source.shape)
        raise ValueError(
            f"{where}: a video of shape {shape}, {source.dtype}; give uint8 of [frames, height, width, 3], or a list of images"
        )
    return (Image.fromarray(frame.numpy() if hasattr(frame, "numpy") else frame) for frame in source)


def as_data_uri(image: Any) -> str:
    """A PIL image as `rgb_image` reads it, or the bytes of an image's file, as text. Raises as that, and TypeError for anything else."""
    if isinstance(image, (bytes, bytearray)):
        data = bytes(image)
    elif type(image).__module__.startswith("PIL."):
        file = io.BytesIO()
        rgb_image(image, where="an image").save(file, "PNG")
        data = file.getvalue()
    else:
        raise TypeError(f"a {type(image).__name__} is no JSON, and no image")
    return "data:;base64," + base64.b64encode(data).decode()


def _file(source: Any) -> Any:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        return source
    made = "; PIL.Image.fromarray makes one of uint8 [height, width, 3]" if hasattr(source, "shape") else ""
    raise TypeError(f"found {type(source).__name__}; bring a PIL image, a path, or the bytes of an image's file{made}")


def _check_pixels(image: Any) -> None:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, and 1 to {MAX_PIXELS} are read; make it {'smaller' if width else 'larger'}")
    # Pillow would take 255 for white in both: what goes from 0 to 1 became black. Of 16 bits, its older readers make 32 in two formats.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floats" if image.mode == "F" else "integers"
        raise ValueError(f"its pixels are {kind} of 32 bits, and nothing says which of them is white; bring 8 or 16 bits")
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program, which is not run here; bring PNG or JPEG")


def _unknown(source: Any) -> str:
    """Of a file in which Pillow finds nothing: how long it is, and what its begin says."""
    with open(source, "rb") if isinstance(source, (str, os.PathLike)) else io.BytesIO(source) as file:
        first, size = file.read(16), file.seek(0, os.SEEK_END)
    return f"Pillow finds no image in its {size} bytes, which begin with {first!r}" if first else "it is empty"


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, in 16 or 32: Pillow's own conversion clips all above 255
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
