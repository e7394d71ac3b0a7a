"""The share of a training's time that measurements take, by a clock of the test."""

import pytest

from spectral_density.training import time_budget
from spectral_density.training.time_budget import TimeBudget


def test_what_is_allowed_is_a_share_of_the_time_that_it_takes_itself_included(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_budget, "clock", lambda: now[0])
    budget = TimeBudget(0.125)
    now[0] = 7.0
    assert budget.allows(1.0)  # 1 of 8 seconds
    assert not budget.allows(1.01)
    with budget.spending("measure"):
        now[0] = 8.0
    assert (budget.last, budget.share) == ({"measure": 1.0}, 0.125)
    assert not budget.allows(0.1)
    now[0] = 15.0
    assert budget.allows(1.0)  # 2 of 16 seconds
    assert TimeBudget(None).allows(1e9)
    budget.stop()
    now[0] = 100.0
    assert budget.share == pytest.approx(1 / 15)
