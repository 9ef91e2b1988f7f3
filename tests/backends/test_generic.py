"""The generic arithmetic, which serves every backend."""

import numpy as np
import pytest
from frameworks import gradients, to_numpy
from keras import ops

from keras_bnx import reference
from keras_bnx.backends import generic
from keras_bnx.backends.contract import Affine, Batch, Statistics


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (2, 3, 4), (2, 4, 5, 3), (3,)])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_any_axis(shape, weighted):
    axis = shape.index(3)
    rng = np.random.default_rng(0)
    x = rng.normal(5.0, 1.0, shape).astype("float32")
    w = rng.uniform(size=shape).round(1).astype("float32") if weighted else None
    expected = reference.moments(x, w, axis=axis)

    weights = None if w is None else ops.array(w)
    found = generic.moments(Batch(ops.array(x), weights, (axis,), "float32"))

    assert all(tuple(value.shape) == (3,) for value in found[:5])
    np.testing.assert_allclose(to_numpy(found.count), expected[0], rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(found.size), expected[1])
    mean = to_numpy(found.shift) + to_numpy(found.residual)
    np.testing.assert_allclose(mean, expected[2], rtol=1e-6)
    np.testing.assert_allclose(
        to_numpy(found.variance), expected[3], rtol=1e-5, atol=1e-12
    )


def test_nothing_is_recomputed_or_traced_or_reduced_here():
    assert generic.is_recomputing() is False
    assert generic.is_traced(True) is False
    assert generic.replicas(None) is None


def formula(x, dy, weights, gamma, **arguments):
    """The gradients by the formula, of moments that are cut off as kernels' are."""
    batch = Batch(x, weights, (1,), "float32")
    moments = generic.moments(batch)
    vectors = map(ops.stop_gradient, moments[2:5])
    statistics = Statistics(*vectors, 1.0 / moments.count)
    affine = Affine(gamma, None)
    return generic.gradients(dy, batch, statistics, affine, epsilon=0.1, **arguments)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_formula_is_the_oracles_to_the_second_order(weighted):
    rng = np.random.default_rng(0)
    x, dy, vector = rng.normal(2.0, 1.0, (3, 8, 3))
    gamma = np.array([0.5, 1.0, 2.0])
    w = np.array([1, 0.5, 0, 2, 1, 1, 0, 1.0])[:, None] if weighted else None

    def oracle(x):
        state = reference.State(np.zeros(3), np.ones(3))
        arguments = reference.Arguments(epsilon=0.1, gamma=gamma)
        step = reference.batch_normalization(x, state, arguments, weights=w)
        return reference.gradients(step, dy, x)

    given = [None if v is None else ops.array(v, "float32") for v in (dy, w, gamma)]
    expected = oracle(x)
    for actual, wanted in zip(
        formula(ops.array(x, "float32"), *given), expected, strict=True
    ):
        np.testing.assert_allclose(to_numpy(actual), wanted, rtol=0, atol=1e-5)

    # The gradient's own: its derivative along a vector, by differences of the oracle.
    h = 1e-5
    along = [oracle(x + sign * h * vector)[0] for sign in (1, -1)]
    (found,) = gradients(
        lambda x: ops.sum(
            ops.array(vector, "float32") * formula(x, *given, differentiable=True)[0]
        ),
        x.astype("float32"),
    )
    wanted = (along[0] - along[1]) / (2 * h)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
