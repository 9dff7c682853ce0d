"""Images as callers bring them become what every processor takes: upright RGB images of 8 bits a channel."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

MAX_PIXELS = 64_000_000
"""More than any camera's; a file of a few kB can claim far more, and would fill the memory."""


def rgb_image(source: Any, *, where: str) -> Any:
    """A PIL image in RGB: of an animation the first frame, turned as its EXIF says, on white where it is transparent, 16 bits scaled to 8.

    `source` is a PIL image, a path, or the bytes of an image's file; `where` names it in errors.

    Raises:
        ValueError: anything else; a file that is missing, broken or cut off; more than `MAX_PIXELS`; Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError(f"{where}: images are read by Pillow, which is not installed; pip install 'lightrft[vision]'") from error
    name = f" ({os.fspath(source)})" if isinstance(source, (str, os.PathLike)) else ""
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_file(source))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width} x {height} pixels, and at most {MAX_PIXELS} are read; make it smaller")
        return _rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise ValueError(f"{where}{name}: no image that can be read: {' '.join(str(error).split()):.200}") from error


def as_data_uri(image: Any) -> str:
    """A PIL image, or the bytes of an image's file, as text. Raises TypeError for anything else."""
    if isinstance(image, (bytes, bytearray)):
        data = bytes(image)
    elif type(image).__module__.startswith("PIL."):
        file = io.BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
    else:
        raise TypeError(f"a {type(image).__name__} is no JSON, and no image")
    return "data:;base64," + base64.b64encode(data).decode()


def _file(source: Any) -> Any:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        return source
    raise TypeError(f"found {type(source).__name__}; bring a PIL image, a path, or the bytes of an image's file")


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, in 16 or 32: Pillow's own conversion cuts all above 255 off
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
