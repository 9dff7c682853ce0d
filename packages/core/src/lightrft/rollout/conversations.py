"""Conversations driven inside the engine's own stepping: a turn that has ended is answered while others are drawn, and the next one joins
them at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from lightrft.distributed.collectives import gather_ragged, scatter_from_first
from lightrft.distributed.mesh import Axis
from lightrft.engine.base import InferenceEngine
from lightrft.errors import EngineError
from lightrft.rollout.request_seeds import derive_seed
from lightrft.rollout.transport import pack_outputs, pack_requests, unpack_outputs, unpack_requests
from lightrft.types import Completion, Ended, EngineStatus, Request, RequestOutput, SamplingParams

TURN_SEEDS = 1_000_003
"""Between the seeds of two turns."""

IDLE_S = 0.02
"""How long a rank waits for an answer at a time, where its engine has nothing to draw."""

HEAD = 4
"""Numbers that a rank tells before its requests: whether it failed, answers it waits for, requests that its engine has, a digest."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Another turn of the conversation `talk`: its `number` (that after the prompt is 0), and all tokens that it is drawn after."""

    talk: int
    number: int
    token_ids: Sequence[int]
    logprobs: bool


class Talks(Protocol):
    """This rank's conversations, numbered from 0: sample j of prompt i is i * n + j. Local."""

    @property
    def waiting(self) -> int:
        """Answers to turns that are being made."""

    def hear(self, talk: int, completion: Completion) -> None:
        """A turn has ended. Its answer is begun, not waited for."""

    def turns(self, *, wait_s: float | None) -> list[Ask]:
        """The turns that follow now. Waits for the first answer for `wait_s` at most; with None, for all of them."""


@dataclass(kw_only=True)
class Running:
    """A request that the engine has: whose it is in the group, and the samples of it that have not ended."""

    request: Request
    sampling: SamplingParams
    owner: int
    missing: set[int]


