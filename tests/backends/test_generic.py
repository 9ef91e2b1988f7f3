"""The generic arithmetic, which serves every backend."""

import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx import reference
from keras_bnx.backends import generic
from keras_bnx.backends.contract import Batch


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
