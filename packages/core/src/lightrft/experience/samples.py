"""Engine outputs as reward functions see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightrft.data.prompts import Prompt
from lightrft.types import RequestOutput, Sample


def samples_of(prompts: Sequence[Prompt], outputs: Sequence[RequestOutput], *, tokenizer: Any) -> list[Sample]:
    """One sample per completion, prompt by prompt; texts are decoded here, in one batch, without special tokens."""
    pairs = [(prompt, completion) for prompt, output in zip(prompts, outputs, strict=True) for completion in output.completions]
    texts = tokenizer.batch_decode([list(completion.token_ids) for _, completion in pairs], skip_special_tokens=True)
    return [
        Sample(
            prompt=prompt.text,
            completion=text,
            answer=prompt.answer,
            row=prompt.row,
            finish_reason=completion.finish_reason,
            num_tokens=len(completion.token_ids),
        )
        for (prompt, completion), text in zip(pairs, texts, strict=True)
    ]
