"""The measures of the engine's mismatch, and its correction, are what their formulas say. Numbers worked out by hand."""

from math import exp, log

import pytest
import torch

from lightrft.algorithms.mismatch import correction_weights, log_weights, mismatch_metrics, mismatch_sums

D = torch.tensor([log(2.0), log(0.5), 0.0, log(4.0)])
"""Weights 2, 1/2, 1, 4."""


def test_metrics_by_hand() -> None:
    found = mismatch_metrics(mismatch_sums(D, cap=2.5))
    k3 = (2 - 1 - log(2)) + (0.5 - 1 + log(2)) + 0 + (4 - 1 - log(4))
    assert found == pytest.approx(
        {
            "rollout/logprob_gap": (log(2) + log(2) + 0 + log(4)) / 4,
            "rollout/mismatch_kl": k3 / 4,
            "rollout/mismatch_ess": 7.5**2 / (4 * (4 + 0.25 + 1 + 16)),
            "rollout/mismatch_clipped": 1 / 4,
        }
    )


def test_equal_programs_have_no_gap() -> None:
    found = mismatch_metrics(mismatch_sums(torch.zeros(3), cap=2.0))
    assert found == {
        "rollout/logprob_gap": 0.0, "rollout/mismatch_kl": 0.0, "rollout/mismatch_ess": 1.0, "rollout/mismatch_clipped": 0.0
    }  # fmt: skip


def test_checksums_of_parts_are_that_of_the_whole() -> None:
    torch.testing.assert_close(mismatch_sums(D[:1], cap=2.0) + mismatch_sums(D[1:], cap=2.0), mismatch_sums(D, cap=2.0))


def test_weights_of_tokens_and_of_sequences_are_truncated() -> None:
    torch.testing.assert_close(correction_weights(D, level="token", cap=2.5), torch.tensor([2.0, 0.5, 1.0, 2.5]))
    torch.testing.assert_close(correction_weights(D, level="sequence", cap=10.0), torch.full((4,), 4.0))  # 2 x 1/2 x 1 x 4
    torch.testing.assert_close(correction_weights(D, level="sequence", cap=3.0), torch.full((4,), 3.0))
    torch.testing.assert_close(correction_weights(-D[:1], level="token", cap=2.0), torch.tensor([exp(-log(2.0))]))


def test_what_counts_as_clipped_is_the_weight_of_the_level() -> None:
    product = log_weights(D, level="sequence")
    assert product.tolist() == pytest.approx([log(4.0)] * 4)
    assert mismatch_metrics(mismatch_sums(D, cap=2.5, log_weight=product))["rollout/mismatch_clipped"] == 1.0
    assert mismatch_metrics(mismatch_sums(D, cap=4.5, log_weight=product))["rollout/mismatch_clipped"] == 0.0


def test_the_kl_s_estimate_is_right_on_average() -> None:
    engine, trainer = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    drawn = torch.tensor([0] * 7 + [1] * 2 + [2])  # in the engine's own proportions
    found = mismatch_metrics(mismatch_sums((trainer / engine).log()[drawn], cap=2.0))
    assert found["rollout/mismatch_kl"] == pytest.approx(float((engine * (engine / trainer).log()).sum()), rel=1e-5)


def test_a_weight_without_bounds_is_truncated_and_no_tokens_have_no_weights() -> None:
    assert correction_weights(torch.tensor([5000.0, 0.0]), level="token", cap=2.0).tolist() == [2.0, 1.0]
    assert correction_weights(torch.zeros(0), level="sequence", cap=2.0).tolist() == []


def test_masked_weights_by_hand() -> None:
    d = torch.tensor([0.0, 3.0, 0.25, 1.5]).log()
    masked = correction_weights(d[1:], level="token", cap=2.0, beyond="mask")
    assert masked.tolist() == pytest.approx([0.0, 0.25, 1.5])
    floored = correction_weights(d[1:], level="token", cap=2.0, beyond="mask", floor=0.5)
    assert floored.tolist() == pytest.approx([0.0, 0.0, 1.5])
    # the whole completion's product: 3 * 0.25 * 1.5 = 1.125 stays, 3 * 1.5 = 4.5 goes
    assert correction_weights(d[1:], level="sequence", cap=2.0, beyond="mask").tolist() == pytest.approx([1.125] * 3)
    assert correction_weights(d[[1, 3]], level="sequence", cap=2.0, beyond="mask").tolist() == [0.0, 0.0]
    assert correction_weights(d[[1, 3]], level="sequence", cap=2.0).tolist() == [2.0, 2.0]
