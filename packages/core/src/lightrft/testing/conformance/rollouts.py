"""How the strategy drives an inference engine, the fake one: prompts, order, versions, states, whatever ranks bring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from lightrft.config.load import make_config
from lightrft.errors import CapabilityError, StrategyStateError
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.conformance.bench import StrategyBench
from lightrft.testing.conformance.plain import NAMES
from lightrft.testing.conformance.requirement import check
from lightrft.testing.fake_strategy import with_fake_engine
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder
from lightrft.testing.workload import SETTINGS, train
from lightrft.types import EngineStatus, RequestOutput, SamplingParams

SAMPLING = SamplingParams(n=3, max_new_tokens=6, seed=5)


@contextmanager
def _with_engine(bench: StrategyBench, *, tp_size: int = 1) -> Iterator[StrategyBase]:
    """A strategy with an engine of the tiny model of `seed` 0."""
    folder = bench.folder / "engine"
    if bench.rank == 0 and not folder.exists():
        tiny_model_folder(folder)
    bench.strategy.all_reduce(0.0)
    settings = {"model_name_or_path": str(folder), "prompt_max_len": 32, "generate_max_len": 16, "engine_tp_size": tp_size}
    strategy = bench.start(with_fake_engine(bench.registry), **settings)
    strategy.setup_inference_engine(make_config({"strategy": bench.subject.name, **settings, "engine_type": "fake"}))
    yield strategy
    strategy.shutdown_inference_engine()


def _prompts(rank: int) -> list[list[int]]:
    """As many as the rank's number: none on rank 0."""
    return [[3 + rank, 4 + index] for index in range(rank)]


def _tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(c.token_ids) for c in output.completions] for output in outputs]


@check("gather_and_generate")
def ranks_bring_different_numbers_of_prompts(bench: StrategyBench) -> None:
    """Outputs answer this rank's prompts in their order, n completions each; a rank may bring none, and keeps no other waiting"""
    mine = _prompts(bench.rank)
    for size in sorted({1, bench.world_size}):
        with _with_engine(bench, tp_size=size) as strategy:
            outputs = strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=mine)
            again = strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=mine)
        found = [list(o.prompt_token_ids) for o in outputs]
        assert found == mine, f"rank {bench.rank} brought the prompts {mine} and got outputs for {found} (engine_tp_size={size})"
        numbers = [len(o.completions) for o in outputs]
        assert numbers == [SAMPLING.n] * len(mine), f"asked were {SAMPLING.n} completions for each prompt, found {numbers}"
        assert _tokens(outputs) == _tokens(again), "the same prompts with the same seed gave other completions"


@check("gather_and_generate")
def outputs_do_not_depend_on_who_brings_the_prompts(bench: StrategyBench) -> None:
    """All prompts on the last rank give what they give when they are dealt over the ranks, sample by sample"""
    everything = [prompt for rank in range(bench.world_size) for prompt in _prompts(rank + 1)]
    mine = _prompts(bench.rank + 1)
    with _with_engine(bench) as strategy:
        dealt = strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=mine)
        at_once = strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=everything if bench.is_last else [])
    tokens = torch.tensor([_padded(t) for t in _tokens(dealt)], dtype=torch.long).reshape(-1, SAMPLING.n, SAMPLING.max_new_tokens)
    gathered = bench.strategy.all_gather(tokens).tolist()
    if bench.is_last:
        expected = [_padded(t) for t in _tokens(at_once)]
        assert gathered == expected, "completions depend on which rank brings a prompt, or reach another prompt than the one they answer"


@check("update_engine_weights", after=NAMES)
def a_sync_gives_the_engine_the_actor(bench: StrategyBench) -> None:
    """After a sync the engine holds the actor bit by bit, `weight_version` is one more, and completions carry it"""
    with _with_engine(bench) as strategy:
        actor, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
        greedy = replace(SAMPLING, temperature=0.0, n=1)
        before = strategy.gather_and_generate(greedy, all_prompt_token_ids=[[3, 4, 5]])
        train(strategy, actor, optimizer, last=1)
        strategy.update_engine_weights(actor)
        after = strategy.gather_and_generate(greedy, all_prompt_token_ids=[[3, 4, 5]])
        differing = strategy.differing_engine_weights(actor)
        version = strategy.weight_version
        carried = {c.weight_version for o in after for c in o.completions}
    assert version == 1, f"weight_version is {version} after one sync: every completion would carry a wrong number"
    assert carried == {1}, f"completions after the first sync carry the versions {sorted(carried)}"
    assert not differing, f"after a sync the engine does not hold the actor: {', '.join((differing or [])[:3])}"
    assert _tokens(before) != _tokens(after), "a sync did not change what the engine answers: its weights are stale"


