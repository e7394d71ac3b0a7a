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


def hidden(loss_at):
    """A direction near a minimum of -0.25, where float32 hides what the step gains."""
    rounding = float(np.finfo(np.float32).eps)
    return Ray(-0.25, -1e-10, 1e-5, 1e-10, 1.0, 1.0, loss_at, lambda: 1e-10, rounding)


def test_armijo_takes_a_whole_step_whose_gain_rounding_hides_and_no_part_of_it():
    whole = ArmijoBacktracking().choose(hidden(lambda t: -0.25 + 3e-8))
    assert (whole.length, whole.status) == (1.0, TrainingStatus.ACCEPTED)
    tried = ArmijoBacktracking().choose(hidden(lambda t: -0.2 if t == 1.0 else -0.25 + 3e-8))
    assert tried.status is TrainingStatus.LINE_SEARCH_FAILED


def test_a_change_within_the_rounding_of_the_loss_agrees_with_the_model():
    for change in (-3e-8, 0.0, 3e-8):
        assert hidden(lambda t, change=change: -0.25 + change).agreement(1.0) == pytest.approx(
            1.0, abs=0.11
        )
    assert hidden(lambda t: -0.25 + 1e-5).agreement(1.0) < 0


def test_a_trust_region_grows_where_the_model_was_right_at_its_boundary():
    region = TrustRegion(initial_radius=0.5)
    assert region.choose(ray(exact)).length == 0.5
    assert region.radius == 1.0
    region = TrustRegion(initial_radius=0.5, max_radius=0.7)
    region.choose(ray(exact))
    assert region.radius == 0.7


def test_the_first_radius_is_the_length_of_the_direction_within_the_largest():
    region = TrustRegion(max_radius=0.5)
    assert region.choose(ray(exact)).length == 0.5
    assert region.radius == 0.5
    region = TrustRegion(max_radius=2.0)
    assert region.choose(ray(exact)).length == 1.0
    assert region.radius == 2.0  # the model was right at the boundary


def test_a_trust_region_keeps_its_radius_where_the_step_ended_within():
    region = TrustRegion(initial_radius=5.0)
    assert region.choose(ray(exact)).length == 1.0
    assert region.radius == 5.0


def test_a_trust_region_shrinks_to_a_part_of_a_step_that_disappoints():
    region = TrustRegion(initial_radius=1.0)
    choice = region.choose(ray(lambda t: -0.05 * t))
    assert choice.status is TrainingStatus.ACCEPTED
    assert region.radius == 0.5
    # Of the step, not of a region that was larger.
    region = TrustRegion(initial_radius=8.0)
    region.choose(ray(lambda t: -0.05 * t, norm=2.0))
    assert region.radius == 1.0


@pytest.mark.parametrize("loss", [1.0, 0.0, np.nan, np.inf])
def test_a_trust_region_rejects_a_step_that_does_not_lower_the_loss_and_shrinks(loss):
    region = TrustRegion(initial_radius=1.0)
    choice = region.choose(ray(lambda t: loss))
    assert (choice.length, choice.status) == (0.0, TrainingStatus.REJECTED)
    assert region.radius == 0.5
    region.reset()
    assert region.radius == 1.0


def test_the_decrease_that_armijo_asks_for_is_a_share_of_the_slope_times_the_length():
    rule = ArmijoBacktracking(sufficient_decrease=0.5, contraction=0.1, max_relative_step=0.05)
    # Exactly what is asked for is enough; a hair less is not.
    assert rule.choose(ray(lambda t: -t, slope=-2.0)).length == 0.5
    assert rule.choose(ray(lambda t: -0.999 * t, slope=-2.0)).length == 0.0
    assert rule.choose(ray(lambda t: -t - (t < 0.4), slope=-2.1)).length == pytest.approx(0.05)


def test_rho_is_the_fall_of_the_loss_over_that_of_the_model():
    assert ray(exact).agreement(0.7) == pytest.approx(1.0)
    assert ray(lambda t: -0.25).agreement(1.0) == pytest.approx(0.5)
    assert ray(lambda t: 0.25).agreement(1.0) == pytest.approx(-0.5)
    assert ray(exact, slope=-3.0, curvature=2.0).predicted(0.5) == 1.25
    assert ray(lambda t: np.nan).agreement(1.0) == -np.inf
    assert ray(lambda t: -np.inf).agreement(1.0) == -np.inf
    # A model that does not fall promises nothing.
    assert ray(lambda t: -1.0, curvature=5.0).agreement(1.0) == -np.inf


def test_a_change_that_rounding_hides_is_no_reason_to_refuse_a_step():
    # The model promises less than the last digit of the loss, which goes up by one.
    up = np.nextafter(1000.0, np.inf)
    for rule in (TrustRegion(initial_radius=1.0), LevenbergMarquardt(initial_damping=1.0)):
        at = ray(lambda t: up, slope=-1e-14, curvature=1e-14)
        at.loss = 1000.0
        assert rule.choose(at).status is TrainingStatus.ACCEPTED
        at.loss_at = lambda t: 1000.0 + 1e-9
        assert rule.choose(at).status is TrainingStatus.REJECTED


@pytest.mark.parametrize(
    ("rho", "status", "radius"),
    [
        (0.05, TrainingStatus.REJECTED, 0.6),
        (0.15, TrainingStatus.ACCEPTED, 0.6),
        (0.35, TrainingStatus.ACCEPTED, 2.0),
        (0.85, TrainingStatus.ACCEPTED, 2.0),
        (0.95, TrainingStatus.ACCEPTED, 6.0),
    ],
)
def test_a_trust_region_follows_its_thresholds(rho, status, radius):
    region = TrustRegion(
        initial_radius=2.0,
        accept_above=0.1,
        shrink_below=0.3,
        grow_above=0.9,
        shrink=0.3,
        grow=3.0,
    )
    # The direction is as long as the radius: the step goes to the boundary.
    choice = region.choose(ray(lambda t: rho * exact(t), norm=2.0))
    assert (choice.status, region.radius) == (status, pytest.approx(radius))
    assert choice.length == (0.0 if status is TrainingStatus.REJECTED else 1.0)


def test_a_direction_beyond_the_radius_is_shortened_to_it_and_then_by_the_learning_rate():
    tried = []

    def loss_at(t):
        tried.append(t)
        return exact(t)

    region = TrustRegion(initial_radius=2.0)
    assert region.choose(ray(loss_at, norm=8.0, first=0.5)).length == 0.125
    assert tried == [0.125]
    assert region.radius == 4.0


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


def test_levenberg_marquardts_damping_is_raised_by_a_direction_that_leads_up():
    rule = LevenbergMarquardt(initial_damping=2.0, reject=3.0)
    assert rule.turns
    rule.refuse()
    assert rule.damping(lambda: np.nan) == 6.0
    # Without an initial damping it begins at the magnitude of the curvature.
    rule = LevenbergMarquardt()
    assert rule.damping(lambda: 0.0) == 1.0
    rule.reset()
    assert rule.damping(lambda: 5.0) == 5.0


def test_levenberg_marquardts_damping_stays_between_its_thresholds_and_above_its_least():
    rule = LevenbergMarquardt(initial_damping=1.0, decrease=1e-20)
    rule.choose(ray(lambda t: 0.5 * exact(t)))
    assert rule.damping(lambda: 0.0) == 1.0
    rule.choose(ray(exact))
    assert rule.damping(lambda: 0.0) == 1e-12


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
