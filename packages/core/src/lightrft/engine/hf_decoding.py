"""Next-token logits of a batch of growing rows: from a KV cache, or by whole forward passes where a model keeps other state than that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache


class Decoding(Protocol):
    """Rows are prompt-major: prompt 0's n copies, prompt 1's, and so on."""

    def start(self) -> torch.Tensor:
        """Logits [rows, V] in float32 of the token after each prompt."""

    def next(self, token: torch.Tensor) -> torch.Tensor:
        """The same after one more token [rows] in each row."""


def decoding(model: Any, prompts: Sequence[Sequence[int]], *, n: int, pad: int) -> Decoding:
    """The way of this model; `pad` fills rows up where nothing looks."""
    return Cached(model, prompts, n=n, pad=pad) if has_plain_cache(model) else Uncached(model, prompts, n=n, pad=pad)


def has_plain_cache(model: Any) -> bool:
    """Whether all that the model keeps of a row is keys and values, which can be padded and repeated; recurrent and convolution states
    (Mamba, Qwen3-Next, LFM2, and hybrids of them with attention) cannot.
    """
    if getattr(model, "_is_stateful", False) or not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return False
    return all(hasattr(layer, "batch_repeat_interleave") for layer in DynamicCache(config=model.config).layers)


class Cached:
    """Prefill each prompt once, padded on the left, repeat its cache n times, then one token per step."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, n: int, pad: int) -> None:
        self._model = model
        self._n = n
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = next(model.parameters()).device
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._cache = DynamicCache(config=model.config)

    def start(self) -> torch.Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(self._ids, positions).repeat_interleave(self._n, dim=0)
        self._cache.batch_repeat_interleave(self._n)
        self._mask = self._mask.repeat_interleave(self._n, dim=0)
        return logits

    def next(self, token: torch.Tensor) -> torch.Tensor:
        position = self._mask.sum(-1, keepdim=True)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=-1)
        return self._forward(token[:, None], position)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        out = self._model(
            input_ids=ids, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


class CachedWithImages:
    """One prompt with `inputs` for its images (pixels, grids), as `Cached`. Nothing is padded, so there is no mask, and the model itself
    says where tokens stand: in some families (M-RoPE) an image's tokens have places of their own.
    """

    def __init__(self, model: Any, prompt: Sequence[int], inputs: Mapping[str, torch.Tensor], *, n: int) -> None:
        if not has_plain_cache(model):
            raise ValueError(f"engine 'hf' reads no images with {type(model).__name__}, which keeps more than keys and values of a text")
        like = next(model.parameters())
        self._model, self._n = model, n
        self._ids = torch.tensor([list(prompt)], device=like.device)
        self._inputs = {
            name: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype) for name, value in inputs.items()
        }
        self._cache = DynamicCache(config=model.config)

    def start(self) -> torch.Tensor:
        logits = self._forward(self._ids, **self._inputs).repeat_interleave(self._n, dim=0)
        self._cache.batch_repeat_interleave(self._n)
        return logits

    def next(self, token: torch.Tensor) -> torch.Tensor:
        return self._forward(token[:, None])

    def _forward(self, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **inputs)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


class Uncached:
    """Every token by a forward pass over whole rows, padded on the right, which no earlier position sees. Slow, and right for any causal
    model.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, n: int, pad: int) -> None:
        self._model = model
        device = next(model.parameters()).device
        rows = [prompt for prompt in prompts for _ in range(n)]
        self._ids = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.long, device=device)
        for row, prompt in enumerate(rows):
            self._ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self._lengths = torch.tensor([len(prompt) for prompt in rows], device=device)
        self._pad = pad

    def start(self) -> torch.Tensor:
        last = self._lengths - 1
        unique: Any = torch.unique  # torch does not annotate it
        kept, where = unique(last, return_inverse=True)  # positions whose logits are made, of every row
        out = self._model(input_ids=self._ids, use_cache=False, logits_to_keep=kept)
        logits: torch.Tensor = out.logits[torch.arange(len(last), device=last.device), where].float()
        return logits

    def next(self, token: torch.Tensor) -> torch.Tensor:
        if int(self._lengths.max()) == self._ids.shape[1]:
            self._ids = torch.nn.functional.pad(self._ids, (0, 1), value=self._pad)
        self._ids[torch.arange(len(token), device=token.device), self._lengths] = token
        self._lengths = self._lengths + 1
        return self.start()
