"""How a sequence classifier is asked for one number of each text: padded rows, or packed ones without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.micro_batch import packed_inputs, to_device
from lightrft.batch.planning import first_fit
from lightrft.errors import ModelError
from lightrft.models.attention import packed_forward

Texts = Sequence[Sequence[int]]
"""Token ids of each text."""


@dataclass(frozen=True, kw_only=True)
class PaddedTexts:
    """At most `micro_batch_size` texts of about the same length at a time, padded on the right with `pad`, which no text ends with; one
    without tokens is that token.
    """

    model: Any
    pad: int
    micro_batch_size: int
    device: torch.device

    def parts(self, texts: Texts) -> list[list[int]]:
        """The places of the texts of each pass. Local."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        return [order[start : start + self.micro_batch_size] for start in range(0, len(order), self.micro_batch_size)]

    def scores(self, texts: Texts) -> list[float]:
        """One number for each text of a pass; none takes part all the same. Collective where the model is sharded."""
        shown = [list(text) or [self.pad] for text in texts] or [[self.pad]]
        width = max(len(row) for row in shown)
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in shown], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in shown], device=self.device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        values: list[float] = logits[:, 0].float().cpu().tolist()
        return values[: len(texts)]


@dataclass(frozen=True, kw_only=True)
class PackedTexts:
    """Texts one after the other in a row of at most `token_budget` tokens; a longer one goes alone.

    `model` has our attention (`use_our_attention`); `layer` is its own that scores each token, of which a text's last one counts.
    """

    model: Any
    layer: torch.nn.Module
    pad: int
    token_budget: int
    device: torch.device

    def parts(self, texts: Texts) -> list[list[int]]:
        """As `PaddedTexts.parts`."""
        return first_fit([len(text) for text in texts], budget=self.token_budget)

    def scores(self, texts: Texts) -> list[float]:
        """As `PaddedTexts.scores`."""
        shown = [torch.tensor(list(text) or [self.pad]) for text in texts] or [torch.tensor([self.pad])]
        of_tokens, _, ends = self._row(shown)
        values: list[float] = of_tokens[ends[1:] - 1].float().cpu().tolist()
        return values[: len(texts)]

    @torch.no_grad()
    def check(self) -> None:
        """Raises ModelError where the model makes something else of a text than the score of its last token. As `scores` collective."""
        token = 1 if self.pad == 0 else 0
        of_tokens, own, _ = self._row([torch.full((n,), token) for n in (3, 2)])
        if not torch.allclose(of_tokens[-1:], own, rtol=1e-2, atol=1e-6):
            raise ModelError(f"{type(self.model).__name__} gives {float(own[0])!r}, and scores its last token {float(of_tokens[-1])!r}")

    def _row(self, texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The score of each token [S], what the model itself gives for the row [1], and the texts' borders [K + 1]."""
        ends = torch.tensor([0, *(len(ids) for ids in texts)]).cumsum(0)
        inputs = packed_inputs(torch.cat(list(texts)), ends, [None] * len(texts), positions=None)
        there = {name: to_device(value, self.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        found: list[torch.Tensor] = []
        handle = self.layer.register_forward_hook(lambda _layer, _args, out: found.append(out))
        try:
            with packed_forward():
                own: torch.Tensor = self.model(**there).logits
        finally:
            handle.remove()
        return found[0][0, :, 0], own[:, 0], ends


def scoring_layer(model: Any, *, setting: str) -> torch.nn.Module:
    """The layer of a sequence classifier that scores each token. Raises ModelError where it has none; names `setting`."""
    layer = getattr(model, "score", None)
    if isinstance(layer, torch.nn.Linear):
        return layer
    raise ModelError(f"{setting}: {type(model).__name__} has no linear layer 'score' for each token, of which the last one's counts")
