"""Replicas without an engine: what each would add to the sum is known."""

import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.backends import Moments, Replicas
from keras_bnx.ops import replicas


def beside(count, index, others):
    """A replica whose sum adds what the others have, kept in a list."""

    def all_reduce_sum(value):
        others.append(to_numpy(value))
        return value

    return Replicas(count, index, all_reduce_sum, True)


def test_each_replica_adds_a_row_of_its_own():
    batch = Moments(4, 4.0, *(ops.array([v, np.nan]) for v in (1.0, 2.0, 3.0)))
    sent = []
    gathered = replicas.gather(batch, beside(3, 1, sent))

    (rows,) = sent  # one collective
    assert rows.shape == (3, 5, 2)
    np.testing.assert_array_equal(rows[[0, 2]], 0.0)
    np.testing.assert_array_equal(rows[1, :, 0], [4.0, 4.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(to_numpy(gathered.variance)[:, 0], [0.0, 3.0, 0.0])


@pytest.mark.parametrize(("index", "expected"), [(0, 0), (1, 0), (2, 2), (5, 4)])
def test_groups_are_consecutive(index, expected):
    rows = ops.reshape(ops.arange(12, dtype="float32"), (6, 2))
    own = replicas.group(Moments(*[rows] * 5), beside(6, index, []), 2)
    first = to_numpy(own.mean)[0, 0] / 2
    assert own.mean.shape == (2, 2) and first == expected
    assert replicas.group(Moments(*[rows] * 5), beside(6, index, []), True).mean is rows


def test_groups_have_to_fit():
    rows = ops.zeros((6, 2))
    with pytest.raises(ValueError, match="synchronized=4 for 6 replicas"):
        replicas.group(Moments(*[rows] * 5), beside(6, 0, []), 4)


def test_a_groups_sum_is_of_its_replicas_alone():
    others = np.zeros((4, 2), "float32")
    others[[0, 1, 3]] = [[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]
    replica = Replicas(4, 2, lambda rows: rows + ops.array(others), True)
    found = replicas.sum_group(ops.array([5.0, 6.0]), replicas=replica, size=2)

    np.testing.assert_array_equal(to_numpy(found), [105.0, 206.0])
