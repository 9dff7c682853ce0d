"""Special tokens inside completions, which the text that rewards read does not have: tags such as `<think>` that are special tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightrft.types import Sample

METRIC = "rollout/special_tokens"
FRACTION = 0.1
"""Fraction of a rollout's completions from which on it is told: a model that draws such a token now and then means nothing by it."""
NAMED = 4


class TagWatch:
    """Counts completions with special tokens beside their end, padding, and the tokenizer's own marks. Local."""

    def __init__(self, tokenizer: Any, *, ends: Collection[int]) -> None:
        own = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")} | set(ends)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._tags = {int(i): str(token.content) for i, token in added.items() if token.special and i not in own}

    @property
    def has_tags(self) -> bool:
        """Whether the tokenizer has any such token."""
        return bool(self._tags)

    def count(self, samples: Sequence[Sample]) -> int:
        """Completions that hold one."""
        return sum(not self._tags.keys().isdisjoint(sample.token_ids) for sample in samples)

    def sentence(self, metrics: Mapping[str, float]) -> str | None:
        """From the reduced metrics of a rollout, so the same on every rank."""
        fraction = metrics.get(METRIC, 0.0)
        if fraction < FRACTION:
            return None
        names = ", ".join(map(repr, list(self._tags.values())[:NAMED])) + (", ..." if len(self._tags) > NAMED else "")
        return (
            f"{fraction:.0%} of the completions hold special tokens ({names}), which sample.completion leaves out: a reward that looks for "
            "them has to read sample.raw_completion"
        )
