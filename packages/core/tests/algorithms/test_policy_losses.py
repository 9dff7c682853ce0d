"""Each policy loss is what its paper says. Values and gradients worked out by hand, then gradients against finite differences."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightrft.algorithms.aggregate import Aggregation, token_weights
from lightrft.algorithms.cispo import cispo
from lightrft.algorithms.cpgd import cpgd, drift
from lightrft.algorithms.cpgd_settings import CPGDSettings
from lightrft.algorithms.gmpo import gmpo
from lightrft.algorithms.gspo import gspo, gspo_token
from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.ppo_clip import ppo_clip
from lightrft.algorithms.value_loss import explained_variance, value_loss

Loss = Callable[[PolicyLossInput], PolicyLoss]

ALL = [ppo_clip, gspo, gspo_token, cispo, cpgd, gmpo]


def run(
    loss: Loss, ratios: list[list[float]], advantages: list[list[float]], mask: list[list[float]] | None = None, **settings: float
) -> tuple[PolicyLoss, torch.Tensor]:
    """The loss for these ratios (old log-probs are 0), and the gradient of its sum over tokens."""
    logprobs = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    shown = torch.tensor(mask, dtype=torch.float64) if mask else torch.ones_like(logprobs)
    given: dict[str, Any] = settings
    out = loss(
        PolicyLossInput(
            logprobs=logprobs,
            old_logprobs=torch.zeros_like(logprobs),
            advantages=torch.tensor(advantages, dtype=torch.float64),
            mask=shown,
            **given,
        )
    )
    (out.per_token * shown).sum().backward()
    assert logprobs.grad is not None
    return out, logprobs.grad


def test_clip_higher_leaves_room_above_alone() -> None:
    out, gradient = run(ppo_clip, [[1.25, 1.35, 0.75]], [[1.0, 1.0, -1.0]], eps_clip_low=0.2, eps_clip_high=0.28)
    assert out.per_token.tolist()[0] == pytest.approx([-1.25, -1.28, 0.8])
    assert out.clipped.tolist() == [[False, True, True]]
    assert gradient.tolist()[0] == pytest.approx([-1.25, 0.0, 0.0])


def test_dual_clip_bounds_the_loss_of_a_negative_advantage() -> None:
    # A = -2, c = 3: the loss rho * 2 is at most 6; A = 1 is not touched
    out, gradient = run(ppo_clip, [[5.0, 2.5, 5.0]], [[-2.0, -2.0, 1.0]], dual_clip=3.0)
    assert out.per_token.tolist()[0] == pytest.approx([6.0, 5.0, -1.2])
    assert out.clipped.tolist() == [[True, False, True]]
    assert gradient.tolist()[0] == pytest.approx([0.0, 5.0, 0.0])


def test_gspo_has_one_ratio_for_a_completion() -> None:
    # ratios 2 and 1/2: geometric mean 1; 2, 2, 2: 2, clipped at 1.2 for A > 0 and free for A < 0
    ratios = [[2.0, 0.5, 9.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    advantages = [[3.0, 3.0, 0.0], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
    mask = [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    out, gradient = run(gspo, ratios, advantages, mask)
    assert out.per_token[0, :2].tolist() == pytest.approx([-3.0, -3.0])
    assert out.per_token[1].tolist() == pytest.approx([-1.2] * 3) and out.clipped[1].tolist() == [True] * 3
    assert out.per_token[2].tolist() == pytest.approx([2.0] * 3) and not out.clipped[2].any()
    # d(-s A)/d logp_t = -s A / |y| in each of the |y| equal terms: the sum over tokens gives -s A for each token
    assert gradient[0].tolist() == pytest.approx([-3.0, -3.0, 0.0])
    assert gradient[1].tolist() == [0.0] * 3
    assert gradient[2].tolist() == pytest.approx([2.0] * 3)


def test_gspo_token_has_gspo_s_value_and_each_token_s_own_advantage() -> None:
    # geometric mean of 1.21 and 1 is 1.1
    out, gradient = run(gspo_token, [[1.21, 1.0]], [[2.0, -1.0]])
    assert out.per_token[0].tolist() == pytest.approx([-2.2, 1.1])
    assert gradient[0].tolist() == pytest.approx([-2.2, 1.1])
    same = [[0.7, 0.7]]
    plain, of_gspo = run(gspo, [[1.21, 1.0]], same)
    tokens, of_tokens = run(gspo_token, [[1.21, 1.0]], same)
    torch.testing.assert_close(tokens.per_token, plain.per_token)
    torch.testing.assert_close(of_tokens, of_gspo)


def test_cispo_keeps_every_gradient() -> None:
    out, gradient = run(cispo, [[1.5, 0.5, 1.5, 1.1]], [[1.0, 1.0, -2.0, 1.0]], eps_clip_low=1.0, eps_clip_high=0.2)
    # weights 1.2, 0.5, 1.2, 1.1; the loss is -w A log pi, its gradient -w A
    assert out.per_token[0].tolist() == pytest.approx(
        [-1.2 * math.log(1.5), -0.5 * math.log(0.5), 2.4 * math.log(1.5), -1.1 * math.log(1.1)]
    )
    assert gradient[0].tolist() == pytest.approx([-1.2, -0.5, 2.4, -1.1])
    assert out.clipped.tolist() == [[True, False, True, False]]


def test_cpgd_clips_the_log_ratio() -> None:
    out, gradient = run(cpgd, [[1.5, 0.5, 1.5, 0.5]], [[1.0, 1.0, -1.0, -1.0]], settings=CPGDSettings())
    assert out.per_token[0].tolist() == pytest.approx([-math.log(1.2), -math.log(0.5), math.log(1.5), math.log(0.8)])
    assert gradient[0].tolist() == pytest.approx([0.0, -1.0, 1.0, 0.0])
    assert out.clipped.tolist() == [[True, False, False, True]]


def test_cpgd_is_not_zero_where_it_starts() -> None:
    """At the old policy the value is 0 and the gradient is REINFORCE's: the known fault of a loss that never moves anything."""
    out, gradient = run(cpgd, [[1.0, 1.0]], [[2.0, -3.0]], settings=CPGDSettings(drift_coef=0.5))
    assert out.per_token[0].tolist() == [0.0, 0.0]
    assert gradient[0].tolist() == [-2.0, 3.0]


