"""Batches of any stage from plain lists, for tests: what is not named is neutral."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from lightrft.batch.collect import sequences_of
from lightrft.batch.stages import Sampled, columns_of
from lightrft.types import Completion, Sample

Stage = TypeVar("Stage", bound=Sampled)
FILL = {"corrections": 1.0, "trains": True}
"""Neutral values other than 0."""


def batch_of(
    stage: type[Stage],
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    group_ids: Sequence[int] | None = None,
    reasons: Sequence[str] | None = None,
    samples: Sequence[Sample] | None = None,
    greedy: Sequence[Sample | None] | None = None,
    engine_logprobs: Sequence[Sequence[float] | None] | None = None,
    **columns: Sequence[Any],
) -> Stage:
    """(prompt ids, completion ids) of each sequence, and other columns by name: a value for each sequence, or for a column of tokens a
    value for each of its completion's tokens (or one for all of them).
    """
    completions = [
        Completion(
            token_ids=list(completion),
            finish_reason=reasons[at] if reasons else "stop",  # type: ignore[arg-type]
            weight_version=0,
            logprobs=engine_logprobs[at] if engine_logprobs else None,
        )
        for at, (_, completion) in enumerate(sequences)
    ]
    pairs = [(prompt, completion) for (prompt, _), completion in zip(sequences, completions, strict=True)]
    groups = [0] * len(pairs) if group_ids is None else group_ids
    base = sequences_of(pairs, group_ids=groups, samples=samples, greedy=greedy)
    more = {name: per for name, per in columns_of(stage).items() if name not in columns_of(Sampled)}
    unknown = columns.keys() - more.keys()
    assert not unknown, f"{stage.__name__} has no columns {sorted(unknown)}"
    return base.as_stage(stage, **{name: _column(base, name, per, columns.get(name)) for name, per in more.items()})


def _column(base: Sampled, name: str, per: str, values: Sequence[Any] | None) -> torch.Tensor:
    fill = FILL.get(name, 0.0)
    if per == "sequence":
        dtype = torch.bool if name == "trains" else torch.float64
        return torch.tensor([fill] * len(base) if values is None else list(values), dtype=dtype)
    counts = base.num_sampled.tolist()
    rows = [fill] * len(base) if values is None else values
    tokens = [torch.as_tensor(row, dtype=torch.float32).expand(count) for row, count in zip(rows, counts, strict=True)]
    return base.on_tokens(torch.cat([torch.zeros(0), *tokens]))


def rows_of(batch: Sampled) -> list[SimpleNamespace]:
    """Each sequence as an object: its columns by name (of tokens: those that were sampled), `prompt_ids`, `completion_ids`, `sample`."""
    columns = columns_of(type(batch))
    by_token = {name: batch.by_sequence(getattr(batch, name)) for name, per in columns.items() if per == "token"}
    rows = []
    for at, (start, end) in enumerate(zip(batch.offsets.tolist(), batch.offsets.tolist()[1:], strict=False)):
        ids, sampled = batch.token_ids[start:end].tolist(), batch.loss_mask[start:end].tolist()
        row = SimpleNamespace(**{name: values[at] for name, values in by_token.items()})
        vars(row).update({name: getattr(batch, name)[at] for name, per in columns.items() if per == "sequence"})
        row.prompt_ids = ids[: sampled.index(True)] if any(sampled) else ids
        row.completion_ids = [token for token, mine in zip(ids, sampled, strict=True) if mine]
        row.sample = batch.samples[at]
        rows.append(row)
    return rows
