"""Images beside answers: small copies as text in the rows of a run's samples, and as HTML on its pages. No torch."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

from lightrft.types import frames_of

SIDE, MOST = 96, 4
"""Pixels of a copy's longer side; of one prompt so many images are kept."""

_OURS = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")


def small_copies(images: Sequence[Any]) -> list[str]:
    """The first `MOST` of a prompt's images (PIL, RGB; of a video the first frame) as data URIs of JPEG files, a few kB each; they stay as
    they are.
    """
    copies = []
    for image in images[:MOST]:
        copy, file = frames_of(image)[0].copy(), io.BytesIO()
        copy.thumbnail((SIDE, SIDE))
        copy.save(file, "JPEG", quality=80)
        copies.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return copies


def pictures(copies: object) -> str:
    """HTML of what `small_copies` made; of anything else in the place of one nothing."""
    found = copies if isinstance(copies, list) else []
    return "".join(f"<img alt='' src='{one}'>" for one in found if isinstance(one, str) and _OURS.fullmatch(one))
