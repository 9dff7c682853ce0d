"""Images as a model's forward pass takes them: of one prompt, and of the prompts of a micro-batch together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lightrft.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """What a processor made of one prompt's images, on the CPU, shared by all samples of the prompt.

    `marks`: for each name a tensor [P] with an entry for each of the prompt's first P tokens (the kind of a token). `features`: pixels,
    grids and sizes, whose first axis counts images or their patches.
    """

    marks: Mapping[str, torch.Tensor]
    features: Mapping[str, torch.Tensor]


Positions = Callable[[torch.Tensor, ImageInputs], torch.Tensor]
"""The positions int64 [..., n] that a model gives the token ids int64 [n] of one sequence with images."""


@dataclass(frozen=True, kw_only=True)
class BlankPrompt:
    """A prompt of one blank image. It stands in the passes that have no image of their own, without labels, so that the part of the model
    which reads images runs on every rank: its collectives have to.
    """

    token_ids: torch.Tensor
    """int64 [P]."""

    images: ImageInputs


def marks_of(images: Sequence[ImageInputs | None], starts: Sequence[int], *, size: int) -> dict[str, torch.Tensor]:
    """Every name's marks at `starts` [K], where the sequences begin in `size` places; 0 elsewhere."""
    found: dict[str, torch.Tensor] = {}
    for one, start in zip(images, starts, strict=True):
        for name, marks in (one.marks if one is not None else {}).items():
            row = found.setdefault(name, torch.zeros(size, dtype=marks.dtype))
            row[start : start + len(marks)] = marks
    return found


def positions_of(ids: torch.Tensor, ends: torch.Tensor, images: Sequence[ImageInputs | None], positions: Positions | None) -> torch.Tensor:
    """int64 [1, S] for a row of ids [S], from 0 in each of its sequences, which `ends` [K + 1] separates.

    Where a model has positions of its own for a sequence with images (`positions`, say [3, 1, n]), these, as if the sequence were alone;
    the others of the row then have theirs along every axis: [3, 1, S].
    """
    plain = (torch.arange(len(ids)) - torch.repeat_interleave(ends[:-1], ends.diff()))[None]
    if positions is None or not any(images):
        return plain
    lengths = ends.diff().tolist()
    pieces = zip(torch.split(ids, lengths), torch.split(plain, lengths, dim=1), images, strict=True)
    found = [(counted, None if one is None else positions(own, one)) for own, counted, one in pieces]
    axes = next(own.shape[:-1] for _, own in found if own is not None)
    return torch.cat([counted.expand(*axes, -1) if own is None else own for counted, own in found], dim=-1)


def features_of(images: Sequence[ImageInputs | None]) -> dict[str, torch.Tensor]:
    """Every name's features, one prompt's after the other's, as processors join the images of several prompts: what has other sizes beyond
    the first axis is filled up with zeros.

    Raises:
        ModelError: prompts whose features have other names, or other numbers of axes.
    """
    there = [one.features for one in images if one is not None]
    if any(one.keys() != there[0].keys() for one in there):
        raise ModelError(f"a processor gave prompts of one batch other inputs: {sorted({tuple(one) for one in there})}")
    return {name: _joined(name, [one[name] for one in there]) for name in (there[0] if there else ())}


def _joined(name: str, values: Sequence[torch.Tensor]) -> torch.Tensor:
    if len({value.dim() for value in values}) > 1:
        raise ModelError(f"a processor gave {name!r} in shapes {[tuple(value.shape) for value in values]}, which cannot be one batch")
    most = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return torch.cat([_filled(value, most) for value in values])


def _filled(value: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    missing = [size - have for size, have in zip(sizes, value.shape[1:], strict=True)]
    return torch.nn.functional.pad(value, [n for more in reversed(missing) for n in (0, more)]) if any(missing) else value
