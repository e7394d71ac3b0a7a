from pathlib import Path

import pytest

from spectral_density.command.matrix import MatrixRequest
from spectral_density.command.messages import in_options
from spectral_density.spectrum.accuracy import Ending

DOUBT = "the output lies in [-2, 3], and mse expects probabilities: are these logits? "
REVERSE = "it sums to 1, and mse expects logits: are these probabilities? "


def request(**options):
    return MatrixRequest(Path("m.keras"), "d.npz", **options)


@pytest.mark.parametrize("ending", Ending)
def test_how_a_run_ended_names_no_argument_of_python(ending):
    text = in_options(ending.message)
    assert "num_draws" not in text
    assert "max_products" not in text
    assert "raise order" not in text
    assert ("raise --" in text) == ("raise" in ending.message)


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        (request(loss="mse"), "Then pass --from-logits."),
        (request(), "Then pass --loss mse --from-logits."),
        (request(loss="own:loss"), "Then pass from_logits=True."),  # that is in the user's code
    ],
)
def test_logits_are_an_option_where_the_loss_is_keras(asked, option):
    assert in_options(DOUBT + "Then pass from_logits=True.", asked) == DOUBT + option


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        (request(loss="mse", from_logits=True), "Then leave --from-logits out."),
        (request(), "Then pass --loss mse."),
    ],
)
def test_probabilities_are_no_logits_the_other_way_round(asked, option):
    assert in_options(REVERSE + "Then drop from_logits=True.", asked) == REVERSE + option


def test_every_doubt_has_its_own_loss():
    text = " ".join(DOUBT.replace("mse", n) + "Then pass from_logits=True." for n in ("a", "b"))
    found = in_options(text, request())
    assert "--loss a --from-logits" in found
    assert "--loss b --from-logits" in found


def test_other_text_stays_as_it_is():
    text = "no order in this kind of draws: from_logits=True, seed=3."
    assert in_options(text) == text
    assert in_options(text, request()) == text
