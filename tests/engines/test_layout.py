import numpy as np
import pytest

from spectral_density.engines.layout import Parameters, indices_of, place_of


def layout(*dtypes):
    """A matrix and a vector, in a framework that there is not."""
    return Parameters(
        [object(), object()], ["a/kernel", "a/bias"], [(3, 2), (2,)], dtypes or ["float32"] * 2
    )


def test_variables_lie_end_to_end():
    parameters = layout()
    assert parameters.size == 8
    assert parameters.slices == (slice(0, 6), slice(6, 8))
    vector = np.arange(8.0)
    pieces = parameters.unflatten(vector)
    assert [piece.shape for piece in pieces] == list(parameters.shapes)
    np.testing.assert_array_equal(parameters.flatten(pieces), vector)
    assert all(np.shares_memory(piece, vector) for piece in pieces)
    assert repr(parameters).splitlines()[1:] == ["  a/kernel: (3, 2)", "  a/bias: (2,)"]


def test_the_widest_dtype_holds_all_variables():
    assert layout("float32", "float64").dtype == np.float64


def test_the_indices_of_variables_are_their_places_in_the_vector():
    np.testing.assert_array_equal(indices_of(layout(), [1]), [6, 7])
    np.testing.assert_array_equal(indices_of(layout(), [1, 0]), [6, 7, *range(6)])


def test_variables_that_follow_each_other_have_a_slice_for_their_place():
    parameters = Parameters([object()] * 3, "abc", [(2,), (3, 1), (1,)], ["float32"] * 3)
    vector = np.arange(6)
    assert place_of(parameters, [0, 1]) == slice(0, 5)
    assert place_of(parameters, [2]) == slice(5, 6)
    for positions in ([0, 2], [1, 0], [2, 1, 0], [1]):
        expected = indices_of(parameters, positions)
        np.testing.assert_array_equal(vector[place_of(parameters, positions)], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.flatten([np.ones((3, 2))]), "expected 2 tensors"),
        (lambda p: p.flatten([np.ones((2, 3)), np.ones(2)]), r"has shape \(3, 2\)"),
        (lambda p: p.unflatten(np.ones(9)), r"shape \(8,\)"),
        (lambda p: p.unflatten(np.ones((8, 1))), r"shape \(8,\)"),
    ],
)
def test_wrong_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call(layout())
