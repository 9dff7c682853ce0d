"""The settings of a rollout and of an evaluation reach the sampling parameters; what would change the trained distribution is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.cli.flags import parse
from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.experience.sampling import eval_greedy_params, eval_sample_params, greedy_params, sampling_params
from lightrft.types import REFUSED_SAMPLING, SamplingParams

SETTINGS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "n_samples_per_prompt": 3,
    "generate_max_len": 20,
    "min_new_tokens": 2,
    "stop": ["\n\n", "END"],
    "stop_token_ids": [7, 9],
    "ignore_eos": True,
    "seed": 4,
    "eval_n": 6,
}
ENDS: dict[str, Any] = dict(min_new_tokens=2, stop=("\n\n", "END"), stop_token_ids=(7, 9), ignore_eos=True)


def test_every_setting_of_a_rollout_arrives() -> None:
    found = sampling_params(make_config(SETTINGS))
    assert found == SamplingParams(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, n=3, max_new_tokens=20, **ENDS)
    assert greedy_params(make_config(SETTINGS)) == SamplingParams(temperature=0.0, max_new_tokens=20, **ENDS)


def test_an_evaluation_is_drawn_as_a_rollout_where_nothing_else_is_said() -> None:
    config = make_config(SETTINGS)
    as_rollout = dict(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, n=6, max_new_tokens=20, seed=4)
    assert eval_sample_params(config) == SamplingParams(**as_rollout, **ENDS)
    own = make_config(SETTINGS | {"eval_temperature": 0.3, "eval_top_p": 1.0, "eval_top_k": 0, "eval_max_len": 50})
    assert eval_sample_params(own) == SamplingParams(**as_rollout | dict(temperature=0.3, top_p=1.0, top_k=0, max_new_tokens=50), **ENDS)
    assert eval_greedy_params(own) == SamplingParams(temperature=0.0, max_new_tokens=50, **ENDS)
    assert sampling_params(own) == sampling_params(config)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stop": ""}, "stop.0='': string should have at least 1 character"),
        ({"stop": ["a", ""]}, "stop.1='': string should have at least 1 character"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0=-1: input should be greater than or equal to 0"),
        ({"min_p": 1.0}, "min_p=1.0: input should be less than 1"),
        (
            {"repetition_penalty": 1.1},
            "repetition_penalty=1.1 is not available: it changes the probabilities of a token by what stands before",
        ),
    ],
)
def test_bad_values_are_told(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        make_config(values)


@pytest.mark.parametrize("name", REFUSED_SAMPLING)
def test_what_changes_the_distribution_is_refused_with_its_reason_on_every_way_in(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=1.2 is not available: it .* use temperature, top_p, top_k or min_p"):
        SamplingParams.coerce({name: 1.2})
    with pytest.raises(ConfigError, match=f"{name}=1.2 is not available: it "):
        make_config({name: 1.2})
    flags = parse([f"--{name.replace('_', '-')}", "1.2"], command="train", description="", nproc_help="")
    assert flags.problems == [f"--{name.replace('_', '-')} is not available: {REFUSED_SAMPLING[name]}"]


def test_one_stop_may_be_written_alone() -> None:
    config = make_config({"stop": "END", "stop_token_ids": 5})
    assert (config.stop, config.stop_token_ids) == (["END"], [5])
