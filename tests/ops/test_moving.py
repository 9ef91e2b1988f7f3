import numpy as np
from frameworks import to_numpy
from keras import ops

from keras_bnx.backends import Moments
from keras_bnx.ops.moving import consistent_stddev, update_mean, update_scale


def batch(shift, mean):
    return Moments(None, None, ops.array([shift]), ops.array([mean]), None)


def test_update_mean_by_hand():
    found = update_mean(ops.array([4.0]), batch(7.0, 1.0), momentum=0.75)

    np.testing.assert_array_equal(to_numpy(found), [5.0])


def test_update_mean_rests_at_the_mean():
    """The plain form's two products would drift: 0.99 + 0.01 isn't 1 in float32."""
    moving = ops.array([100003.0])
    for _ in range(50):
        moving = update_mean(moving, batch(100003.0, 0.0), momentum=0.99)

    np.testing.assert_array_equal(to_numpy(moving), [100003.0])


def test_update_scale_keeps_small_values_beside_large_ones():
    found = update_scale(ops.array([1e8]), ops.array([1e-8]), momentum=0.0)

    np.testing.assert_allclose(to_numpy(found), [1e-8])


def test_the_deviation_is_kept_unless_the_variance_says_otherwise():
    stddev = ops.array([2.0, 2.2, 1.0, 9.0])
    variance = ops.array([4.0, 4.0, 4.0, 4.0])
    found = consistent_stddev(stddev, variance, epsilon=1.0)

    # sqrt(4) to sqrt(5) is what renorm's own updates leave.
    np.testing.assert_allclose(to_numpy(found), [2.0, 2.2, 2.0, 5**0.5])
