"""An estimator and a loss that do not go together, or settings that they do not read, are told at start."""

from __future__ import annotations

import pytest

from lightrft.config.checks import check
from lightrft.plugins import (
    Registry,
    builtin,
)


@pytest.fixture
def with_algorithms(registry, entry) -> Registry:
    """The world with core's own estimators and losses."""
    specs = [spec for spec in builtin.lightrft_plugins() if spec.kind in ("advantage", "policy_loss")]
    return Registry([e for e in registry().entries() if e.kind not in ("advantage", "policy_loss")] + [entry(spec) for spec in specs])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"advantage_estimator": "rloo", "n_samples_per_prompt": 1, "train_batch_size": 128},
            "advantage_estimator='rloo' compares the samples of one prompt: n_samples_per_prompt=1 gives it nothing; use at least 2, "
            "or an estimator that compares with something else (gae, reinforce_pp, remax)",
        ),
        (
            {"policy_loss": "gspo", "logprob_gap_action": "correct"},
            "policy_loss='gspo' has one ratio for a whole completion; with logprob_gap_action='correct' set mismatch_level to sequence, "
            "or use a loss of single tokens (ppo_clip)",
        ),
        (
            {"lambd": 0.5},
            "lambd=0.5 has no effect with advantage_estimator='grpo'; leave it out (gae would read it)",
        ),
        (
            {"gamma": 0.5},
            "gamma=0.5 has no effect with advantage_estimator='grpo'; leave it out (gae, reinforce_pp, reinforce_pp_baseline would ",
        ),
        (
            {"policy_loss": "cispo", "dual_clip": 3.0},
            "dual_clip=3.0 has no effect with policy_loss='cispo'; leave it out (ppo_clip",
        ),
        ({"dual_clip": 0.5}, "dual_clip=0.5 is not above 1, where it would bound ordinary losses; use about 3, or 0 for none"),
        ({"advantage_estimator": "rlooo"}, "unknown advantage 'rlooo'; did you mean 'rloo'?"),
        ({"policy_loss": "gsppo"}, "unknown policy_loss 'gsppo'; did you mean 'gspo'?"),
    ],
)
def test_algorithms_that_do_not_go_together(make, changes, message, problems, with_algorithms):
    [found] = problems(make(**changes), found=with_algorithms)
    assert found.startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage_estimator": "remax", "n_samples_per_prompt": 1, "train_batch_size": 128},
        {"policy_loss": "gspo", "logprob_gap_action": "correct", "mismatch_level": "sequence"},
        {"advantage_estimator": "reinforce_pp", "gamma": 0.5},
        {"policy_loss": "ppo_clip", "dual_clip": 3.0, "eps_clip_low": 0.1, "eps_clip_high": 0.3},
    ],
)
def test_algorithms_that_do(make, changes, with_algorithms):
    check(make(**changes), registry=with_algorithms, world_size=2)
