"""The rule for "near" has to be able to refuse."""

import numpy as np
import pytest
from tolerance import assert_near, kappa


def data(ratio, rows=256):
    x = (np.random.default_rng(0).normal(size=(rows, 3)) + ratio).astype("float32")
    x64 = x.astype("float64")
    expected = (x64 - x64.mean(0)) / np.sqrt(x64.var(0) + 1e-5)
    return x, expected, kappa(x, epsilon=1e-5)


def test_two_passes_are_accepted():
    x, expected, scale = data(1000.0)
    centered = x - x.mean(0)
    y = centered / np.sqrt(np.square(centered).mean(0) + np.float32(1e-5))

    assert y.dtype == np.float32
    assert_near(y, expected, scale=scale)


@pytest.mark.parametrize("ratio", [100.0, 1000.0])
def test_the_difference_of_squares_is_refused(ratio):
    x, expected, scale = data(ratio)
    mean = x.mean(0)
    variance = np.maximum(np.square(x).mean(0) - np.square(mean), 0)
    y = (x - mean) / np.sqrt(variance + np.float32(1e-5))

    with pytest.raises(AssertionError, match="times the allowed error"):
        assert_near(y, expected, scale=scale)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(AssertionError, match="actual values aren't finite"):
        assert_near(np.full(3, value), np.zeros(3))
    with pytest.raises(AssertionError, match="expected values aren't finite"):
        assert_near(np.zeros(3), np.full(3, value))


def test_float32_references_are_refused():
    with pytest.raises(TypeError, match="float32"):
        assert_near(np.zeros(3), np.zeros(3, "float32"))


def test_other_shapes_are_refused():
    with pytest.raises(AssertionError):
        assert_near(np.zeros((3, 1)), np.zeros(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_add_half_a_unit_and_no_more(dtype):
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]

    assert_near(np.array([1 + unit / 2]), np.ones(1), dtype=dtype)
    with pytest.raises(AssertionError, match="times the allowed error"):
        assert_near(np.array([1 + 0.6 * unit]), np.ones(1), dtype=dtype)


def test_kappa_is_the_largest_value_in_deviations():
    x = np.array([[1.0, 10.0], [3.0, 30.0]])

    np.testing.assert_allclose(kappa(x), [[3.0, 3.0]])
    np.testing.assert_allclose(kappa(x, weights=[[1], [1]]), [[3.0, 3.0]])
    np.testing.assert_allclose(kappa(x.T, axis=0), [[3.0], [3.0]])
