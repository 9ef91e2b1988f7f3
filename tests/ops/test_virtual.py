import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx import BatchNormalization
from keras_bnx.backends import Moments
from keras_bnx.ops import virtual
from keras_bnx.ops.moments import join


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_splitting_keeps_the_order_and_joining_undoes_it(size, axis):
    x = np.arange(7 * 4, dtype="float32").reshape((7, 4) if axis == 0 else (4, 7))
    parts, masks = virtual.split(ops.array(x), None, size, axis)
    # The virtual batches along their own axis, each as a slice of the batch.
    found = [
        to_numpy(np.moveaxis(to_numpy(p), axis, 0)[i])
        for p in parts
        for i in range(p.shape[axis])
    ]
    expected = [np.take(x, range(i, min(i + size, 7)), axis) for i in range(0, 7, size)]

    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(to_numpy(virtual.join(parts, axis)), x)
    assert masks == [None] * len(parts)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("size", [3, 7, 100])
def test_weights_are_split_as_the_batch_is(rows, size):
    x = ops.array(np.zeros((7, 4), "float32"))
    weights = np.arange(rows * 4, dtype="float32").reshape(rows, 4)
    parts, masks = virtual.split(x, ops.array(weights), size, 0)
    spread = [
        np.broadcast_to(to_numpy(mask), tuple(part.shape)).reshape(-1, 4)
        for part, mask in zip(parts, masks, strict=True)
    ]

    np.testing.assert_array_equal(
        np.concatenate(spread), np.broadcast_to(weights, (7, 4))
    )


@pytest.mark.parametrize(
    ("ndim", "axes", "batch", "more"),
    [
        (2, (1,), 0, (0, 2)),
        (4, (1,), 0, (0, 2)),
        (3, (0,), 1, (0, 1)),
        (4, (0, 1), 2, (0, 1, 2)),
        (3, (1, 2), 0, (0, 2, 3)),
        (1, (0,), None, None),
    ],
)
def test_the_batch_is_the_first_axis_that_is_no_channels(ndim, axes, batch, more):
    assert virtual.batch_axis(ndim, axes) == batch
    if batch is not None:
        assert virtual.with_virtual_axis(axes, batch) == more


@pytest.mark.parametrize("ratio", [0.0, 1e5])
@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("rows", [(6, 6), (6, 3)])
def test_joined_moments_are_those_of_the_batch(rows, leave_out, ratio):
    x = np.random.default_rng(0).normal(ratio, 1.0, (sum(rows), 2)).astype("float32")
    parts, start = [], 0
    for n in rows:
        part, start = x[start : start + n].astype("float64"), start + n
        shift, variance = (
            ops.array(v[None].astype("float32")) for v in (part[0], part.var(0))
        )
        mean = ops.array((part - part[0]).mean(0)[None].astype("float32"))
        parts.append(Moments(n, n, shift, mean, variance))
    if rows[0] == rows[1]:
        # As one part of two virtual batches; a count is that of each.
        vectors = (ops.concatenate(v, 0) for v in list(zip(*parts, strict=True))[2:])
        parts = [Moments(rows[0], rows[0], *vectors)]
    batch = join(parts, 0, leave_out=leave_out)

    x = x.astype("float64")
    np.testing.assert_array_equal(to_numpy(ops.convert_to_tensor(batch.count)), len(x))
    mean = to_numpy(batch.shift).astype("float64") + to_numpy(batch.mean)
    np.testing.assert_allclose(mean, x.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(to_numpy(batch.variance), x.var(0), rtol=1e-5)


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


def test_what_is_not_finite_is_left_out_or_makes_the_rest_so():
    vectors = [
        ops.array([[v], [w]]) for v, w in ((0.5, 1.0), (0.0, 0.0), (3.0, np.nan))
    ]
    part = Moments(4, 4, *vectors)
    assert to_numpy(join([part], 0).shift) == [0.5]
    assert np.isnan(to_numpy(join([part], 0, leave_out=False).variance))
