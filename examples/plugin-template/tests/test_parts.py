"""The parts are found by their names, and the small ones are right by numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightrft.algorithms.inputs import AdvantageInput, PolicyLossInput
from lightrft.config.load import make_config
from lightrft.plugins import Registry
from lightrft.run.loggers import LoggerSetup
from lightrft.types import Sample

KINDS = ("strategy", "engine", "reward", "advantage", "policy_loss", "logger")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_installed_and_its_code_can_be_imported(kind: str) -> None:
    registry = Registry.discover()
    assert registry.entry(kind, "acme").provider.distribution == "lightrft-acme"
    assert callable(registry.load(kind, "acme"))


@pytest.mark.parametrize(("completion", "answer", "expected"), [("123", "123", 1.0), ("12", "123", 2 / 3), ("", "1", 0.0), ("", None, 0.0)])
def test_the_reward_is_the_fraction_of_right_characters(completion: str, answer: str | None, expected: float) -> None:
    reward = Registry.discover().load("reward", "acme")
    assert reward([Sample(prompt="", completion=completion, answer=answer)]) == [expected]


def test_the_advantage_is_the_centred_reward_at_each_token() -> None:
    estimate = Registry.discover().load("advantage", "acme")
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    batch = AdvantageInput(rewards=torch.tensor([1.0, 0.0, 2.0]), group_ids=torch.tensor([0, 0, 1]), mask=mask)
    assert estimate(batch).advantages.tolist() == [[0.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]


def test_the_gradient_of_the_loss_is_minus_the_advantage() -> None:
    reinforce = Registry.discover().load("policy_loss", "acme")
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[0.5, -2.0]])
    found = reinforce(PolicyLossInput(logprobs=logprobs, old_logprobs=logprobs.detach(), advantages=advantages, mask=torch.ones(1, 2)))
    assert found.per_token.tolist() == [[0.5, -4.0]]
    assert not found.clipped.any()
    found.per_token.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [[-0.5, 2.0]]


def test_the_logger_writes_a_line_for_each_call(tmp_path: Path) -> None:
    logger = Registry.discover().load("logger", "acme")(LoggerSetup(log_dir=tmp_path, config=make_config({}), total_steps=2))
    logger.log(1, {"rollout/reward": 0.25, "eval/reward": 1.0})
    logger.log(2, {"rollout/reward": float("nan")})
    logger.log(3, {"rollout/reward": 0.5})
    logger.rewind(2)  # the run was stopped, and goes on after step 2
    logger.close()
    assert (tmp_path / "acme.log").read_text(encoding="utf-8").splitlines() == [
        "step 1 eval/reward=1 rollout/reward=0.25",
        "step 2 rollout/reward=nan",
    ]
