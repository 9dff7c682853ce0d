"""Judges of what an engine has to answer: the tokens and log-probs of a model, by another way than the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from lightrft.testing.image_text import END_ID, IMAGE_ID, START_ID, image_inputs
from lightrft.testing.tiny import EOS_ID
from lightrft.types import Completion, RequestOutput


class Judge(Protocol):
    """What an engine with the weights of `model` has to answer."""

    vocab_size: int
    eos_id: int
    image_tokens: tuple[int, ...]
    """Those that stand for an image in a prompt."""

    def greedy(self, model: Any, prompt: Sequence[int], *, max_new_tokens: int, images: Sequence[Any] = ()) -> list[int]:
        """The most likely token, again and again, up to the end of sequence and with it."""

    def distribution(self, model: Any, prompt: Sequence[int], *, temperature: float) -> torch.Tensor:
        """Of the next token, [V] in float64."""

    def logprobs(self, model: Any, prompt: Sequence[int], token_ids: Sequence[int], *, temperature: float = 1.0) -> torch.Tensor:
        """Natural logs of each token's probability, [T] in float64, unfiltered; untempered unless another temperature is named."""

    def logprobs_of_each(self, model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The same of several completions of one prompt."""


class TransformersJudge:
    """A model of transformers."""

    vocab_size = 64
    eos_id = EOS_ID
    image_tokens: tuple[int, ...] = (START_ID, IMAGE_ID, END_ID)

    def greedy(self, model: Any, prompt: Sequence[int], *, max_new_tokens: int, images: Sequence[Any] = ()) -> list[int]:
        return greedy_tokens(model, prompt, max_new_tokens=max_new_tokens, images=images)

    @torch.no_grad()
    def distribution(self, model: Any, prompt: Sequence[int], *, temperature: float) -> torch.Tensor:
        found: torch.Tensor = (model(torch.tensor([list(prompt)])).logits[0, -1].double() / temperature).softmax(-1)
        return found

    @torch.no_grad()
    def logprobs(self, model: Any, prompt: Sequence[int], token_ids: Sequence[int], *, temperature: float = 1.0) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1].double() / temperature
        found: torch.Tensor = logits.log_softmax(-1).gather(-1, torch.tensor(list(token_ids))[:, None]).squeeze(-1)
        return found

    @torch.no_grad()
    def logprobs_of_each(self, model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        width = max(map(len, completions))
        ids = torch.tensor([[*prompt, *tokens, *[0] * (width - len(tokens))] for tokens in completions])  # what comes later changes nothing
        logprobs = model(ids).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
        values = logprobs.gather(-1, ids[:, len(prompt) :, None]).squeeze(-1)
        return [row[: len(tokens)] for row, tokens in zip(values, completions, strict=True)]


def greedy_tokens(model: Any, prompt: Sequence[int], *, max_new_tokens: int, images: Sequence[Any] = ()) -> list[int]:
    """What transformers' own greedy `generate` says."""
    inputs = image_inputs(prompt, images)
    ids = inputs["input_ids"]
    made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, attention_mask=torch.ones_like(ids))
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens


def logprob_error(model: Any, output: RequestOutput, completion: Completion) -> float:
    """Largest |engine - transformers| over the completion's tokens, under the untempered distribution."""
    assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
    expected = TransformersJudge().logprobs(model, list(output.prompt_token_ids), completion.token_ids)
    return float((torch.tensor(completion.logprobs, dtype=torch.float64) - expected).abs().max())
