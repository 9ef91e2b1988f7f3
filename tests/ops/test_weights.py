import keras
import numpy as np
import pytest
from frameworks import gradients, to_numpy
from keras import ops

from keras_bnx.ops.weights import mask_to_weights

INPUTS = keras.ops.zeros((4, 5, 6, 3))


def weights(mask, inputs=INPUTS, axis=3):
    return to_numpy(mask_to_weights(mask, inputs, "float32", axes=(axis,)))


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((4, 5, 6), 3, (4, 5, 6, 1)),
        ((4, 5, 1), 3, (4, 5, 1, 1)),
        ((1, 5, 6), 3, (1, 5, 6, 1)),
        ((4, 5), 3, (4, 5, 1, 1)),
        ((4,), 3, (4, 1, 1, 1)),
        ((), 3, (1, 1, 1, 1)),
        ((4, 5, 6, 1), 3, (4, 5, 6, 1)),
        ((4, 5, 6, 3), 3, (4, 5, 6, 3)),
        # NumPy's broadcasting, where batch first doesn't fit.
        ((5, 6), 3, (1, 5, 6, 1)),
        ((6,), 3, (1, 1, 6, 1)),
        # Other channel axes: the mask knows the other ones.
        ((4, 6, 3), 1, (4, 1, 6, 3)),
        ((5, 6, 3), 0, (1, 5, 6, 3)),
        ((4, 6), 1, (4, 1, 6, 1)),
        # A mask that Keras propagated covers the channel axis.
        ((4, 5, 6), 1, (4, 5, 6, 1)),
    ],
)
def test_shapes_are_aligned(shape, axis, expected):
    mask = np.random.default_rng(0).uniform(size=shape) > 0.5

    found = weights(mask, axis=axis)
    assert found.shape == expected
    np.testing.assert_array_equal(found.reshape(shape), mask)


def test_batch_first_wins_over_numpy():
    assert weights(np.ones(4), ops.zeros((4, 4, 3)), axis=2).shape == (4, 1, 1)


@pytest.mark.parametrize("shape", [(7,), (4, 6), (4, 5, 7), (5, 4, 6), (4, 5, 6, 2)])
def test_shapes_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match="broadcast") as error:
        mask_to_weights(np.ones(shape), INPUTS, "float32", axes=(3,))
    assert str(shape) in str(error.value) and "(4, 5, 6)" in str(error.value)


def test_too_many_axes_are_refused():
    with pytest.raises(ValueError, match="broadcast"):
        mask_to_weights(np.ones((1, 4, 5, 6, 3)), INPUTS, "float32", axes=(3,))


@pytest.mark.parametrize(
    "mask", [[True, False], [1, 0], [1.0, 0.0], np.array([1, 0], "int8")]
)
def test_lists_and_integers_are_weights(mask):
    found = weights(mask, ops.zeros((2, 3)), axis=1)

    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, [[1.0], [0.0]])


def test_no_gradient_flows_to_a_mask():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")

    def loss(mask):
        weights = mask_to_weights(mask, ops.array(x), "float32", axes=(1,))
        # The second term alone has a gradient.
        return ops.sum(weights * x) + 2.0 * ops.sum(mask)

    (found,) = gradients(loss, np.ones(4, "float32"))
    np.testing.assert_array_equal(found, [2.0] * 4)
