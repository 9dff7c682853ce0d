"""vLLM step by step: what ends while others go on, and requests that join those that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

from lightrft.types import Completion, Ended, Request, SamplingParams


@contextmanager
def each_as_it_ends(llm: Any, ended: Callable[[int, Any], None]) -> Iterator[None]:
    """While `LLM.generate` runs its loop: `ended(position, output)` after the step in which a prompt has ended."""
    core, step = llm.llm_engine, llm.llm_engine.step
    first = llm.request_counter.counter

    def observed() -> Any:
        answers = step()
        for answer in answers:
            if answer.finished:
                ended(int(answer.request_id) - first, answer)  # LLM numbers its requests
        return answers

    core.step = observed
    try:
        yield
    finally:
        del core.step


class Stepping:
    """What an `LLM` draws of requests that were started. `completion` makes ours of one of vLLM's. Each sample of a request is a request of
    vLLM's own, so that it is given as soon as it has ended.

    Draws are those of `LLM.generate`: the samples of a request have its seed and the seeds after it, as vLLM gives them.
    """

    def __init__(self, llm: Any, *, eos_token_ids: Sequence[int], completion: Callable[[Request, Any], Completion]) -> None:
        self._llm, self._eos, self._completion = llm, eos_token_ids, completion
        self._running: dict[str, tuple[Request, int, int]] = {}

    @property
    def requests(self) -> int:
        """How many of vLLM's own have not ended."""
        return len(self._running)

    def start(self, requests: Sequence[Request], sampling: SamplingParams, *, adapter: Any) -> None:
        """Gives them to vLLM, all of them or, where it raises, none."""
        from lightrft_vllm.sampling import to_vllm

        copies = 1 if sampling.temperature == 0 else sampling.n  # greedy draws are all the same
        prompts, params, names = [], [], []
        for request, own in zip(requests, to_vllm(sampling, requests, eos_token_ids=self._eos), strict=True):
            for index in range(copies):
                one = copy(own)
                one.n, one.seed = 1, own.seed + index
                prompts.append({"prompt_token_ids": list(request.prompt_token_ids)})
                params.append(one)
                names.append((request, index, sampling.n // copies))
        first = self._llm.request_counter.counter  # LLM numbers its requests
        self._llm.enqueue(prompts, params, lora_request=adapter, use_tqdm=False)
        self._running |= {str(first + at): name for at, name in enumerate(names)}

    def step(self) -> list[Ended]:
        """One step of vLLM's, and what has ended in it."""
        found = []
        for answer in self._llm.llm_engine.step() if self._running else ():
            if answer.finished:
                request, index, copies = self._running.pop(answer.request_id)
                completion = self._completion(request, answer.outputs[0])
                found += [Ended(id=request.id, index=index + at, completion=completion) for at in range(copies)]
        return found

    def abort(self) -> None:
        """Ends what has not ended."""
        if self._running:
            self._llm.llm_engine.abort_request(list(self._running), internal=False)
            self._running.clear()
