"""Causal attention inside the segments of a packed row, and the kernel that does what a layer asks for.

A packed row holds whole sequences one after another; `offsets` int32 [K + 1] are their borders (0 first, the row's
length last). Tensors are [1, heads, S, D] in, [1, heads, S, D of the values] out; the key-value heads divide the
query heads. Nothing here is collective.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional as F

LARGEST_HEAD = 256
"""Of the fused kernels: flash attention on CUDA, and grouped heads in `scaled_dot_product_attention`."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a layer asks of its attention.

    `window`: the tokens that a token sees, itself included (None: all before it). `softcap`: bound on the scores,
    cap * tanh(score / cap) (Gemma 2, arXiv:2408.00118). `sinks` [heads]: a score of each head that takes part in the
    softmax and has no value (GPT-OSS).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    dropout: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the fused kernels know all of it."""
        return self.softcap is None and self.sinks is None


def attend_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    asked: Asked,
) -> torch.Tensor:
    """Attention in which a token sees those before it in its own segment; no [S, S] mask is made.

    On CUDA by one kernel for all segments where it can do what is asked, elsewhere segment by segment.
    """
    kernel = _varlen_kernel(query, value, asked)
    if kernel is None:
        return _one_by_one(query, key, value, offsets, asked)
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return kernel(query, key, value, offsets, longest, asked).transpose(0, 1).unsqueeze(0)


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    asked: Asked,
    *,
    causal: bool,
) -> torch.Tensor:
    """Attention of N rows [N, heads, L, D]: within `mask` [N or 1, 1, L, keys] (bool, or added to the scores), or of
    whole rows without one.
    """
    if asked.is_plain:
        return _sdpa(query, key, value, mask, asked, causal=causal and mask is None)
    if mask is None and causal:
        mask = _visible(query.shape[2], None, query.device)
    return _explicit(query, key, value, mask, asked)


def repeat_heads(x: torch.Tensor, times: int) -> torch.Tensor:
    """Each head of [N, heads, L, D] `times` times in a row; autograd adds the copies' gradients up."""
    return x if times == 1 else x.repeat_interleave(times, dim=1)


# ---- segment by segment ----------------------------------------------------------------------------------------


def _one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, asked: Asked) -> torch.Tensor:
    borders = offsets.tolist()
    lengths = [end - start for start, end in zip(borders, borders[1:], strict=False)]
    queries, keys, values = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    return torch.cat([_segment(q, k, v, asked) for q, k, v in zip(queries, keys, values, strict=True)], dim=2)


def _segment(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asked: Asked) -> torch.Tensor:
    length = query.shape[2]
    narrow = asked.window is not None and asked.window < length
    mask = _visible(length, asked.window, query.device) if narrow else None
    return attend_rows(query, key, value, mask, asked, causal=True)


def _visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """bool [1, 1, length, length]: whether the token of a row sees that of a column."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    return mask[None, None]


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    asked: Asked,
    *,
    causal: bool,
) -> torch.Tensor:
    # The kernel takes no flag that a compiled block only knows by a symbol: they are decided by `if`.
    grouped = False
    if query.shape[2] == 1:
        causal = False
    times = query.shape[1] // key.shape[1]
    # Grouped heads with a mask, or of unusual sizes, would fall back to the kernel that holds all scores.
    if times > 1 and mask is None and key.shape[-1] == value.shape[-1] <= LARGEST_HEAD:
        grouped = True
    else:
        key, value = repeat_heads(key, times), repeat_heads(value, times)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=asked.dropout,
        scale=asked.scale,
        is_causal=causal,
        enable_gqa=grouped,
    )


def _explicit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, asked: Asked) -> torch.Tensor:
    """Softmax written out, for scores that the fused kernels do not know; the softmax is in float32."""
    times = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, times), repeat_heads(value, times)
    scores = query @ key.transpose(2, 3) * asked.scale
    if asked.softcap is not None:
        scores = asked.softcap * torch.tanh(scores / asked.softcap)
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if asked.sinks is not None:
        sinks = asked.sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)[..., : key.shape[2]].to(value.dtype)
    return F.dropout(weights, asked.dropout) @ value


# ---- one kernel for all segments, on CUDA -----------------------------------------------------------------------

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, Asked], torch.Tensor]


def _varlen_kernel(query: torch.Tensor, value: torch.Tensor, asked: Asked) -> Kernel | None:
    """The one that can do what is asked on these tensors; it takes them as [S, heads, D]."""
    size = query.shape[-1]
    fits = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and asked.dropout == 0.0
    if not fits or asked.sinks is not None or size != value.shape[-1] or size % 8 or size > LARGEST_HEAD:
        return None
    if asked.softcap is None and _VARLEN is not None:
        return _torch_kernel
    return _flash_attn_kernel if _HAS_FLASH_ATTN else None


def _torch_varlen() -> tuple[Callable[..., Any], bool] | None:
    """torch's own, and whether it knows grouped heads (torch 2.13 and later); None where torch has none that knows windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = inspect.signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in names) if {"scale", "window_size"} <= set(names) else None


# Found once, here: a compiled block that looks for them comes out in pieces.
_VARLEN = _torch_varlen()
_HAS_FLASH_ATTN = find_spec("flash_attn") is not None


def _torch_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    asked: Asked,
) -> torch.Tensor:
    assert _VARLEN is not None
    varlen_attn, knows_groups = _VARLEN
    grouped: dict[str, Any] = {"enable_gqa": True} if knows_groups else {}
    if not grouped:
        times = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    out: torch.Tensor = varlen_attn(
        query,
        key,
        value,
        offsets,
        offsets,
        longest,
        longest,
        scale=asked.scale,
        window_size=_window(asked),
        **grouped,
    )
    return out


def _flash_attn_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    asked: Asked,
) -> torch.Tensor:
    """The package `flash_attn`, where it is installed: it knows soft caps, and serves a torch without its own."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]  # no dependency of ours

    out: torch.Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        offsets,
        offsets,
        longest,
        longest,
        softmax_scale=asked.scale,
        causal=True,
        window_size=_window(asked),
        softcap=asked.softcap or 0.0,
    )
    return out


def _window(asked: Asked) -> tuple[int, int]:
    """(tokens before a token, tokens after it) that it sees; -1 is all of them."""
    return (-1 if asked.window is None else asked.window - 1, 0)
