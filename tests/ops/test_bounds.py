import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.ops.bounds import at_least, at_most


@pytest.mark.parametrize("as_tensor", [False, True])
def test_by_hand(as_tensor):
    x = ops.array([1.0, 2.0, 3.0, np.nan])
    bound = ops.array(2.0) if as_tensor else 2.0

    np.testing.assert_array_equal(to_numpy(at_least(x, bound)), [2.0, 2.0, 3.0, np.nan])
    np.testing.assert_array_equal(to_numpy(at_most(x, bound)), [1.0, 2.0, 2.0, np.nan])


def test_float64_stays_float64(float64):
    x = ops.convert_to_tensor(np.array([0.0, 1.0]))

    for found, expected in (
        (at_least(x, 0.1), [0.1, 1.0]),
        (at_most(x, 0.1), [0, 0.1]),
    ):
        assert to_numpy(found).dtype == "float64"
        np.testing.assert_array_equal(to_numpy(found), expected)
