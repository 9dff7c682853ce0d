"""One forward pass: some sequences of a stage as rows of a model's input, and the sampled tokens as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.grid import Grid
from lightrft.batch.images import BlankPrompt, ImageInputs, Positions, features_of, marks_of, positions_of
from lightrft.batch.label_parts import ALONE, LabelParts
from lightrft.batch.stages import Sampled, token_index
from lightrft.distributed.mesh import Axis
from lightrft.distributed.sequence import padded_length, padded_offsets, shard


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """`inputs` goes to the model: `input_ids` int64 [R, L], and what else a planner adds.

    Of M labels, sequence by sequence: `labels` int64 [M], the sampled tokens; `at` int64 [M], the place in the flattened [R * L] whose
    logits predict each; `columns`, float32 [M] each, by name; `grid` says where each stands in [N, T] for losses.

    Where ranks share a row, `inputs`, `labels` [m] and `at` [m] are of this rank's part of it, columns and grid of all; `parts` makes
    one of the other.
    """

    inputs: Mapping[str, Any]
    labels: torch.Tensor
    at: torch.Tensor
    columns: Mapping[str, torch.Tensor]
    grid: Grid
    parts: LabelParts

    @property
    def num_tokens(self) -> int:
        """R x L: the tokens that the model computes, padding included."""
        return int(self.inputs["input_ids"].numel())

    def rows(self, name: str) -> torch.Tensor:
        """A column as [N, T] float32, 0 beyond each sequence's end."""
        return self.grid.spread(self.columns[name])


def padded(
    batch: Sampled, index: torch.Tensor, *, columns: Sequence[str] = (), device: torch.device, blank: BlankPrompt | None = None
) -> MicroBatch:
    """The contexts of the sequences `index` [K] as right-padded rows; pads are token 0, which no real token can see (models are causal).

    No sequences are one row of one pad without labels, so that every rank can take part in a forward pass. For the same reason `blank`,
    given where prompts may have images, is one more row where none of these has any.
    """
    tokens, ends, images = _contexts(batch, index)
    added = blank if blank is not None and not any(images) else None
    lengths = ends.diff()
    rows, width = len(lengths) + (added is not None), max([1, *lengths.tolist(), len(added.token_ids) if added else 0])
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    place = row * width + torch.arange(len(tokens)) - ends[:-1][row]
    ids = torch.zeros(max(rows, 1) * width, dtype=torch.long)
    ids[place] = batch.token_ids[tokens].long()
    if added is not None:
        ids[(rows - 1) * width :][: len(added.token_ids)] = added.token_ids
        images.append(added.images)
    marks = marks_of(images, range(0, len(images) * width, width), size=len(ids))
    inputs = {name: values.view(-1, width) for name, values in {"input_ids": ids, **marks}.items()} | features_of(images)
    return _with_labels(batch, index, tokens, place, inputs, columns, device, ALONE)


def packed(
    batch: Sampled,
    index: torch.Tensor,
    *,
    columns: Sequence[str] = (),
    device: torch.device,
    axis: Axis = ALONE,
    blank: BlankPrompt | None = None,
    positions: Positions | None = None,
) -> MicroBatch:
    """The contexts of the sequences `index` [K] as one row, one after the other, without padding (`packed_inputs`).

    No sequences are one of one token without labels, so that every rank can take part in a forward pass. For the same reason `blank`,
    given where prompts may have images, is one more sequence where none of these has any.
    """
    tokens, ends, images = _contexts(batch, index)
    ids = batch.token_ids[tokens].long()
    added: tuple[torch.Tensor, ImageInputs | None] | None = None if len(index) else (torch.zeros(1, dtype=torch.long), None)
    if blank is not None and not any(images):
        added = (blank.token_ids, blank.images)
    if added is not None:
        ids, ends = torch.cat([ids, added[0]]), torch.cat([ends, ends[-1:] + len(added[0])])
        images.append(added[1])
    inputs = packed_inputs(ids, ends, images, positions=positions, axis=axis)
    return _with_labels(batch, index, tokens, torch.arange(len(tokens)), inputs, columns, device, axis)


def packed_inputs(
    ids: torch.Tensor, ends: torch.Tensor, images: Sequence[ImageInputs | None], *, positions: Positions | None, axis: Axis = ALONE
) -> dict[str, Any]:
    """A model's inputs for a row of K sequences, whose borders are `ends` [K + 1]: `input_ids` [1, S] and `position_ids` (`positions_of`);
    `cu_seq_lens_q` int32 [K + 1] and `max_length_q`, where each begins, for an attention that keeps them apart; marks of images at the
    places of their tokens, and features in the order of the sequences.

    The ranks of `axis`, which bring the same sequences, get equal parts of the row, padded by a segment of its own (`sequence_axis`). A row
    with images comes whole to each of them, since all images together fill the places of theirs, and is divided as embeddings
    (`embedding_axis`).
    """
    borders = padded_offsets(ends, axis)
    per_token = {"input_ids": ids[None], "position_ids": positions_of(ids, ends, images, positions)}
    per_token |= {name: marks[None] for name, marks in marks_of(images, ends[:-1].tolist(), size=len(ids)).items()}
    whole = axis.size > 1 and any(images)
    missing = padded_length(len(ids), axis) - len(ids)
    parts = {name: torch.nn.functional.pad(row, (0, missing)) if whole else shard(row, axis) for name, row in per_token.items()}
    inputs: dict[str, Any] = parts | features_of(images)
    inputs |= {"cu_seq_lens_q": borders.int(), "max_length_q": int(borders.diff().max())}
    return inputs | ({"embedding_axis" if whole else "sequence_axis": axis} if axis.size > 1 else {})


def _contexts(batch: Sampled, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[ImageInputs | None]]:
    """The tokens int64 [S'] of the sequences `index` [K], and of their C contexts the borders [C + 1] and the images, which are a
    sequence's first context's.
    """
    tokens, offsets = token_index(batch.offsets, index)
    starts = batch.begins[tokens].nonzero().flatten()
    owners = dict(zip(offsets.tolist(), index.tolist(), strict=False))
    images = [batch.images[owners[start]] if start in owners else None for start in starts.tolist()]
    return tokens, torch.cat([starts, offsets[-1:]]), images


def _with_labels(
    batch: Sampled,
    index: torch.Tensor,
    tokens: torch.Tensor,
    place: torch.Tensor,
    inputs: Mapping[str, Any],
    columns: Sequence[str],
    device: torch.device,
    axis: Axis,
) -> MicroBatch:
    sampled = batch.loss_mask[tokens]
    chosen, at = tokens[sampled], place[sampled] - 1
    length = inputs["input_ids"].numel() // (axis.size if "embedding_axis" in inputs else 1)
    parts = LabelParts.of(at, length, axis)
    return MicroBatch(
        inputs={name: to_device(value, device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()},
        labels=to_device(batch.token_ids[chosen].long()[parts.mine], device),
        at=to_device(at[parts.mine] - axis.rank * length, device),
        columns={name: to_device(getattr(batch, name)[chosen], device) for name in columns},
        grid=Grid.of(batch.num_sampled[index]).to(device),
        parts=parts,
    )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy from pinned memory, which the host does not wait for, on CUDA; elsewhere the tensor itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
