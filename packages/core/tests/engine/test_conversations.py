"""Conversations of one to four turns on four ranks: through groups of 1, 2 and 4, joining those that run or not, as on one rank."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightrft.distributed.mesh import neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup
from lightrft.errors import EngineError
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.rollout.conversations import Ask
from lightrft.rollout.environment_calls import EnvironmentCalls
from lightrft.testing.fake_engine import FakeEngine, SteppingEngine
from lightrft.testing.spmd import run_spmd
from lightrft.types import Completion, Ended, SamplingParams

PROMPTS = [[[3], [4, 5], [6, 7, 8]], [], [[9], [9]], [[10, 11]]]
"""Of each of four ranks; the second has none."""

N = 2
SAMPLING = SamplingParams(n=N, max_new_tokens=12)
MODES = [(topology, size, joins) for topology in ("single_leader", "spmd") for size in (1, 2, 4) for joins in (False, True)]


class Echoes:
    """Conversations of 1 to 4 turns, by their prompt and first tokens. An answer, token 2, takes up to 20 ms; `fails` raises at one."""

    def __init__(self, prompts: list[list[int]], *, fails: bool = False) -> None:
        self.contexts = [list(prompt) for prompt in prompts for _ in range(N)]
        self.drawn: list[list[list[int]]] = [[] for _ in self.contexts]
        self.fails = fails
        self._calls = EnvironmentCalls(timeout_s=10, concurrency=8).begin()

    @property
    def waiting(self) -> int:
        return len(self._calls)

    def hear(self, talk: int, completion: Completion) -> None:
        if self.fails and len(self.drawn[talk]) == 1:
            raise KeyError("cannot hear")
        self.drawn[talk].append(list(completion.token_ids))
        self.contexts[talk] += completion.token_ids
        more = len(self.drawn[talk]) <= sum(self.drawn[talk][0] + self.contexts[talk][:1]) % 4

        def answer() -> bool:
            time.sleep(random.random() * 0.02)
            return more

        self._calls.add(talk, answer)

    def turns(self, *, wait_s: float | None) -> list[Ask]:
        going = sorted(talk for talk, outcome in self._calls.done(wait_s=wait_s) if outcome.value)
        for talk in going:
            self.contexts[talk].append(2)
        return [Ask(talk=t, number=len(self.drawn[t]), token_ids=tuple(self.contexts[t]), logprobs=False) for t in going]


def make(world: World, size: int, topology: Any, joins: bool, cls: type[FakeEngine] | None = None) -> RolloutController:
    group = neighbours(world, size=size)
    setup = EngineSetup(
        model_path="", dtype=torch.float32, device=world.device, seed=0, max_model_len=64, max_batch_size=4, mem_util=0.85,
        trust_remote_code=False, rank=group.rank, group_size=size, group=group.group,
    )  # fmt: skip
    able = {Capability.TENSOR_PARALLEL, *([Capability.STEPPING] if joins else [])}
    spec = EngineSpec(name="fake", target="a:b", capabilities=frozenset(able), topology=topology)
    chosen = cls or (SteppingEngine if joins else FakeEngine)
    return RolloutController(
        lambda: chosen(setup), spec=spec, world=world, group=group, dtype=torch.float32, sleep_level=None, seed=3, tokenize=lambda text: [1]
    )


def converse(unit: RolloutController, prompts: list[list[int]], **how: Any) -> tuple[int, list[list[list[int]]], list[list[int]]]:
    talks = Echoes(prompts, **how)
    before = unit.converse(SAMPLING, prompt_token_ids=prompts, logprobs=False, talks=talks)
    assert talks.waiting == 0 and unit.calls == 1
    return before, talks.drawn, talks.contexts


def alone(*mode: Any, **how: Any) -> tuple[int, list[list[list[int]]], list[list[int]]]:
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    return converse(make(world, 1, "spmd", *mode), [prompt for prompts in PROMPTS for prompt in prompts], **how)


def on_four_ranks() -> dict[Any, Any]:
    world = World.join(need_group=True)
    found: dict[Any, Any] = {}
    for topology, size, joins in MODES:
        found[topology, size, joins] = converse(make(world, size, topology, joins), PROMPTS[world.rank])
        unit = make(world, size, topology, joins)
        try:
            converse(unit, PROMPTS[world.rank], fails=world.rank == 2)
        except Exception as error:
            found[topology, size, joins, "fails"] = f"{type(error).__name__}: {error}"
        if unit.engine is not None:
            assert not unit.engine.poll(), "what had not ended is forgotten"
    unit = make(world, 2, "spmd", True, Drifting)
    with pytest.raises(Exception, match=r"ranks \[[13]\] of the engine group \(\d, \d\) sampled other tokens than its first"):
        converse(unit, PROMPTS[world.rank])
    return found


class Drifting(SteppingEngine):
    """Samples otherwise on the second rank of its group, in as many tokens."""

    def poll(self) -> list[Ended]:
        ended = super().poll()
        if self.setup.rank == 1:
            for one in ended:
                vars(one)["completion"] = Completion(
                    token_ids=[2] * len(one.completion.token_ids), finish_reason="length", weight_version=0
                )
        return ended


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, Any]]:
    return run_spmd(on_four_ranks, 4, timeout_s=100)


def test_joining_draws_what_waiting_for_all_answers_draws() -> None:
    waits, joins = alone(False), alone(True)
    assert waits == joins
    assert {len(drawn) for drawn in waits[1]} == {1, 3, 4}


@pytest.mark.parametrize("mode", MODES)
def test_four_ranks_draw_what_one_draws(ranks: list[dict[Any, Any]], mode: Any) -> None:
    _, drawn, contexts = alone(False)
    assert [turns for rank in ranks for turns in rank[mode][1]] == drawn
    assert [context for rank in ranks for context in rank[mode][2]] == contexts
    assert [rank[mode][0] for rank in ranks] == [0, 3, 3, 5], "prompts of the ranks before"


@pytest.mark.parametrize("mode", MODES)
def test_what_fails_on_one_rank_is_told_on_all(ranks: list[dict[Any, Any]], mode: Any) -> None:
    told = [rank[(*mode, "fails")] for rank in ranks]
    assert told[2] == "KeyError: 'cannot hear'"
    assert {told[0], told[1], told[3]} == {"PeerError: generating failed on rank 2 of its group: KeyError: 'cannot hear'"}


def test_a_turn_that_follows_does_not_wait_for_the_longest_one() -> None:
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    unit = make(world, 1, "spmd", True)
    talks = Quick([[3], [4, 5], [6, 7, 8], [9]])
    unit.converse(SAMPLING, prompt_token_ids=[[3], [4, 5], [6, 7, 8], [9]], logprobs=False, talks=talks)
    lengths = [[len(turn) for turn in turns] for turns in talks.drawn]
    turn_by_turn = sum(max((turns[number] for turns in lengths if number < len(turns)), default=0) for number in range(4))
    assert isinstance(unit.engine, SteppingEngine)
    assert unit.engine.polls == max(sum(turns) for turns in lengths) < turn_by_turn


class Quick(Echoes):
    """Answers at once."""

    def hear(self, talk: int, completion: Completion) -> None:
        self.drawn[talk].append(list(completion.token_ids))
        self.contexts[talk] += completion.token_ids
        if len(self.drawn[talk]) <= sum(self.drawn[talk][0] + self.contexts[talk][:1]) % 4:
            self.going = [*getattr(self, "going", ()), talk]

    def turns(self, *, wait_s: float | None) -> list[Ask]:
        going, self.going = getattr(self, "going", []), []
        for talk in going:
            self.contexts[talk].append(2)
        return [Ask(talk=t, number=len(self.drawn[t]), token_ids=tuple(self.contexts[t]), logprobs=False) for t in going]


def twice(unit: Any, ended: list[Ended]) -> list[Ended]:
    return [*ended, *ended]


def fewer(unit: Any, ended: list[Ended]) -> list[Ended]:
    return ended[1:]


def of_another(unit: Any, ended: list[Ended]) -> list[Ended]:
    return [Ended(id=one.id + 100, index=one.index, completion=one.completion) for one in ended]


def of_other_weights(unit: Any, ended: list[Ended]) -> list[Ended]:
    for one in ended:
        vars(one.completion)["weight_version"] = 7
    return ended


@pytest.mark.parametrize(
    ("change", "problem", "joins"),
    [
        (twice, r"gave sample \d of request \d, which it was not asked for or had given before", True),
        (fewer, r"given 6 requests, and of 1 \(request 0 the first\) completions are missing", False),
        (of_another, r"gave sample \d of request 10\d, which it was not asked for", True),
        (of_other_weights, "sampled from weights version 7, the actor is at 0", True),
    ],
)
def test_what_an_engine_gives_wrongly_is_an_error(change: Callable[..., list[Ended]], problem: str, joins: bool) -> None:
    class Wrong(SteppingEngine if joins else FakeEngine):  # type: ignore[misc]  # one of two
        def poll(self) -> list[Ended]:
            return change(self, super().poll())

    with pytest.raises(Exception, match=problem) as caught:
        alone(joins, Wrong)
    assert isinstance(caught.value, EngineError) or change is of_other_weights