def test_cpgd_s_drift_is_k3_with_a_bounded_gradient() -> None:
    _, gradient = run(cpgd, [[1.5, 0.5, 8.0]], [[0.0, 0.0, 0.0]], settings=CPGDSettings(drift_coef=2.0))
    # (rho - 1) times 2, at most 1 times 2
    assert gradient[0].tolist() == pytest.approx([1.0, -1.0, 2.0])
    # up to rho = 2: rho - 1 - log rho; beyond, a line of slope 1 in log rho
    expected = [1.5 - 1 - math.log(1.5), 2 - 1 - math.log(2), 1 - math.log(2) + math.log(4)]
    assert drift(torch.tensor([1.5, 2.0, 8.0]).log()).tolist() == pytest.approx(expected)


def test_gmpo_is_a_geometric_mean_of_one_sided_clips() -> None:
    # A = 1: ratios 2 (clipped to 1.2) and 0.5 (free): sqrt(0.6); A = -1: 2 (free) and 0.5 (clipped to 0.8): -sqrt(1.6)
    out, gradient = run(gmpo, [[2.0, 0.5], [2.0, 0.5]], [[1.0, 1.0], [-1.0, -1.0]])
    assert out.per_token[0].tolist() == pytest.approx([-math.sqrt(0.6)] * 2)
    assert out.per_token[1].tolist() == pytest.approx([math.sqrt(1.6)] * 2)
    assert gradient[0].tolist() == pytest.approx([0.0, -math.sqrt(0.6)])
    assert gradient[1].tolist() == pytest.approx([math.sqrt(1.6), 0.0])
    assert out.clipped.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("loss", ALL)
