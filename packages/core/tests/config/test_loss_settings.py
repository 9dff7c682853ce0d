"""A policy loss brings the bounds and the aggregation of its paper, where the settings say nothing; and says so."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.config.loss_settings import first_ratio_limit, loss_in_words, loss_settings
from lightrft.plugins.registry import Registry


def found(**changes: Any) -> tuple[float, float, str]:
    config = make_config(changes)
    chosen = loss_settings(config, Registry.discover().spec("policy_loss", config.policy_loss))
    return round(chosen.eps_clip_low, 4), round(chosen.eps_clip_high, 4), chosen.loss_aggregation


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0.2, 0.2, "token_mean")),
        ({"policy_loss": "cpgd"}, (0.2, 0.2, "token_mean")),
        ({"policy_loss": "gspo"}, (0.0003, 0.0004, "sequence_mean")),
        ({"policy_loss": "gspo_token"}, (0.0003, 0.0004, "sequence_mean")),
        ({"policy_loss": "cispo"}, (1.0, 0.2, "token_mean")),
        ({"policy_loss": "gmpo"}, (0.3297, 0.4918, "sequence_mean")),
        ({"policy_loss": "gspo", "eps_clip": 0.2, "loss_aggregation": "token_mean"}, (0.2, 0.2, "token_mean")),
        ({"policy_loss": "gspo", "eps_clip_high": 0.01}, (0.0003, 0.01, "sequence_mean")),
        ({"policy_loss": "gspo", "eps_clip": 0.1, "eps_clip_low": 0.05}, (0.05, 0.1, "sequence_mean")),
        ({"eps_clip": 0.1, "eps_clip_high": 0.28, "loss_aggregation": "constant"}, (0.1, 0.28, "constant")),
    ],
)
def test_what_is_set_stands_and_the_rest_is_the_paper_s(changes: dict[str, Any], expected: tuple[float, float, str]) -> None:
    assert found(**changes) == expected


def test_it_is_said_where_it_is_not_what_most_losses_have() -> None:
    spec = Registry.discover().spec("policy_loss", "gspo")
    said = loss_in_words(make_config({"policy_loss": "gspo", "eps_clip_high": 0.01}), spec)
    assert said == ("policy_loss=gspo: eps_clip_low=0.0003, loss_aggregation=sequence_mean, as in its paper; each can be set")
    assert loss_in_words(make_config({"policy_loss": "gspo", "eps_clip": 0.2, "loss_aggregation": "token_mean"}), spec) == ""
    assert loss_in_words(make_config({}), Registry.discover().spec("policy_loss", "ppo_clip")) == ""


def test_the_limit_of_a_first_ratio_follows_the_narrower_bound() -> None:
    registry = Registry.discover()
    assert first_ratio_limit(make_config({}), registry.spec("policy_loss", "ppo_clip")) == pytest.approx(0.02)
    assert first_ratio_limit(make_config({"policy_loss": "gspo"}), registry.spec("policy_loss", "gspo")) == pytest.approx(3e-5)