class Driver:
    """One rollout of conversations. Where the engine serves a group of ranks, all of them run it together: each answers its own
    conversations, and the ranks tell each other their next turns while any is being answered. Between groups nothing is exchanged.

    `joins`: a request that is started joins those that run; else all answers are waited for before the engine goes on.
    `poll(requests)`: one poll of the engine; `check(request, sampling, completion)` raises at what was not asked for.
    """

    def __init__(
        self,
        talks: Talks,
        *,
        engine: InferenceEngine | None,
        spmd: bool,
        joins: bool,
        group: Axis,
        sampling: SamplingParams,
        seed: int,
        first: int,
        total: int,
        poll: Callable[[Sequence[Request]], list[Ended]],
        check: Callable[[Request, SamplingParams, Completion], None],
    ) -> None:
        """`first`: prompts of the ranks before this one, of `total`; `seed`: that of the prompts' requests."""
        self._talks, self._engine, self._spmd, self._joins, self._group = talks, engine, spmd, joins, group
        self._sampling, self._seed, self._first, self._total = sampling, seed, first, total
        self._poll, self._check = poll, check
        self._mine: dict[int, tuple[Request, int]] = {}
        self._running: dict[int, Running] = {}
        self._waiting = 0
        self._quiet = False
        self._digest = 0
        self._error: Exception | None = None

    def run(self, prompts: Sequence[Request]) -> None:
        """To the end of all conversations. Raises what failed on this rank; where another one failed, it returns early."""
        n = self._sampling.n
        self._mine |= {one.id: (one, at * n) for at, one in enumerate(prompts)}
        new, sampling = list(prompts), self._sampling
        try:
            while (shares := self._exchange(new)) is not None:
                ended = self._attempt(self._step, shares, sampling)
                own = self._own(ended)
                self._quiet = not ended and not self._waiting
                new, sampling = self._attempt(self._next, own), replace(self._sampling, n=1)
        finally:
            if self._engine is not None and self._engine.status is not EngineStatus.UNUSABLE:
                self._engine.abort()
        if self._error is not None:
            raise self._error

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _exchange(self, new: list[Request]) -> list[list[Request]] | None:
        """The new requests of each rank of the group; None at the end. On ranks that see all that the engine does, nothing is sent while
        no conversation waits for an answer.
        """
        failed, waiting = self._error is not None, self._talks.waiting
        if self._group.size == 1:
            self._waiting = waiting
            return None if failed or not (new or waiting or self._running) else [new]
        if self._spmd and self._quiet and not failed:
            return []
        head = [int(failed), waiting, len(self._running) if self._engine is not None else 0, self._digest]
        told = torch.cat([torch.tensor(head, dtype=torch.int32), pack_requests(new)])
        rows = gather_ragged(told, group=self._group.group)
        heads = [row[:HEAD].tolist() for row in rows]
        shares = [unpack_requests(row[HEAD:]) for row in rows]
        different = [self._group.ranks[at] for at, (*_, digest) in enumerate(heads) if self._spmd and digest != heads[0][-1]]
        if different and self._error is None:
            self._error = EngineError(f"ranks {different} of the engine group {self._group.ranks} sampled other tokens than its first rank")
        self._waiting = sum(waiting for _, waiting, _, _ in heads)
        goes_on = self._waiting or any(shares) or any(running for _, _, running, _ in heads)
        return None if different or any(failed for failed, *_ in heads) or not goes_on else shares

    def _step(self, shares: Sequence[Sequence[Request]], sampling: SamplingParams) -> list[Ended]:
        """Gives the engine what is new, and lets it go on."""
        engine = self._engine
        if engine is None:
            return []
        new = [request for share in shares for request in share]
        if new:
            engine.start(new, sampling)
        for owner, share in enumerate(shares):
            for request in share:
                missing = set(range(sampling.n))
                self._running[request.id] = Running(request=request, sampling=sampling, owner=owner, missing=missing)
        ended: list[Ended] = []
        while self._running and not ended:
            ended = self._poll([one.request for one in self._running.values()])
            if self._group.size == 1 or self._spmd or self._waiting:
                break
        for one in ended:
            self._look_at(one)
        lost = [number for number, one in self._running.items() if one.missing]
        if lost and not self._joins:
            raise EngineError(
                f"the engine was given {len(new)} requests, and of {len(lost)} (request {lost[0]} the first) completions are missing"
            )
        return ended

    def _look_at(self, one: Ended) -> None:
        running = self._running.get(one.id)
        if running is None or one.index not in running.missing:
            raise EngineError(f"the engine gave sample {one.index} of request {one.id}, which it was not asked for or had given before")
        self._check(running.request, running.sampling, one.completion)
        running.missing.remove(one.index)
        if self._group.size > 1 and self._spmd:
            told = f"{self._digest}/{one.id}/{one.index}/{list(one.completion.token_ids)}"
            self._digest = int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "little") >> 1

    def _own(self, ended: Sequence[Ended]) -> list[Ended]:
        """Those of this rank. Collective over the group where its first rank alone has the engine."""
        owners = [self._running[one.id].owner for one in ended]
        for number in {one.id for one in ended}:
            if not self._running[number].missing:
                del self._running[number]
        if self._group.size == 1:
            return list(ended)
        if self._spmd:
            return [one for one, owner in zip(ended, owners, strict=True) if owner == self._group.rank]
        heads, packed = [], []
        for rank in range(self._group.size if self._engine is not None else 0):
            share = [one for one, owner in zip(ended, owners, strict=True) if owner == rank]
            heads.append(torch.tensor([number for one in share for number in (one.id, one.index)], dtype=torch.int32))
            packed.append(pack_outputs([RequestOutput(id=one.id, prompt_token_ids=(), completions=(one.completion,)) for one in share]))
        group = self._group.group
        head = scatter_from_first(heads, dtype=torch.int32, group=group).view(-1, 2).tolist()
        tokens = scatter_from_first([one for one, _ in packed], dtype=torch.int32, group=group)
        logprobs = scatter_from_first([one for _, one in packed], dtype=torch.float32, group=group)
        outputs = unpack_outputs(tokens, logprobs, [self._mine[number][0] for number, _ in head])
        return [Ended(id=number, index=index, completion=o.completions[0]) for (number, index), o in zip(head, outputs, strict=True)]

    def _next(self, own: Sequence[Ended]) -> list[Request]:
        """Passes on what has ended, and takes the turns that follow."""
        for one in own:
            self._talks.hear(self._mine[one.id][1] + one.index, one.completion)
        idle = 0.0 if self._running or (self._engine is None) else IDLE_S
        found = []
        for ask in self._talks.turns(wait_s=idle if self._joins else None):
            talks = self._total * self._sampling.n
            talk = self._first * self._sampling.n + ask.talk
            request = Request(
                id=self._total + (ask.number - 1) * talks + talk,
                prompt_token_ids=ask.token_ids,
                seed=derive_seed(self._seed + ask.number * TURN_SEEDS, talk),
                logprobs=ask.logprobs,
            )
            self._mine[request.id] = (request, ask.talk)
            found.append(request)
        return found

    def _attempt(self, work: Callable[..., list[T]], *given: Any) -> list[T]:
        """What it returns; an error is kept until the ranks of the group have heard of it, and there is nothing then."""
        if self._error is not None:
            return []
        try:
            return work(*given)
        except Exception as error:
            self._error = error
            return []
