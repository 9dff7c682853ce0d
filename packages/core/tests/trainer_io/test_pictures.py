"""Images of prompts stand beside the answers on a run's page: small copies, and nothing else that a row may hold in their place."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest

from lightrft.run.pictures import MOST, SIDE, pictures, small_copies
from lightrft.run.report_page import samples
from lightrft.run.rollout_log import _row
from lightrft.trainer.evaluate import _with_pictures
from lightrft.types import Sample

Image: Any = pytest.importorskip("PIL.Image", reason="images are Pillow's")


def test_a_row_keeps_small_copies_and_the_page_shows_them() -> None:
    large = Image.new("RGB", (960, 480), (255, 0, 0))
    row = _row(3, Sample(prompt="what <colour>?", completion="red", images=(large,) * (MOST + 1)), 1.0)
    assert large.size == (960, 480) and len(row["images"]) == MOST
    copy = Image.open(io.BytesIO(base64.b64decode(row["images"][0].partition(",")[2])))
    assert copy.format == "JPEG" and copy.size == (SIDE, SIDE // 2) and copy.getpixel((5, 5))[0] > 240
    shown = samples([row])
    assert shown.count(f"<img alt='' src='{row['images'][0]}'>") == MOST and "what &lt;colour&gt;?" in shown


def test_a_row_without_images_is_as_it_was() -> None:
    assert "images" not in _row(3, Sample(prompt="p", completion="c"), 1.0)


@pytest.mark.parametrize("hostile", ["data:image/svg+xml;base64,AAAA", "http://x/y.jpg", "data:image/jpeg;base64,AA' onerror='x", 3, None])
def test_what_is_no_copy_is_not_shown(hostile: object) -> None:
    [good] = small_copies([Image.new("RGB", (4, 4))])
    assert pictures([hostile, good]) == f"<img alt='' src='{good}'>"
    assert pictures(hostile) == ""


def test_of_an_evaluation_the_best_median_and_worst_keep_theirs() -> None:
    found = [Sample(prompt="p", completion="c", images=(Image.new("RGB", (4, 4)),)) for _ in range(20)]
    rows = _with_pictures([{"reward": float(number)} for number in range(20)], found)
    assert [row["reward"] for row in rows if "images" in row] == [0.0, 1.0, 9.0, 10.0, 18.0, 19.0]
