"""The two steps over the data, by each implementation."""

import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops
from tolerance import assert_near

from keras_bnx import backends, reference
from keras_bnx.backends.contract import Affine, Batch, Statistics

IMPLEMENTATIONS = ("generic", "native")
# A kernel's sum may be one chain of additions: TensorFlow's, PyTorch's with one thread.
UNITS = {"generic": 4.0, "native": 16.0}


def moments(x, weights=None, implementation="generic"):
    chosen = getattr(backends.active(), implementation)
    return chosen.moments(Batch(x, weights, (1,), "float32"))


def found(moments):
    # `count`, `size` and the residual may be Python numbers.
    count, size, shift, residual, variance = (
        to_numpy(ops.convert_to_tensor(v)) for v in moments[:5]
    )
    mean = shift.astype(float) + residual
    count, size = (np.broadcast_to(n, mean.shape) for n in (count, size))
    return count, size, mean, variance


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mean_and_variance_keep_their_digits(ratio, weighted, implementation):
    rng = np.random.default_rng(0)
    x = rng.normal(ratio, 1.0, (1000, 3)).astype("float32")
    w = rng.uniform(size=(1000, 1)).astype("float32") if weighted else None
    expected = reference.moments(x, w)

    count, size, mean, variance = found(
        moments(
            ops.convert_to_tensor(x),
            None if w is None else ops.array(w),
            implementation,
        )
    )

    assert_near(count, expected[0], scale=0.0)
    np.testing.assert_array_equal(size, [1000] * 3)
    # In two parts the mean is known to digits of the deviation, not of itself.
    np.testing.assert_allclose(mean, expected[2], rtol=0, atol=2e-6)
    assert_near(variance, expected[3], scale=0.0, units=UNITS[implementation])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_far_first_element_costs_no_digits(implementation):
    x = np.random.default_rng(0).normal(size=(1000, 1)).astype("float32")
    x[0] = 500.0
    expected = reference.moments(x)

    variance = found(moments(ops.array(x), None, implementation))[3]
    assert_near(variance, expected[3], scale=0.0, units=UNITS[implementation])


@pytest.mark.parametrize(
    "rows, implementation", [(0, "generic"), (1, "generic"), (1, "native")]
)
def test_no_element_and_one_element(rows, implementation):
    batch = moments(ops.zeros((rows, 2)) + 3.0, None, implementation)

    count, size, mean, variance = found(batch)
    assert list(count) == list(size) == [rows, rows]
    np.testing.assert_array_equal(mean, [3.0 * rows] * 2)
    np.testing.assert_array_equal(variance, [0.0, 0.0])


@pytest.fixture(params=IMPLEMENTATIONS)
def run(request):
    """Normalizes a column by statistics given as numbers, with an epsilon of 1."""
    implementation = getattr(backends.active(), request.param)

    def run(x, weights=None, *, shift, residual=0.0, variance, gamma, beta):
        x = ops.array(np.reshape(x, (-1, 1)), "float32")
        weights = None if weights is None else ops.array(weights, "float32")
        vectors = (ops.full((1,), v) for v in (shift, residual, variance, gamma, beta))
        shift, residual, variance, gamma, beta = vectors
        y = implementation.normalize(
            Batch(x, weights, (1,), "float32"),
            Statistics(shift, residual, variance, 1 / len(x)),
            Affine(gamma, beta),
            epsilon=1.0,
        )
        return to_numpy(y)[:, 0]

    return run


def test_by_hand(run):
    y = run([1.0, 7.0], shift=2.0, residual=1.0, variance=3.0, gamma=4.0, beta=0.5)

    np.testing.assert_array_equal(y, [-3.5, 8.5])


def test_only_what_has_no_weight_and_is_not_finite_gives_beta(run):
    x, weights = [np.nan, np.inf, 3.0, np.nan], [[0.0], [0.0], [0.0], [1.0]]
    y = run(x, weights, shift=0.0, variance=0.0, gamma=1.0, beta=0.5)

    np.testing.assert_array_equal(y, [0.5, 0.5, 3.5, np.nan])
