import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.averages import (
    consistent_stddev,
    update_mean,
    update_scale,
    update_weight,
)
from keras_bnx.backends.contract import Moments


def moments(shift, residual):
    return Moments(None, None, ops.array([shift]), ops.array([residual]), None)


def test_update_mean_by_hand():
    found = update_mean(ops.array([4.0]), moments(7.0, 1.0), 0.25)

    np.testing.assert_array_equal(to_numpy(found), [5.0])


def test_update_mean_rests_at_the_mean():
    """The plain form's two products would drift: 0.99 + 0.01 isn't 1 in float32."""
    moving = ops.array([100003.0])
    for _ in range(50):
        moving = update_mean(moving, moments(100003.0, 0.0), 0.01)

    np.testing.assert_array_equal(to_numpy(moving), [100003.0])


def test_update_scale_keeps_small_values_beside_large_ones():
    found = update_scale(ops.array([1e8]), ops.array([1e-8]), 1.0)

    np.testing.assert_allclose(to_numpy(found), [1e-8])


def test_the_deviation_is_kept_unless_the_variance_says_otherwise():
    stddev = ops.array([2.0, 2.2, 1.0, 9.0])
    variance = ops.array([4.0, 4.0, 4.0, 4.0])
    found = consistent_stddev(stddev, variance, epsilon=1.0)

    # sqrt(4) to sqrt(5) is what renorm's own updates leave.
    np.testing.assert_allclose(to_numpy(found), [2.0, 2.2, 2.0, 5**0.5])


def test_the_mean_comes_near_where_its_steps_are_lost_in_rounding():
    """Half a unit of a million is 3 of these steps."""
    moving = ops.array([1e6 - 2.5])
    for _ in range(100):
        moving = update_mean(moving, moments(1e6, 0.02), 0.01)
    assert abs(float(moving[0]) - 1e6) <= 0.0625

    # A weight of 0 is no step.
    kept = update_mean(ops.array([1e6 - 2.5]), moments(1e6, 0.02), 0.0)
    np.testing.assert_array_equal(to_numpy(kept), [1e6 - 2.5])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.9999, 1.0])
def test_the_weight_of_the_newest_divides_the_initial_value_out(momentum):
    """Against the definition: the average, less the share of what it started from."""
    rng, average, debiased = np.random.default_rng(0), 7.0, 0.0
    for updates in range(1, 50):
        value = rng.normal()
        average = average * momentum + value * (1 - momentum)
        weight = update_weight(momentum, ops.array([float(updates)]), debias=True)
        debiased += float(ops.sum(weight)) * (value - debiased)
        if updates == 1 and momentum < 1:
            assert abs(float(ops.sum(weight)) - 1.0) <= 2.0**-23
        left = momentum**updates
        expected = (average - left * 7.0) / (1 - left) if momentum < 1 else 0.0
        np.testing.assert_allclose(debiased, expected, rtol=1e-4, atol=1e-5)


def test_the_cumulative_average_weighs_all_alike():
    weights = update_weight(None, ops.array([1.0, 4.0]))
    np.testing.assert_array_equal(to_numpy(weights), [1.0, 0.25])
    assert update_weight(0.75) == 0.25


def test_a_mean_that_is_the_nearest_number_stays():
    """The next number is 0.0078 away, and would be worse."""
    found = update_mean(ops.array([100003.0]), moments(100003.0, 0.001), 0.01)

    np.testing.assert_array_equal(to_numpy(found), [100003.0])
