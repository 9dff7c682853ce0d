"""Where a completion that ran on is cut: at the first stop string that ends behind what `min_new_tokens` asks for. Numbers by hand."""

from __future__ import annotations

import pytest

from lightrft.engine.stop_text import cut_at_stop
from lightrft.types import Completion


@pytest.mark.parametrize(
    ("text", "stop", "at_least", "expected"),
    [
        ("abcxb", ["b"], 0, "ab"),
        ("abcxb", ["b"], 1, "ab"),
        ("abcxbd", ["b"], 2, "abcxb"),
        ("abcxbd", ["b"], 3, "abcxb"),
        ("abcx", ["b"], 3, None),
        ("aabbcc", ["abb"], 3, "aabb"),
        ("aabbcc", ["abb"], 4, None),
        ("aabbabbc", ["abb", "zz"], 4, "aabbabb"),
        ("bbbbbb", ["bb"], 3, "bbbb"),
        ("abc", [], 2, None),
    ],
)
def test_a_stop_string_before_the_least_length_stops_nothing(text: str, stop: list[str], at_least: int, expected: str | None) -> None:
    ran_on = Completion(token_ids=[ord(char) for char in text], finish_reason="length", weight_version=0)
    found = cut_at_stop(ran_on, stop=stop, stop_token_ids=(), min_new_tokens=at_least, decode=lambda ids: "".join(map(chr, ids)))
    if expected is None:
        assert found == ran_on
    else:
        assert ("".join(map(chr, found.token_ids)), found.finish_reason) == (expected, "stop")
