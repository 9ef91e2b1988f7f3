import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops
from tolerance import assert_near

from keras_bnx import backends, reference
from keras_bnx.backends import Moments
from keras_bnx.ops import moments as module

ARITHMETICS = ("generic", "native")
# A kernel's sum may be one chain of additions: TensorFlow's, PyTorch's with one thread.
UNITS = {"generic": 4.0, "native": 16.0}


def moments(x, weights=None, arithmetic="generic"):
    chosen = getattr(backends.active(), arithmetic)
    return module.moments(x, weights, axes=(1,), arithmetic=chosen)


def found(batch):
    # `count`, `size` and the rest of the mean may be Python numbers.
    count, size, shift, rest, _ = (to_numpy(ops.convert_to_tensor(v)) for v in batch)
    mean = shift.astype(float) + rest
    count, size = (np.broadcast_to(n, mean.shape) for n in (count, size))
    return count, size, mean, to_numpy(batch.variance)


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_mean_and_variance_keep_their_digits(ratio, weighted, arithmetic):
    rng = np.random.default_rng(0)
    x = rng.normal(ratio, 1.0, (1000, 3)).astype("float32")
    w = rng.uniform(size=(1000, 1)).astype("float32") if weighted else None
    expected = reference.moments(x, w)

    count, size, mean, variance = found(
        moments(
            ops.convert_to_tensor(x), None if w is None else ops.array(w), arithmetic
        )
    )

    assert_near(count, expected[0], scale=0.0)
    np.testing.assert_array_equal(size, [1000] * 3)
    # In two parts the mean is known to digits of the deviation, not of itself.
    np.testing.assert_allclose(mean, expected[2], rtol=0, atol=2e-6)
    assert_near(variance, expected[3], scale=0.0, units=UNITS[arithmetic])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_far_first_element_costs_no_digits(arithmetic):
    x = np.random.default_rng(0).normal(size=(1000, 1)).astype("float32")
    x[0] = 500.0
    expected = reference.moments(x)

    variance = found(moments(ops.array(x), None, arithmetic))[3]
    assert_near(variance, expected[3], scale=0.0, units=UNITS[arithmetic])


@pytest.mark.parametrize(
    "rows, arithmetic", [(0, "generic"), (1, "generic"), (1, "native")]
)
def test_no_element_and_one_element(rows, arithmetic):
    batch = moments(ops.zeros((rows, 2)) + 3.0, None, arithmetic)

    count, size, mean, variance = found(batch)
    assert list(count) == list(size) == [rows, rows]
    np.testing.assert_array_equal(mean, [3.0 * rows] * 2)
    np.testing.assert_array_equal(variance, [0.0, 0.0])


def test_an_unbiased_variance_exists_where_more_than_one_counts():
    def batch(count, variance):
        return Moments(count, None, None, None, ops.array(variance))

    variance, exists = module.unbiased_variance(
        batch(ops.array([0.5, 1.0, 1.5, 4.0]), [2.0, 2.0, 2.0, 3.0])
    )
    np.testing.assert_array_equal(to_numpy(exists), [False, False, True, True])
    np.testing.assert_array_equal(to_numpy(variance)[2:], [6.0, 4.0])
    for count, exists, expected in ((1, False, 3.0), (4, True, 4.0)):
        variance, found = module.unbiased_variance(batch(count, [3.0]))
        assert found is exists and to_numpy(variance) == [expected]
