import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx import backends
from keras_bnx.ops.normalize import normalize


@pytest.fixture(params=["generic", "native"])
def run(request):
    arithmetic = getattr(backends.active(), request.param)
    return lambda *args, **statistics: _run(arithmetic, *args, **statistics)


def _run(arithmetic, x, weights=None, **statistics):
    vector = {"shift": 0.0, "mean": 0.0, "variance": 0.0, **statistics}
    vector = {k: None if v is None else ops.full((1,), v) for k, v in vector.items()}
    weights = None if weights is None else ops.array(weights, "float32")
    x = ops.array(np.reshape(x, (-1, 1)), "float32")
    y = normalize(x, weights, axes=(1,), arithmetic=arithmetic, epsilon=1.0, **vector)
    return to_numpy(y)[:, 0]


def test_by_hand(run):
    y = run([1.0, 7.0], shift=2.0, mean=1.0, variance=3.0, gamma=4.0, beta=0.5)

    np.testing.assert_array_equal(y, [-3.5, 8.5])


def test_without_gamma_and_beta(run):
    y = run([1.0, 7.0], shift=3.0, variance=3.0, gamma=None, beta=None)

    np.testing.assert_array_equal(y, [-1.0, 2.0])


def test_only_what_has_no_weight_and_is_not_finite_gives_beta(run):
    x = [np.nan, np.inf, 3.0, np.nan]
    y = run(x, [[0.0], [0.0], [0.0], [1.0]], gamma=None, beta=0.5)

    np.testing.assert_array_equal(y, [0.5, 0.5, 3.5, np.nan])