def test_at_the_old_policy_every_loss_has_reinforce_s_gradient(loss: Loss) -> None:
    mask = [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    _, gradient = run(loss, [[1.0] * 4] * 2, [[2.0] * 3 + [0.0], [-0.5, 0.0, 0.0, 0.0]], mask, settings=CPGDSettings(drift_coef=0.3))
    torch.testing.assert_close(gradient, torch.tensor([[-2.0] * 3 + [0.0], [0.5, 0.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("loss", ALL)
def test_padding_changes_nothing(loss: Loss) -> None:
    rows, advantages = [[1.3, 0.9], [0.6, 1.1]], [[0.7, 0.7], [-1.2, -1.2]]
    narrow, gradient = run(loss, rows, advantages, settings=CPGDSettings(drift_coef=0.3))
    wide = [[*row, 5.0, 0.01] for row in rows]
    padded, wide_gradient = run(
        loss, wide, [[*row, 0.0, 0.0] for row in advantages], [[1.0, 1.0, 0.0, 0.0]] * 2, settings=CPGDSettings(drift_coef=0.3)
    )
    torch.testing.assert_close(padded.per_token[:, :2], narrow.per_token)
    torch.testing.assert_close(wide_gradient[:, :2], gradient)
    assert wide_gradient[:, 2:].abs().max() == 0
    assert torch.equal(padded.clipped[:, :2], narrow.clipped)


def loss_of(loss: Loss, logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = loss(
        PolicyLossInput(
            logprobs=logprobs, old_logprobs=old, advantages=advantages, mask=mask, eps_clip_low=0.2, eps_clip_high=0.28, dual_clip=3.0,
            settings=CPGDSettings(drift_coef=0.1),
        )
    )  # fmt: skip
    return (out.per_token * mask).sum()


@pytest.mark.parametrize("loss", [ppo_clip, gspo, cpgd, gmpo])
def test_gradients_are_those_of_finite_differences(loss: Loss) -> None:
    """gspo_token and cispo stop gradients by definition: their value is not what they descend (see their tests by hand)."""
    generator = torch.Generator().manual_seed(3)
    shape = (4, 5)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)
    logprobs = old + 0.8 * torch.randn(shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn((4, 1), generator=generator, dtype=torch.float64).expand(shape)
    mask = (torch.arange(5)[None] < torch.tensor([5, 3, 1, 4])[:, None]).double()
    assert torch.autograd.gradcheck(
        lambda x: loss_of(loss, x, old, advantages, mask), logprobs.clone().requires_grad_(), eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # losses 1, 2, 3 and 10 of completions with three tokens and one
        ("token_mean", (1 + 2 + 3 + 10) / 4),
        ("sequence_mean", ((1 + 2 + 3) / 3 + 10) / 2),
        ("constant", (1 + 2 + 3 + 10) / (2 * 8)),
    ],
)
def test_aggregation_by_hand_and_in_any_cut(how: Aggregation, expected: float) -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # the third completion is masked whole, and does not count

    def loss_share(rows: slice) -> float:
        weights = token_weights(mask[rows], how=how, num_tokens=4.0, num_sequences=2.0, constant=8.0)
        return float((losses[rows] * weights).sum())

    assert loss_share(slice(0, 3)) == pytest.approx(expected)
    assert loss_share(slice(0, 1)) + loss_share(slice(1, 3)) == pytest.approx(expected)


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 1.0, 0.1]], requires_grad=True)
    out = value_loss(values, old_values=torch.tensor([[0.5, 0.5, 0.0]]), returns=torch.tensor([[2.0, 0.0, 1.0]]), clip=0.2)
    # clipped values 0.7, 0.7, 0.1: max((1-2)^2, (0.7-2)^2) = 1.69; max(1, 0.49) = 1; both 0.81; halved
    assert out.per_token.tolist()[0] == pytest.approx([0.845, 0.5, 0.405])
    assert out.clipped.tolist() == [[True, False, False]]
    out.per_token.sum().backward()
    assert values.grad is not None and values.grad.tolist()[0] == pytest.approx([0.0, 1.0, -0.9])
    free = value_loss(values, old_values=torch.zeros(1, 3), returns=torch.tensor([[2.0, 0.0, 1.0]]), clip=0.0)
    assert free.per_token.tolist()[0] == pytest.approx([0.5, 0.5, 0.405]) and not free.clipped.any()


def test_explained_variance_by_hand() -> None:
    def of(returns: list[float], values: list[float]) -> float:
        r = torch.tensor(returns, dtype=torch.float64)
        e = r - torch.tensor(values, dtype=torch.float64)
        return explained_variance(torch.stack([torch.tensor(float(len(r))).double(), r.sum(), (r * r).sum(), e.sum(), (e * e).sum()]))

    # returns 0, 2 (variance 1); errors 0.5, -0.5 (variance 0.25)
    assert of([0.0, 2.0], [-0.5, 2.5]) == pytest.approx(0.75)
    assert of([0.0, 2.0], [7.0, 7.0]) == pytest.approx(0.0)
    assert of([0.0, 2.0], [2.0, 0.0]) == pytest.approx(-3.0)
    assert math.isnan(of([1.0, 1.0], [0.0, 3.0]))
