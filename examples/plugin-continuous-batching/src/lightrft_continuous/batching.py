"""One call of transformers' continuous batching: jobs in, tokens out, and no thread and no cache left of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from lightrft.engine.base import EngineSetup
from lightrft.errors import EngineError
from lightrft.types import SamplingParams

PAGE = 64
"""Tokens of one block of the cache."""

NO_STOP = -1
"""The library's word for none."""

POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """A prompt, and how many tokens it may grow by."""

    prompt: list[int]
    room: int


def run(
    model: Any, jobs: Sequence[Job], setup: EngineSetup, sampling: SamplingParams, *, stops: Collection[int], seed: int
) -> list[list[int]]:
    """The tokens of each job, in order. All jobs draw from one generator, of this seed; torch's own is as it was before.

    Raises:
        EngineError: the library gave a job up, or its thread ended.
    """
    with torch.random.fork_rng(devices=[setup.device] if setup.device.type == "cuda" else []):
        manager = model.init_continuous_batching(_generation(sampling, stops), _batching(setup, jobs, seed=seed % 2**31))
        manager.start()
        try:
            for index, job in enumerate(jobs):
                ends = sorted(stops) or [NO_STOP]
                manager.add_request(job.prompt, request_id=str(index), max_new_tokens=job.room, eos_token_id=ends)
            return _collect(manager, len(jobs))
        finally:
            manager.stop(block=True)


def _collect(manager: Any, number: int) -> list[list[int]]:
    """The results of so many jobs, as they end, in the order of their numbers."""
    drawn: dict[int, list[int]] = {}
    while len(drawn) < number:
        result = manager.get_result(timeout=POLL_S)
        if result is None:
            if not manager.is_running():
                raise EngineError(f"continuous batching ended with {len(drawn)} of {number} completions")
        elif result.error is not None:
            raise EngineError(f"continuous batching gave up completion {result.request_id} of {number}: {result.error}")
        elif result.is_finished():
            drawn[int(result.request_id)] = list(map(int, result.generated_tokens))
    return [drawn[index] for index in range(number)]


def _generation(sampling: SamplingParams, stops: Collection[int]) -> Any:
    greedy = sampling.temperature == 0
    drawing: dict[str, Any] = (
        {"do_sample": False}
        if greedy
        else {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    )
    generation: Any = GenerationConfig  # transformers does not annotate it
    return generation(max_new_tokens=sampling.max_new_tokens, eos_token_id=sorted(stops) or NO_STOP, pad_token_id=0, **drawing)


def _batching(setup: EngineSetup, jobs: Sequence[Job], *, seed: int) -> ContinuousBatchingConfig:
    """A cache for `max_batch_size` of the longest jobs; the others wait for room in it."""
    longest = max(len(job.prompt) + job.room for job in jobs)
    at_once = min(len(jobs), setup.max_batch_size)
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=at_once * (longest // PAGE + 2),
        max_batch_tokens=max(1024, longest),
        use_cuda_graph=False,  # a graph for one call alone costs more than it saves
        use_async_batching=False,
        auto_switch_to_flash=False,
        seed=seed,
    )
