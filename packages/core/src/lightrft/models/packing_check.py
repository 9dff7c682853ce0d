"""Evidence, before the first packed pass of a model, that its packed rows do not mix: a few passes over a few tokens.

What a model is (`config.packable`) is asked when a run starts. This finds what no list of models knows: layers that
look across a row in another way, positions that do not start again, windows of which only the mask knew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lightrft.batch.images import BlankPrompt, ImageInputs, Positions
from lightrft.batch.label_parts import ALONE
from lightrft.batch.micro_batch import packed_inputs, to_device
from lightrft.distributed.mesh import Axis
from lightrft.distributed.sequence import gather
from lightrft.errors import ModelError
from lightrft.models.attention import MaskAsked, Watch, packed_forward

FIRST = 5
"""Tokens of the first sequence; the second has a multiple of the ranks that share it, so that alone it needs no padding."""

SECOND = 8

One = tuple[torch.Tensor, ImageInputs | None]
"""A sequence: its token ids, and what the model is given of its images."""

ROUNDING = {torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2}
"""Of what a changed sequence changes in itself: more than that, elsewhere, is none. In bfloat16 random models of 12 to 64 blocks differ by
0.01 to 0.04 between a row and a sequence alone; absolute positions that count on move it by 0.9.
"""


@torch.no_grad()
def check_packing(
    forward: Callable[..., torch.Tensor],
    config: Any,
    *,
    device: torch.device,
    setting: str,
    axis: Axis = ALONE,
    blank: BlankPrompt | None = None,
    positions: Positions | None = None,
) -> None:
    """Compares a row of two sequences with one whose first sequence is another, and with the second alone; where the second has an image
    (`blank`, with text after it; `positions`: see `positions_of`), also with itself at the positions that the model makes.

    `forward` takes the model's arguments and gives something [1, s, C] of each token: logits, values or hidden
    states; `config` is the model's. Collective over the ranks that share the model's parameters or the row (three
    forward passes, six with an image).

    Raises:
        ModelError: the second sequence noticed; names `setting`.
    """
    text = config.get_text_config()
    length = -(-SECOND // axis.size) * axis.size
    first, other, second = ((_tokens(config, seed, n), None) for seed, n in enumerate((FIRST, FIRST, length)))
    passes = _Passes(forward, device, axis, positions)
    with torch.compiler.set_stance("force_eager"):
        if blank is None:
            problem = _problem_of(passes, first, other, second, text)
        else:
            more = -(len(blank.token_ids) + length) % axis.size
            shown = torch.cat([blank.token_ids, _tokens(config, 2, length + more)]), blank.images
            problem = _problem_of(passes, first, other, shown, text) or replace(passes, axis=ALONE).other_positions(*shown)
    if problem:
        where = "" if blank is None else ", where prompts have images"
        raise ModelError(
            f"{setting}: models of type {text.model_type!r} cannot be packed{where}: {problem}; leave {setting.split('=')[0]} out"
        )


def _tokens(config: Any, seed: int, length: int) -> torch.Tensor:
    """Random ones, none of which stands for an image or a video."""
    special = [getattr(config, f"{kind}_token_id", None) for kind in ("image", "video", "audio")]
    ids = torch.randint(0, config.get_text_config().vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    plain = next(i for i in range(len(special) + 1) if i not in special)
    return torch.where(torch.isin(ids, torch.tensor([i for i in special if i is not None], dtype=ids.dtype)), plain, ids)


def _problem_of(passes: _Passes, first: One, other: One, second: One, config: Any) -> str:
    try:
        both, _ = passes.packed([first, second])
        changed, _ = passes.packed([other, second])
        alone, watch = passes.packed([second])
    except ModelError as error:
        return str(error)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        return f"it fails on a packed row, {type(error).__name__}: {' '.join(str(error).split())}"
    return _mixing(both, changed, alone) or _of_masks(watch, config)


@dataclass(frozen=True)
class _Passes:
    forward: Callable[..., torch.Tensor]
    device: torch.device
    axis: Axis
    positions: Positions | None

    def packed(self, sequences: Sequence[One], *, told: bool = True) -> tuple[torch.Tensor, Watch]:
        """[S, C] of a packed row, in the model's dtype; `told` False: of one sequence, whose positions the model makes by itself."""
        ids = torch.cat([own for own, _ in sequences])
        ends = torch.tensor([0, *(len(own) for own, _ in sequences)]).cumsum(0)
        inputs = packed_inputs(ids, ends, [images for _, images in sequences], positions=self.positions, axis=self.axis)
        there = {name: to_device(value, self.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        if not told:
            del there["position_ids"]
        with packed_forward() as watch:
            out = self.forward(**there, use_cache=False)[0]
        return gather(out.T, len(ids), self.axis).T, watch

    def other_positions(self, ids: torch.Tensor, images: ImageInputs) -> str:
        """Whether the positions are other ones than the model's own; text in another order says how much is much."""
        found, _ = self.packed([(ids, images)])
        turned, _ = self.packed([(torch.cat([ids[:-SECOND], ids[-SECOND:].flip(0)]), images)])
        own, _ = self.packed([(ids, images)], told=False)
        effect, apart = float((found - turned).abs().max()), float((found - own).abs().max())
        if apart > ROUNDING[found.dtype] * effect:
            return f"at the positions that it makes by itself its outputs are off by {apart:.1e} (other text moves them by {effect:.1e})"
        return ""


def _mixing(both: torch.Tensor, changed: torch.Tensor, alone: torch.Tensor) -> str:
    effect = float((both - changed)[:FIRST].abs().max())
    leak = float((both - changed)[FIRST:].abs().max())
    if effect == 0:
        return "what it gives for a token does not depend on the tokens, so nothing can be seen"
    if leak > ROUNDING[both.dtype] * effect:
        return f"other tokens in one sequence move the logits of the next by {leak:.1e} (their own by {effect:.1e})"
    apart = float((both[FIRST:] - alone).abs().max())
    if apart > ROUNDING[both.dtype] * effect:
        return f"the logits of a sequence depend by {apart:.1e} on its place in the row (its tokens move them by {effect:.1e})"
    return ""


def _of_masks(watch: Watch, config: Any) -> str:
    """Whether layers know of the windows that their masks would have had, and masks have nothing but windows."""
    odd = [mask for mask in watch.masks if not _is_causal(mask)]
    if odd:
        return "some of its layers attend in chunks, in both directions or in blocks, which only their masks know"
    masks = {mask.window for mask in watch.masks}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    lost = masks - watch.windows - {None} if "sliding_attention" in kinds else set()
    made_up = watch.windows - masks
    if masks and (lost or made_up):
        return f"its masks have windows {_words(masks)}, its layers ask for {_words(watch.windows)}"
    return ""


def _is_causal(mask: MaskAsked) -> bool:
    """Whether a token sees itself and what is before it, `window` of them; tried at places of a long row."""
    if mask.is_custom:
        return False
    window = mask.window
    far = 4 * (window or 1000)
    for query in (1, far // 4 - 1, far // 4, far // 4 + 1, far - 1):
        keys = {query: True, query + 1: False, query - 1: window != 1, 0: window is None or query < window}
        if window is not None:
            keys |= {query - window + 1: True, query - window: False}
        for key, expected in keys.items():
            if key >= 0 and _sees(mask.sees, query, key) != expected:
                return False
    return True


def _sees(sees: Callable[..., Any], query: int, key: int) -> bool | None:
    row, head, at, seen = (torch.tensor(n) for n in (0, 0, query, key))
    try:
        return bool(sees(row, head, at, seen))
    except (
        IndexError,
        RuntimeError,
    ):  # it reads a table of the row's length: something of this row, and no rule
        return None


def _words(windows: set[int | None]) -> str:
    return ", ".join(sorted("no window" if window is None else str(window) for window in windows)) or "nothing"
