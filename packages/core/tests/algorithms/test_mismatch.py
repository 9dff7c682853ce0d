"""Are the measures of the engine-trainer mismatch and the truncated weights what their papers say? Numbers worked out by hand."""

import math

import pytest
import torch

from lightrft.algorithms.mismatch import mismatch_metrics, mismatch_sums, truncated_weights

ENGINE = torch.tensor([0.5, 0.25, 0.5]).log()
TRAINER = torch.tensor([0.25, 0.75, 0.5]).log()
"""Importance weights 1/2, 3, 1; their product is 3/2."""


def test_truncated_weights_of_tokens() -> None:
    assert truncated_weights(TRAINER, ENGINE, level="token", cap=2.0).tolist() == pytest.approx([0.5, 2.0, 1.0])
    assert truncated_weights(TRAINER, ENGINE, level="token", cap=4.0).tolist() == pytest.approx([0.5, 3.0, 1.0])


def test_a_sequence_s_weight_is_the_truncated_product() -> None:
    assert truncated_weights(TRAINER, ENGINE, level="sequence", cap=2.0).tolist() == pytest.approx([1.5, 1.5, 1.5])
    assert truncated_weights(TRAINER, ENGINE, level="sequence", cap=1.25).tolist() == pytest.approx([1.25, 1.25, 1.25])


def test_weights_carry_no_gradient_and_no_overflow() -> None:
    trainer = torch.tensor([-1.0, -2.0], requires_grad=True)
    weights = truncated_weights(trainer, torch.tensor([-5000.0, -2.0]), level="token", cap=2.0)
    assert not weights.requires_grad and weights.dtype == torch.float32
    assert weights.tolist() == [2.0, 1.0]
    assert truncated_weights(torch.zeros(0), torch.zeros(0), level="sequence", cap=2.0).tolist() == []


@pytest.mark.parametrize(("level", "clipped"), [("token", 1 / 3), ("sequence", 0.0)])
def test_metrics_by_hand(level: str, clipped: float) -> None:
    got = mismatch_metrics(mismatch_sums([(TRAINER, ENGINE)], level=level, cap=2.0)[None])  # type: ignore[arg-type]
    k3 = (0.5 - 1 + math.log(2)) + (3 - 1 - math.log(3)) + 0
    assert got == pytest.approx(
        {
            "rollout/logprob_gap": (math.log(2) + math.log(3)) / 3,
            "rollout/logprob_gap_max": math.log(3),
            "rollout/mismatch_kl": k3 / 3,
            "rollout/mismatch_ess": 4.5**2 / (3 * (0.25 + 9 + 1)),
            "rollout/mismatch_clipped": clipped,
        }
    )


def test_metrics_do_not_depend_on_how_tokens_lie_on_ranks() -> None:
    pairs = [(TRAINER, ENGINE), (torch.tensor([-0.5]), torch.tensor([-0.75])), (torch.tensor([-3.0, -2.0]), torch.tensor([-1.0, -2.5]))]
    whole = mismatch_sums(pairs, level="sequence", cap=1.2)[None]
    cut = torch.stack([mismatch_sums(part, level="sequence", cap=1.2) for part in (pairs[:1], [], pairs[1:])])
    assert mismatch_metrics(cut) == pytest.approx(mismatch_metrics(whole))
    assert mismatch_metrics(whole)["rollout/mismatch_clipped"] == pytest.approx(4 / 6)  # products 1.5 and e^0.25; not e^-1.5


def test_agreement_is_all_zeros_and_a_full_sample() -> None:
    got = mismatch_metrics(mismatch_sums([(ENGINE, ENGINE)], level="token", cap=1.0)[None])
    assert got.pop("rollout/mismatch_ess") == pytest.approx(1.0)
    assert set(got.values()) == {0.0}


def test_nothing_known_gives_no_metrics() -> None:
    assert mismatch_metrics(torch.stack([mismatch_sums([], level="token", cap=2.0)] * 2)) == {}


def test_the_kl_s_estimate_is_right_on_average() -> None:
    mu, pi = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    exact = float((mu * (mu / pi).log()).sum())
    drawn = torch.tensor([0] * 7 + [1] * 2 + [2])  # in mu's own proportions
    sums = mismatch_sums([(pi.log()[drawn], mu.log()[drawn])], level="token", cap=2.0)
    assert mismatch_metrics(sums[None])["rollout/mismatch_kl"] == pytest.approx(exact, rel=1e-5)


def test_a_weight_without_bounds_counts_as_one_effective_token() -> None:
    trainer, engine = torch.zeros(4), torch.tensor([-2000.0, 0.0, 0.0, 0.0])
    assert mismatch_metrics(mismatch_sums([(trainer, engine)], level="token", cap=2.0)[None])["rollout/mismatch_ess"] == pytest.approx(
        1 / 4
    )
