import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx import BatchNormalization
from keras_bnx.backends.contract import Batch
from keras_bnx.ops import virtual


def split(x, weights, size, axis=0):
    channels = 1 - axis
    batch = Batch(ops.array(x), weights, (channels,), "float32")
    return virtual.split(batch, size)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_splitting_keeps_the_order_and_joining_undoes_it(size, axis):
    x = np.arange(7 * 4, dtype="float32").reshape((7, 4) if axis == 0 else (4, 7))
    parts = split(x, None, size, axis)
    # The virtual batches along their own axis, each as a slice of the batch.
    found = [
        np.moveaxis(to_numpy(part.x), axis, 0)[i]
        for part in parts
        for i in range(part.x.shape[axis])
    ]
    expected = [np.take(x, range(i, min(i + size, 7)), axis) for i in range(0, 7, size)]

    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    joined = virtual.join([part.x for part in parts], axis)
    np.testing.assert_array_equal(to_numpy(joined), x)
    assert {(part.virtual_axis, part.weights) for part in parts} == {(axis, None)}


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("size", [3, 7, 100])
def test_weights_are_split_as_the_batch_is(rows, size):
    weights = np.arange(rows * 4, dtype="float32").reshape(rows, 4)
    spread = [
        np.broadcast_to(to_numpy(part.weights), tuple(part.x.shape)).reshape(-1, 4)
        for part in split(np.zeros((7, 4), "float32"), ops.array(weights), size)
    ]

    np.testing.assert_array_equal(
        np.concatenate(spread), np.broadcast_to(weights, (7, 4))
    )


@pytest.mark.parametrize(
    ("ndim", "axes", "axis", "more"),
    [
        (2, (1,), 0, (0, 2)),
        (4, (1,), 0, (0, 2)),
        (3, (0,), 1, (0, 1)),
        (4, (0, 1), 2, (0, 1, 2)),
        (3, (1, 2), 0, (0, 2, 3)),
        (1, (0,), None, (0,)),
    ],
)
def test_the_batch_is_the_first_axis_that_is_no_channels(ndim, axes, axis, more):
    batch = Batch(ops.zeros((4,) * ndim), None, axes, "float32")
    for part in virtual.split(batch, 3):
        assert (part.virtual_axis, part.axes) == (axis, more)
    assert virtual.split(batch, None) == [batch]


def test_a_virtual_batch_without_anything_is_harmless():
    layer = BatchNormalization(virtual_batch_size=2, momentum=0.0)
    x = np.random.default_rng(0).normal(2.0, 3.0, (6, 3)).astype("float32")
    mask = np.array([1, 1, 0, 0, 1, 1], bool)
    y = to_numpy(layer(x, training=True, mask=mask))

    assert np.isfinite(y).all()
    np.testing.assert_allclose(
        to_numpy(layer.moving_mean), x[mask].mean(0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        to_numpy(layer.moving_variance), x[mask].var(0), rtol=1e-5
    )


def test_one_inf_takes_its_virtual_batch_and_channel_only():
    layer = BatchNormalization(virtual_batch_size=2, momentum=0.0)
    x = np.random.default_rng(0).normal(2.0, 3.0, (6, 2)).astype("float32")
    x[3, 1] = np.inf
    layer(x, training=True)
    kept = np.array([0, 1, 4, 5])

    np.testing.assert_allclose(
        to_numpy(layer.moving_mean), [x[:, 0].mean(), x[kept, 1].mean()], rtol=1e-5
    )
    np.testing.assert_allclose(
        to_numpy(layer.moving_variance), [x[:, 0].var(), x[kept, 1].var()], rtol=1e-5
    )