@check("inference_engine_status")
def the_engine_sleeps_and_wakes(bench: StrategyBench) -> None:
    """Awake when made; asleep after a rollout that asks for it; calls are idempotent; generating wakes it"""
    seen = []
    with _with_engine(bench) as strategy:
        seen.append(strategy.inference_engine_status)
        for call in (strategy.maybe_sleep_inference_engine, strategy.wakeup_inference_engine):
            call()
            call()
            seen.append(strategy.inference_engine_status)
        strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=[[3]], sleep_engine=True)
        seen.append(strategy.inference_engine_status)
        strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=[[3]], sleep_engine=False)
        seen.append(strategy.inference_engine_status)
    expected = [EngineStatus.AWAKE, EngineStatus.ASLEEP, EngineStatus.AWAKE, EngineStatus.ASLEEP, EngineStatus.AWAKE]
    assert seen == expected, f"states are {[str(s) for s in seen]}, expected {[str(s) for s in expected]}"


@check("shutdown_inference_engine")
def ranks_train_on_without_an_engine(bench: StrategyBench) -> None:
    """Without an engine its methods are StrategyStateErrors; after it is shut down ranks go on; there is one at a time"""
    try:
        bench.strategy.wakeup_inference_engine()
    except StrategyStateError as error:
        assert "setup_inference_engine" in str(error), f"the refusal does not say what to call: {str(error)!r}"
    else:
        raise AssertionError("wakeup_inference_engine without an engine was accepted")
    with _with_engine(bench) as strategy:
        twice = False
        try:
            strategy.setup_inference_engine(make_config({"strategy": bench.subject.name, "engine_type": "fake"}))
        except StrategyStateError:
            twice = True
    works = strategy.all_reduce(1.0, "sum") == bench.world_size
    strategy.shutdown_inference_engine()
    assert twice, "a second engine was set up while one is there"
    assert works, "after shutdown_inference_engine the ranks no longer reach each other"


@check("gather_and_generate")
def what_is_asked_of_a_rollout_reaches_the_engine(bench: StrategyBench) -> None:
    """Sampling may come as a mapping, ended prompts are told, log-probs that the engine lacks are refused, and counters are restored"""
    mine, told = [[3 + bench.rank, 4], [5, 6 + bench.rank]], list[tuple[int, RequestOutput]]()
    mapping = {"n": SAMPLING.n, "max_new_tokens": SAMPLING.max_new_tokens, "seed": SAMPLING.seed}
    with _with_engine(bench) as strategy:
        outputs = strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=mine, on_finished=lambda i, o: told.append((i, o)))
        mapped = strategy.gather_and_generate(mapping, all_prompt_token_ids=mine)
        refused = ""
        try:
            strategy.gather_and_generate(SAMPLING, all_prompt_token_ids=mine, logprobs=True)
        except CapabilityError as error:
            refused = str(error)
        strategy.restore_engine(weight_version=7, calls=9)
        counters = strategy.weight_version, strategy.engine_calls
    order = sorted(i for i, _ in told)
    assert order == [0, 1], f"on_finished was called for the prompts {order} of 2: a reward could not start while others are generated"
    assert [_tokens([o]) for _, o in sorted(told, key=lambda pair: pair[0])] == [_tokens([o]) for o in outputs], (
        "on_finished was given other outputs than the rollout returned"
    )
    assert _tokens(mapped) == _tokens(outputs), "sampling parameters as a mapping gave other completions than the same as SamplingParams"
    assert "logprobs" in refused, f"log-probs of an engine that has none: {refused or 'accepted in silence'}"
    assert counters == (7, 9), f"after restore_engine(weight_version=7, calls=9) the counters are {counters}: a resumed run draws otherwise"


def _padded(completions: list[list[int]]) -> list[list[int]]:
    return [tokens + [-1] * (SAMPLING.max_new_tokens - len(tokens)) for tokens in completions]
