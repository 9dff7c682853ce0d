"""The clipped loss and the KL estimators are what their papers say. Numbers worked out by hand."""

import math

import pytest
import torch

from lightrft.algorithms.inputs import PolicyLossInput
from lightrft.algorithms.kl import kl_per_token
from lightrft.algorithms.ppo_clip import ppo_clip


def test_ppo_clip_by_hand() -> None:
    ratios = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0, 2.0]])
    logprobs = ratios.log().requires_grad_()
    out = ppo_clip(PolicyLossInput(logprobs=logprobs, old_logprobs=torch.zeros(1, 5), advantages=advantages, mask=torch.ones(1, 5)))
    # A > 0: min(rho, 1.2); A < 0: max(rho, 0.8) times -A
    assert out.per_token.tolist()[0] == pytest.approx([-1.2, -0.5, 1.5, 0.8, -2.2])
    assert out.clipped.tolist() == [[True, False, False, True, False]]
    out.per_token.sum().backward()
    # d rho / d logprob = rho where not clipped, 0 where clipped
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[0] == pytest.approx([0.0, -0.5, 1.5, 0.0, -2.2])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [math.log(2), -math.log(2)]),
        ("k2", [math.log(2) ** 2 / 2, math.log(2) ** 2 / 2]),
        ("k3", [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)]),
    ],
)
def test_kl_estimators_by_hand(estimator: str, expected: list[float]) -> None:
    got = kl_per_token(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log(), estimator=estimator)  # type: ignore[arg-type]
    assert got.tolist() == pytest.approx(expected)


def test_mean_gradients_of_the_estimators_as_losses() -> None:
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    initial = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    pi = logits.softmax(-1)
    weight = pi.detach()

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    forward = gradient((pi * (pi / initial).log()).sum())
    other = gradient((initial * (initial / pi).log()).sum())
    expected = {"k1": torch.zeros(3, dtype=torch.float64), "k2": forward, "k3": other}
    for estimator, wanted in expected.items():
        got = gradient((weight * kl_per_token(pi.log(), initial.log(), estimator=estimator)).sum())  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
