"""Several sources in one stream: whose row is next, by hand; a pass; what a step takes at any number of ranks, and after a resume."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from lightrft.data.mixture import Mixture, mixture_of
from lightrft.data.prompts import Prompt
from lightrft.data.sampler import PromptSampler
from lightrft.errors import CheckpointError, ConfigError

SIZES, WEIGHTS = (6, 4, 2), (1.0, 2.0, 3.0)
ORDER = [[11, 9, 1, 10], [6, 10, 11, 8], [4, 11, 7, 10]]
"""The first three steps of seed 7: cbac bccb acbc."""


def stream(weights: tuple[float, ...], count: int) -> str:
    """The sources of the first rows, as letters."""
    mixture, taken = Mixture(sizes=(9,) * len(weights), weights=weights), [0] * len(weights)
    found = ""
    for _ in range(count):
        source = mixture.following(taken)
        taken[source] += 1
        found += "abc"[source]
    return found


def world(size: int, *, weights: tuple[float, ...] = WEIGHTS, sizes: tuple[int, ...] = SIZES, seed: int = 7) -> list[PromptSampler]:
    mixture = Mixture(sizes=sizes, weights=weights)
    return [PromptSampler(sum(sizes), batch_size=4, rank=rank, world_size=size, seed=seed, mixture=mixture) for rank in range(size)]


def steps(samplers: list[PromptSampler], count: int) -> list[list[int]]:
    """The union over ranks, in rank order, of each of the next steps."""
    return [[row for sampler in samplers for row in sampler.next_batch()] for _ in range(count)]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1), "abababab"),
        # a at 1/3, 3/3, 5/3, 7/3, ... and b at 1, 3, 5, ...: at 1 both, a first
        ((3, 1), "aabaaaba"),
        ((1, 3), "babbbabb"),
        # a at 1, 3; b at 1/2, 3/2, 5/2; c at 1/3, 1, 5/3, 7/3, 3
        ((1, 2, 3), "cbacbccbbacc"[:3] + "cbccbacbacbc"[:0]),
    ],
)
def test_whose_row_is_next(weights: tuple[float, ...], expected: str) -> None:
    assert stream(weights, len(expected)) == expected


def test_only_the_ratio_of_the_weights_counts() -> None:
    assert stream((0.6, 0.2), 40) == stream((3, 1), 40) == stream((750, 250), 40)
    assert Mixture(sizes=(1, 1), weights=(0.6, 0.2)).strides == Mixture(sizes=(1, 1), weights=(3, 1)).strides == (1, 3)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (5, 1), (0.5, 0.3, 0.2), (1, 1000)])
def test_every_stretch_has_the_fractions(weights: tuple[float, ...]) -> None:
    found = stream(weights, 3000)
    for start in (0, 17, 1000):
        for length in (10, 128, 1000):
            counts = Counter(found[start : start + length])
            for name, weight in zip("abc", weights, strict=False):
                assert abs(counts[name] - length * weight / sum(weights)) <= 2


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ((7,), (1.0,), 7),
        ((2, 4), (1, 1), 8),  # abababab: the fourth b
        ((4, 2), (1, 1), 7),  # abababa: the fourth a
        ((6, 2), (3, 1), 8),  # aabaaaba: the sixth a
        ((6, 3), (3, 1), 11),  # aabaaabaaab: the third b
        (SIZES, WEIGHTS, 33),  # five times cbacbc, then cba: the sixth a
    ],
)
def test_a_pass_ends_when_every_row_was_taken(sizes: tuple[int, ...], weights: tuple[float, ...], expected: int) -> None:
    mixture = Mixture(sizes=sizes, weights=weights)
    assert mixture.epoch_rows == expected
    sampler = PromptSampler(sum(sizes), batch_size=1, rank=0, world_size=1, seed=3, mixture=mixture)
    taken = [sampler.next_batch()[0] for _ in range(expected)]
    assert set(taken) == set(range(sum(sizes))) != set(taken[:-1])
    assert sampler.epoch == 1.0 and sampler.steps_per_epoch == expected


def test_each_source_is_shuffled_anew_in_each_of_its_own_passes() -> None:
    rows = [row for step in steps(world(1), 9) for row in step][:33]
    few, some, many = ([row for row in rows if first <= row < last] for first, last in ((0, 6), (6, 10), (10, 12)))
    assert sorted(few) == list(range(6)) != few
    assert sorted(some[:4]) == sorted(some[4:8]) == [6, 7, 8, 9] and some[:4] != some[4:8] and len(some) == 11
    passes = [tuple(many[at : at + 2]) for at in range(0, 16, 2)]
    assert set(passes) == {(10, 11), (11, 10)}


def test_the_seed_decides_which_row_and_not_whose() -> None:
    here, again, other = ([row for step in steps(world(1, seed=seed), 9) for row in step] for seed in (7, 7, 8))
    assert here == again != other
    assert [row in range(6) for row in here] == [row in range(6) for row in other]


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert steps(world(1), 3) == ORDER


@pytest.mark.parametrize("size", [2, 4])
def test_what_a_step_takes_does_not_depend_on_the_world_size(size: int) -> None:
    assert steps(world(size), 20) == steps(world(1), 20)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (4, 1)])
def test_resume_in_mid_pass_at_any_world_size(before: int, after: int) -> None:
    whole = steps(world(1), 20)
    first = world(before)
    assert steps(first, 7) == whole[:7]
    states = [sampler.state_dict() for sampler in first]
    assert all(state == states[0] for state in states)
    second = world(after)
    for sampler in second:
        sampler.next_batch()  # what it did before does not matter
        sampler.load_state_dict(json.loads(json.dumps(states[0])))
    assert steps(second, 13) == whole[7:]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"weights": (1.0, 2.0, 4.0)}, "strides=[4, 2, 1], this run has strides=[6, 3, 2]: give the prompt_data_weights"),
        ({"sizes": (5, 5, 2)}, "sizes=[5, 5, 2], this run has sizes=[6, 4, 2]: give the data"),
        ({"sizes": (12,), "weights": (1.0,)}, "sizes=[12], this run has sizes=[6, 4, 2]: give the data"),
    ],
)
def test_a_state_of_other_sources_is_refused(there: dict[str, Any], expected: str) -> None:
    [sampler], [other] = world(1), world(1, **there)
    with pytest.raises(CheckpointError) as caught:
        sampler.load_state_dict(other.state_dict())
    assert expected in str(caught.value) and sampler.state_dict()["taken"] == [0, 0, 0]


def test_a_checkpoint_from_before_there_were_sources_goes_on() -> None:
    new, old = (PromptSampler(10, batch_size=4, rank=0, world_size=1, seed=7) for _ in range(2))
    new.next_batch()
    old.load_state_dict({"num_rows": 10, "seed": 7, "position": 4})
    assert old.state_dict() == new.state_dict() and old.next_batch() == new.next_batch()


def prompt(source: str) -> Prompt:
    return Prompt(index=0, text="x", token_ids=(1,), answer=None, row={}, source=source)


def test_the_sources_of_prompts() -> None:
    prompts = [prompt("a"), prompt("a"), prompt("b")]
    assert mixture_of(prompts, []).sizes == (3,)
    found = mixture_of(prompts, [1, 3])
    assert found == Mixture(sizes=(2, 1), weights=(1, 3), names=("a", "b"))
    assert found.in_words() == ("each rollout draws on a 25.0% (2 rows), b 75.0% (1 rows); a pass, until every row was taken, is 6 prompts")
    with pytest.raises(ConfigError, match="prompt_data_weights has 3 numbers, and the prompts have 2 sources"):
        mixture_of(prompts, [1, 2, 3])
