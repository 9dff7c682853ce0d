"""Whether the completion has the asked form: some reasoning, then `#### NUMBER`, once, as its very end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightrft.types import Sample

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
"""With or without thousands separators and decimals; no sign."""

_ENDING = re.compile(rf"(?<!#)#### -?{NUMBER}\Z")


def format_reward(samples: Sequence[Sample]) -> list[float]:
    """1.0 for a completion with a body that is not blank, then exactly one `#### NUMBER`, then nothing at all; else 0.0."""
    return [float(_has_form(sample.completion)) for sample in samples]


def _has_form(completion: str) -> bool:
    ending = _ENDING.search(completion)
    return ending is not None and bool(completion[: ending.start()].strip()) and completion.count("####") == 1
