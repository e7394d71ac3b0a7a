import numpy as np
import pytest

from spectral_density.training.globalization import (
    ArmijoBacktracking,
    FixedStep,
    LevenbergMarquardt,
    Ray,
    SpectralStep,
    TrustRegion,
    as_globalization,
)
from spectral_density.training.steps import TrainingStatus


def ray(loss_at, *, slope=-1.0, norm=1.0, curvature=1.0, first=1.0, weight_norm=10.0, along=1.0):
    """A direction from a point with loss 0."""
    return Ray(0.0, slope, norm, curvature, first, weight_norm, loss_at, lambda: along)


def exact(t):
    """The loss that the default ray's model foretells."""
    return -t + 0.5 * t**2


def test_a_fixed_step_is_the_learning_rate_until_it_is_long_beside_the_weights():
    assert FixedStep().choose(ray(exact, first=0.3)).length == 0.3
    assert FixedStep(0.01).choose(ray(exact, first=0.3)).length == pytest.approx(0.1)
    assert FixedStep(0.01).choose(ray(exact, first=0.3, weight_norm=0.0)).length == 0.3


def test_a_spectral_step_is_the_minimum_of_the_quadratic_model_within_the_learning_rate():
    assert SpectralStep().choose(ray(exact, along=4.0)).length == 0.25
    assert SpectralStep().choose(ray(exact, along=0.1)).length == 1.0
    assert SpectralStep().choose(ray(exact, along=-1.0)).length == 1.0


def test_armijo_shortens_the_step_until_the_loss_falls_enough():
    tried = []

    def loss_at(t):
        tried.append(t)
        return -t if t < 0.2 else (np.nan if t > 0.5 else 1.0)

    choice = ArmijoBacktracking().choose(ray(loss_at))
    assert tried == [1.0, 0.5, 0.25, 0.125]
    assert (choice.length, choice.status) == (0.125, TrainingStatus.ACCEPTED)


def test_armijo_gives_up_after_its_trials():
    choice = ArmijoBacktracking(max_backtracks=3).choose(ray(lambda t: 1.0))
    assert (choice.length, choice.status) == (0.0, TrainingStatus.LINE_SEARCH_FAILED)


def test_a_trust_region_grows_where_the_model_was_right_at_its_boundary():
    region = TrustRegion(initial_radius=0.5)
    assert region.choose(ray(exact)).length == 0.5
    assert region.radius == 1.0
    region = TrustRegion(initial_radius=0.5, max_radius=0.7)
    region.choose(ray(exact))
    assert region.radius == 0.7


def test_a_trust_region_keeps_its_radius_where_the_step_ended_within():
    region = TrustRegion(initial_radius=5.0)
    assert region.choose(ray(exact)).length == 1.0
    assert region.radius == 5.0


def test_a_trust_region_shrinks_to_a_part_of_a_step_that_disappoints():
    region = TrustRegion(initial_radius=1.0)
    choice = region.choose(ray(lambda t: -0.05 * t))
    assert choice.status is TrainingStatus.ACCEPTED
    assert region.radius == 0.5


@pytest.mark.parametrize("loss", [1.0, 0.0, np.nan, np.inf])
def test_a_trust_region_rejects_a_step_that_does_not_lower_the_loss_and_shrinks(loss):
    region = TrustRegion(initial_radius=1.0)
    choice = region.choose(ray(lambda t: loss))
    assert (choice.length, choice.status) == (0.0, TrainingStatus.REJECTED)
    assert region.radius == 0.5
    region.reset()
    assert region.radius == 1.0


def test_a_trust_region_begins_at_the_first_step():
    region = TrustRegion()
    assert region.radius is None
    region.choose(ray(exact, norm=3.0))
    assert region.radius == 6.0


def test_levenberg_marquardt_begins_at_the_curvature_along_the_gradient_and_adapts():
    rule = LevenbergMarquardt(decrease=0.5, increase=2.0, reject=8.0)
    assert rule.damping(lambda: -3.0) == 3.0
    assert rule.choose(ray(exact)).length == 1.0
    assert rule.damping(lambda: 0.0) == 1.5
    assert rule.choose(ray(lambda t: -0.05)).length == 1.0
    assert rule.damping(lambda: 0.0) == 3.0
    assert rule.choose(ray(lambda t: np.nan)).status is TrainingStatus.REJECTED
    assert rule.damping(lambda: 0.0) == 24.0
    rule.reset()
    assert rule.damping(lambda: 0.0) == 1.0


def test_names_stand_for_default_options_and_others_are_refused():
    assert isinstance(as_globalization("trust_region"), TrustRegion)
    region = TrustRegion()
    assert as_globalization(region) is region
    with pytest.raises(ValueError, match="wolfe"):
        as_globalization("wolfe")
    with pytest.raises(TypeError, match="Globalization"):
        as_globalization(3)
    with pytest.raises(ValueError, match="shrink"):
        TrustRegion(shrink=1.0)
    with pytest.raises(ValueError, match="contraction"):
        ArmijoBacktracking(contraction=1.0)
    with pytest.raises(ValueError, match="decrease"):
        LevenbergMarquardt(decrease=1.5)
