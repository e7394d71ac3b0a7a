"""How many steps and draws a run makes: as many as a density, a budget or a tolerance takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, isfinite, sqrt

from spectral_density.linalg.tridiagonalization import LanczosStep
from spectral_density.spectrum.accuracy import Ending, eigenvalues_in_kernel
from spectral_density.spectrum.draws import Draws
from spectral_density.spectrum.spectrum import Spectrum

HEIGHT_ERROR = 0.05
"""Relative standard error of the density's height to which a run chooses its number of draws."""

FIRST_DRAWS = 2
"""Start vectors that decide how many steps there are: the fewest that show what is simple."""

LEAST_STEPS = 8
"""With fewer nothing can be said about the effect of more."""

# Of what start vectors leave: where steps leave less than this, draws are worth more than steps. By
# measurement on networks and on spectra with clusters.
_SETTLED = 0.25


@dataclass(frozen=True)
class Limits:
    """The most steps of a draw, draws, and products with single vectors, and the tolerance."""

    order: int
    num_draws: int
    num_products: int
    tolerance: float | None


def add_within(draws: Draws, limits: Limits) -> str:
    """Spend a budget of products on steps and draws, and return why so."""
    block, most = draws.block, limits.num_products
    wanted = min(ceil(FIRST_DRAWS / block), most // block)
    first = draws.next_group(min(limits.order, most // (wanted * block)), wanted)
    _check_affordable(first, most // block, block)
    order = min(limits.order, most // (first * block))
    due = {order >> halvings for halvings in range(1, order.bit_length())}

    def enough(step: LanczosStep) -> bool:
        if step.step not in due or step.step < LEAST_STEPS:
            return False
        accuracy = draws.after(step).accuracy
        # What all draws of so many steps would leave. It is a limit that nearly all seeds stay
        # below, by far, and more steps lower it, too, where they show more simple eigenvalues.
        with_draws = accuracy.draws * sqrt(first / (most // (step.step * block)))
        return accuracy.order <= _SETTLED * with_draws

    draws.add(first, order, None if order * block == draws.size else enough)
    made = draws.spectrum(Ending.PLAN)
    room = most // (draws.order * block)
    draws.find_simple(max(room, draws.num_draws))
    while draws.num_draws < room and not made.is_exact:
        more = draws.next_group(draws.order, room - draws.num_draws)
        if draws.num_draws + more > room:
            break
        draws.add(more, draws.order)
    accuracy = draws.spectrum(Ending.PLAN).accuracy
    return (
        f"{_made(draws)}, of {most} products: in shares of the range, steps leave some "
        f"{accuracy.order:.1e} uncertain and start vectors {accuracy.draws:.1e}"
    )


def _made(draws: Draws) -> str:
    """Return how many draws, steps and vectors there are, as text."""
    steps = f"{draws.order} step{'s' if draws.order > 1 else ''}"
    text = f"{draws.num_draws} draw{'s' if draws.num_draws > 1 else ''} of {steps}"
    return text if draws.block == 1 else f"{text} and {draws.block} vectors"


def add_by_count(draws: Draws, limits: Limits) -> str:
    """Make draws until the density is known well enough, and return why there are so many."""
    block, order = draws.block, limits.order
    fewest, most = ceil(FIRST_DRAWS / block), limits.num_draws
    draws.expect(fewest * order * block)
    draws.add(draws.next_group(order, fewest), order)
    draws.find_simple(max(most, draws.num_draws))
    spectrum = draws.spectrum(Ending.PLAN)
    count = inf
    if not spectrum.is_exact:
        count = eigenvalues_in_kernel(
            spectrum.nodes,
            spectrum.deflated_weights,
            spectrum.simple,
            spectrum.size,
            spectrum.default_sigma,
        )
    # The height errs by sqrt(2 / (count * vectors)) of itself.
    wanted = min(max(ceil(2 / (HEIGHT_ERROR**2 * count * block)), fewest), most)
    draws.expect(max(wanted, draws.num_draws) * order * block)
    while draws.num_draws < wanted:
        draws.add(draws.next_group(order, wanted - draws.num_draws), order)
    vectors = draws.num_draws * block
    if not isfinite(count):
        return f"{_made(draws)}: all eigenvalues are known by their values"
    error = 100 * sqrt(2 / (count * vectors))
    capped = " (more draws are made by num_draws only)" if error > 100 * HEIGHT_ERROR else ""
    return (
        f"{_made(draws)}: some {float(f'{count:.2g}'):,.0f} eigenvalues are within a kernel width, "
        f"so that {vectors} start vectors leave a standard error of {error:.2g} % in the height of "
        f"the density{capped}"
    )


def add_to_tolerance(draws: Draws, limits: Limits, tolerance: float) -> Ending:
    """Make steps until the distribution has settled, then draws until the band is narrow."""
    block = draws.block
    affordable = min(limits.num_draws, limits.num_products // block)
    first = draws.next_group(limits.order, min(ceil(FIRST_DRAWS / block), affordable))
    _check_affordable(first, affordable, block)
    order = min(limits.order, limits.num_products // (first * block))
    settled = False

    def has_settled(step: LanczosStep) -> bool:
        nonlocal settled
        # At intervals of an eighth of the steps: the accuracy takes longer than a step of a small
        # matrix.
        due = step.step >= LEAST_STEPS and not step.step % (step.step // 8)
        if due or step.step == order:
            now = Spectrum(step.alpha, step.beta, step.residual_norms, draws.size).accuracy
            settled = now.order + min(now.draws, tolerance / 2) <= tolerance
        return settled

    draws.add(first, order, has_settled)
    most = min(limits.num_draws, limits.num_products // (draws.order * block))
    while True:
        accuracy = draws.spectrum(Ending.PLAN).accuracy
        room = tolerance - accuracy.order - accuracy.products
        # Where the steps were too few, a band of half the tolerance has to do.
        target = room if settled and room > 0 else max(room, tolerance / 2)
        share = min(max(accuracy.draws / target, 1.0), 1e9)
        wanted = max(ceil(draws.num_draws * share**2), draws.num_draws + 1)
        if draws.find_simple(min(2 * wanted, most)):
            continue
        if accuracy.total <= tolerance:
            return Ending.TOLERANCE
        if accuracy.products and accuracy.order + accuracy.draws <= tolerance:
            return Ending.PRECISION
        if accuracy.draws <= target:
            return Ending.ORDER if order == limits.order else Ending.BUDGET
        # Two draws, or a block, show which eigenvalues are simple, and then fewer may do.
        wanted = min(wanted, most) if draws.num_draws * block > 1 else min(2, most)
        more = draws.next_group(draws.order, wanted - draws.num_draws)
        if draws.num_draws + max(more, 1) > most:
            return Ending.DRAWS if most == limits.num_draws else Ending.BUDGET
        draws.add(more, draws.order)


def _check_affordable(first: int, affordable: int, block: int) -> None:
    """Raise where a checkpoint advances more draws together than a run may make."""
    if first > affordable:
        raise ValueError(
            f"the checkpoint advances {first} draws together, more than num_draws or max_products "
            f"allows: raise num_draws to {first} and max_products to {first * block} at least, or "
            "use another directory."
        )
