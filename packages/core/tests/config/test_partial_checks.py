"""What does not go with partial rollouts is refused at start, each with its remedy."""

from __future__ import annotations

import pytest

from lightrft.plugins import AdvantageSpec

PARTIAL = {"oversample": 1.5, "max_version_lag": 1}
PLAIN = "tokens of older weights are weighed by their probabilities then and now, and engines tell those of the plain distribution"
OUT = "leave it out, or max_version_lag and oversample"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"oversample": 1.5},
            "oversample=1.5 starts more prompts than a step trains, whose answers go on under newer weights; set max_version_lag (1, or "
            "more), or leave oversample out",
        ),
        (
            {"max_version_lag": 1},
            "max_version_lag=1 lets answers go on in later steps, and with oversample=1 each step needs all that it starts; set "
            "oversample (1.5, at most 2), or leave max_version_lag out",
        ),
        (
            PARTIAL | {"max_version_lag": 10**9},
            "max_version_lag=1000000000 is more than 64: set the number of updates that an answer may take, 1 to 4 as a rule",
        ),
        (PARTIAL | {"temperature": 0.5}, f"temperature=0.5 does not go with max_version_lag=1: {PLAIN}; {OUT}"),
        (PARTIAL | {"top_k": 5}, f"top_k=5 does not go with max_version_lag=1: {PLAIN}; {OUT}"),
        (
            PARTIAL | {"stop": ["."]},
            "stop=['.'] does not go with max_version_lag=1: it is looked for in what one call draws, and would be missed across two "
            f"slices; use stop_token_ids; {OUT}",
        ),
        (
            PARTIAL | {"min_new_tokens": 2},
            f"min_new_tokens=2 does not go with max_version_lag=1: it holds for one call to the engine, and an answer takes several; {OUT}",
        ),
        (
            PARTIAL | {"dynamic_sampling": True},
            "dynamic_sampling=True does not go with max_version_lag=1: it asks for further prompts by their rewards, which unfinished "
            f"answers do not have; {OUT}",
        ),
        (
            PARTIAL | {"reward_while_generating": True},
            "reward_while_generating=True does not go with max_version_lag=1: it rewards answers as the engine ends them, and here it ends "
            f"slices of them; {OUT}",
        ),
        (
            PARTIAL | {"logprob_gap_prompts": 5},
            "logprob_gap_prompts=5 has no effect with max_version_lag=1, which takes all prompts; leave logprob_gap_prompts out",
        ),
    ],
)
def test_what_does_not_go_with_it(make, changes, message, problems):
    assert problems(make(**changes)) == [message]


def test_greedy_answers_are_of_the_same_weights(make, registry, entry, problems):
    spec = AdvantageSpec(name="beyond", target="a:b", greedy=True)
    [message] = problems(make(**PARTIAL, advantage_estimator="beyond"), found=registry(entry(spec)))
    assert message.startswith("advantage_estimator='beyond' compares with a greedy answer of the same weights, which max_version_lag=1")


def test_an_engine_without_log_probs_is_told(make, problems):
    told = problems(make(**PARTIAL, engine_type="plain", logprob_gap_prompts=0, verify_sync_every=0))
    assert [line for line in told if line.startswith("max_version_lag=1 needs the capability 'logprobs'")]
