"""A transformers model completes a batch of prompts in one loop, whose draws depend on nothing but the request."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightrft.engine.filters import filter_logits
from lightrft.engine.hf_decoding import CachedWithImages, Decoding, decoding
from lightrft.engine.image_reader import PromptWithImages
from lightrft.engine.progress import Finished, Report, unread, unwatched
from lightrft.engine.stop_text import cut_at_stop
from lightrft.types import Completion, FinishReason, Request, RequestOutput, SamplingParams

Truncate = Callable[[Completion], Completion]
ReadImages = Callable[[Request], PromptWithImages]


def unchanged(completion: Completion) -> Completion:
    """Where there is nothing to truncate."""
    return completion


def text_alone(request: Request) -> PromptWithImages:
    """Where no prompt may have images."""
    raise ValueError(f"request {request.id} has {len(request.images)} images, and text alone is read here")


def truncate_by(tokenizer: Any, sampling: SamplingParams) -> Truncate:
    """Truncates completions at the stop strings of `sampling`, found in this tokenizer's text."""
    if not sampling.stop:
        return unchanged

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=sampling.skip_special_tokens))

    least = sampling.min_new_tokens
    return lambda c: cut_at_stop(c, stop=sampling.stop, stop_token_ids=(), min_new_tokens=least, decode=decode)


@torch.no_grad()
def generate(
    model: Any,
    requests: Sequence[Request],
    sampling: SamplingParams,
    *,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    batch_size: int,
    max_model_len: int,
    version: int,
    report: Report = unwatched,
    finished: Finished = unread,
    truncate: Truncate = unchanged,
    read_images: ReadImages = text_alone,
) -> list[RequestOutput]:
    """Completions of each request, in order (see `InferenceEngine.generate`). `batch_size` bounds the prompts in one forward pass;
    a prompt with images, which `read_images` makes the model's input, has one of its own. Completions run to their end; then `truncate`,
    for stop strings.

    Sample k of a request is drawn by inverting the cumulative distribution at uniforms that depend on (request.seed, k, position) only, so
    the rest of the batch does not change it (beyond rounding).
    """
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_token_ids))
    outputs: dict[int, RequestOutput] = {}
    for some in _batches(requests, batch_size):
        pictured = read_images(some[0]) if some[0].images else None
        batch = _Batch(model, some, sampling, sorted(stops), pad_token_id, max_model_len, pictured)
        ended = [replace(o, completions=tuple(map(truncate, o.completions))) for o in batch.run(version, report)]
        for output in ended:
            finished(output)
            outputs[output.id] = output
    return [outputs[request.id] for request in requests]


def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Those without images together, then each with images alone."""
    text = [request for request in requests if not request.images]
    yield from (text[start : start + size] for start in range(0, len(text), size))
    yield from ([request] for request in requests if request.images)


class _Batch:
    """State of one batch; rows are prompt-major: prompt 0's n samples, prompt 1's, and so on."""

    def __init__(
        self,
        model: Any,
        requests: Sequence[Request],
        sampling: SamplingParams,
        stops: list[int],
        pad_token_id: int,
        max_model_len: int,
        pictured: PromptWithImages | None,
    ) -> None:
        self.model = model
        self.requests = requests
        self.sampling = sampling
        self.pad = pad_token_id
        self.device = next(model.parameters()).device
        self.stops = torch.tensor(stops, dtype=torch.long, device=self.device)
        self.pictured = pictured
        prompts = [r.prompt_token_ids for r in requests] if pictured is None else [pictured.token_ids]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device).repeat_interleave(sampling.n)
        self.budget = (max_model_len - lengths).clamp(max=sampling.max_new_tokens)
        self.num_steps = int(self.budget.max())
        self.uniforms = self._uniforms()
        self.want_logprobs = any(r.logprobs for r in requests)

    def run(self, version: int, report: Report) -> list[RequestOutput]:
        """One token per step until every row has ended."""
        rows = self._decoding()
        logits = rows.start()
        tokens, logprobs = [], []
        running, num_running = torch.ones(len(logits), dtype=torch.bool, device=self.device), len(logits)
        for step in range(self.num_steps):
            token = torch.where(running, self._draw(logits, step), self.pad)
            tokens.append(token)
            if self.want_logprobs:
                logprobs.append(torch.log_softmax(logits, dim=-1).gather(-1, token[:, None]).squeeze(-1))
            running = running & ~torch.isin(token, self.stops) & (step + 1 < self.budget)
            left = int(running.sum())
            report(tokens=num_running, completions=num_running - left)
            num_running = left
            if not left:
                break
            logits = rows.next(token)
        return self._outputs(torch.stack(tokens, dim=-1).cpu(), torch.stack(logprobs, dim=-1).cpu() if logprobs else None, version)

    def _decoding(self) -> Decoding:
        n = self.sampling.n
        if self.pictured is not None:
            return CachedWithImages(self.model, self.pictured.token_ids, {**self.pictured.marks, **self.pictured.features}, n=n)
        return decoding(self.model, [r.prompt_token_ids for r in self.requests], n=n, pad=self.pad)

    def _uniforms(self) -> torch.Tensor:
        rows = []
        for request in self.requests:
            generator = torch.Generator().manual_seed(request.seed)
            rows.append(torch.rand(self.sampling.n, self.sampling.max_new_tokens, generator=generator, dtype=torch.float64))
        return torch.cat(rows).to(self.device)

    def _draw(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        if step < self.sampling.min_new_tokens and len(self.stops):
            logits = logits.index_fill(-1, self.stops, float("-inf"))
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        kept = filter_logits(logits / self.sampling.temperature, self.sampling)
        cumulative = torch.softmax(kept.double(), dim=-1).cumsum(-1)
        # The last sum may round to just under 1, and a draw beyond it must not name a token of probability 0.
        target = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)

    def _outputs(self, tokens: torch.Tensor, logprobs: torch.Tensor | None, version: int) -> list[RequestOutput]:
        budget = self.budget.tolist()
        stops = set(self.stops.tolist())
        rows = tokens.tolist()
        values = logprobs.tolist() if logprobs is not None else None
        outputs = []
        for index, request in enumerate(self.requests):
            completions = []
            for row in range(index * self.sampling.n, (index + 1) * self.sampling.n):
                length, reason = _end(rows[row], stops, budget[row])
                kept = values[row][:length] if values is not None and request.logprobs else None
                completions.append(Completion(token_ids=rows[row][:length], finish_reason=reason, weight_version=version, logprobs=kept))
            outputs.append(RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=tuple(completions)))
        return outputs


def _end(tokens: list[int], stops: set[int], budget: int) -> tuple[int, FinishReason]:
    for position, token in enumerate(tokens[:budget]):
        if token in stops:
            return position + 1, "stop"
    return budget, "length"
