"""lifelong/schedule.py against the original."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelong_models import values
from versatile.lifelong.schedule import STYLES, Annealing
from versatile.utils.errors import UserError


@pytest.mark.parametrize("style", STYLES)
def test_rates_are_the_originals_until_they_reach_0(style):
    golden = values("annealing_lr")
    schedule = Annealing(golden["start_lr"], golden["warmup_iter"], golden["num_iters"], style)
    wanted = golden["lr_after_n_steps"][style]
    end = golden["warmup_iter"] + golden["num_iters"]
    for seen, rate in enumerate(wanted):
        assert schedule(seen) == pytest.approx(rate if seen <= end or style == "None" else 0, rel=1e-9, abs=1e-15)
    assert style == "None" or wanted[end + 1] != 0, "the original goes on behind its end"


@given(st.integers(1, 10**6), st.integers(1, 20), st.sampled_from(STYLES), st.floats(0, 1))
def test_a_rate_rises_once_then_never_and_is_never_negative(samples, epochs, style, ratio):
    schedule = Annealing.of(1e-3, samples, epochs, ratio, style)
    rates = [schedule(samples * epochs * i / 50) for i in range(60)]
    top = rates.index(max(rates))
    assert all(0 <= r <= 1e-3 for r in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_an_unknown_style_is_refused():
    with pytest.raises(UserError, match="linear, cos, None"):
        Annealing(1e-3, 1, 1, "cosine")
