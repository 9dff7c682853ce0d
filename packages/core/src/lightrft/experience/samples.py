"""Engine outputs as reward functions see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightrft.data.prompts import Prompt
from lightrft.types import RequestOutput, Sample


def samples_of(
    prompts: Sequence[Prompt], outputs: Sequence[RequestOutput], *, tokenizer: Any, pictures: Sequence[tuple[Any, ...]] | None = None
) -> list[Sample]:
    """One sample per completion, prompt by prompt; texts are decoded here, in one batch each, without and with special tokens. `pictures`:
    of each prompt its images. The samples of a prompt share a copy of its row.
    """
    seen = pictures if pictures is not None else [()] * len(prompts)
    rows = [prompt.own_row() for prompt in prompts]
    each = zip(prompts, rows, seen, outputs, strict=True)
    pairs = [(p, row, own, completion) for p, row, own, output in each for completion in output.completions]
    ids = [list(completion.token_ids) for *_, completion in pairs]
    if not ids:  # transformers decodes an empty batch to one empty text
        return []
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    raw = tokenizer.batch_decode(ids, skip_special_tokens=False)
    return [
        Sample(
            prompt=prompt.text,
            completion=text,
            answer=prompt.answer,
            answers=prompt.answers,
            row=row,
            finish_reason=completion.finish_reason,
            num_tokens=len(completion.token_ids),
            token_ids=token_ids,
            raw_completion=with_special,
            images=own,
            source=prompt.source,
        )
        for (prompt, row, own, completion), token_ids, text, with_special in zip(pairs, ids, texts, raw, strict=True)
    ]
