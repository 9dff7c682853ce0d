"""Does the KL's coefficient move as Ziegler et al. say, and not at all while it is fixed?"""

import pytest

from lightrft.algorithms.kl_control import KLController


def test_adaptive_by_hand() -> None:
    control = KLController(coef=0.2, target=6.0, horizon=1000.0)
    # error (6.6 - 6) / 6 = 0.1, 100 completions of 1000: times 1.01
    control.update(kl=6.6, num_completions=100)
    assert control.coef == pytest.approx(0.202)
    # far beyond: the error is bounded at 0.2
    control.update(kl=60.0, num_completions=100)
    assert control.coef == pytest.approx(0.202 * 1.02)
    # below, bounded at -0.2
    control.update(kl=-1.0, num_completions=500)
    assert control.coef == pytest.approx(0.202 * 1.02 * 0.9)
    control.update(kl=6.0, num_completions=500)
    assert control.coef == pytest.approx(0.202 * 1.02 * 0.9)


def test_fixed_stays() -> None:
    control = KLController(coef=0.2)
    control.update(kl=1000.0, num_completions=10000)
    assert control.coef == 0.2


def test_it_goes_through_a_checkpoint() -> None:
    control = KLController(coef=0.2, target=6.0, horizon=1000.0)
    control.update(kl=6.6, num_completions=100)
    again = KLController(coef=0.2, target=6.0, horizon=1000.0)
    again.load_state_dict(control.state_dict())
    assert again.coef == control.coef
