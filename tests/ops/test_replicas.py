"""Replicas without an engine: what each would add to the sum is known."""

import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.backends.contract import Moments, Replicas
from keras_bnx.ops import replicas


def beside(count, index, others):
    """A replica whose sum adds what the others have, kept in a list."""

    def all_reduce_sum(value):
        others.append(to_numpy(value))
        return value

    return Replicas(count, index, all_reduce_sum, True)


def test_each_replica_adds_a_row_of_its_own():
    moments = Moments(4, 4.0, *(ops.array([v, np.nan]) for v in (1.0, 2.0, 3.0)))
    sent = []
    gathered = replicas.gather(moments, beside(3, 1, sent))

    (rows,) = sent  # one collective
    assert rows.shape == (3, 5, 2)
    np.testing.assert_array_equal(rows[[0, 2]], 0.0)
    np.testing.assert_array_equal(rows[1, :, 0], [4.0, 4.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(to_numpy(gathered.variance)[:, 0], [0.0, 3.0, 0.0])


def rows_of(count):
    """The moments of replicas, whose shifts are their numbers."""
    rows = np.arange(count, dtype="float32")[:, None]
    return [np.ones_like(rows), np.full_like(rows, 2.0), rows, 0 * rows, 0 * rows]


def synchronized(count, index, size):
    """A replica of several, each of two elements of its own number."""
    others = np.stack(rows_of(count), 1)
    others[index] = 0.0

    def all_reduce_sum(rows):
        return rows + ops.array(others)

    replica = Replicas(count, index, all_reduce_sum, True)
    return replicas.reduction(replica, size), replica


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [(0, 2, 0.5), (1, 2, 0.5), (2, 2, 2.5), (5, 2, 4.5), (3, 3, 4.0), (4, True, 2.5)],
)
def test_groups_are_consecutive(index, size, expected):
    found, _ = synchronized(6, index, size)
    own = Moments(*(ops.array(rows[index]) for rows in rows_of(6)))
    moments = found.statistics(own)
    everyone = found.everyone(moments)

    for what, mean in ((moments, expected), (everyone, 2.5)):
        assert to_numpy(what.shift + what.residual) == [mean]
    # All of them have been merged already.
    assert (everyone is moments) == (size is True)


def test_groups_have_to_fit():
    found, _ = synchronized(6, 0, 4)
    own = Moments(*(ops.array(rows[0]) for rows in rows_of(6)))
    with pytest.raises(ValueError, match="synchronized=4 for 6 replicas"):
        found.statistics(own)


def test_a_groups_sum_is_of_its_replicas_alone():
    others = np.zeros((4, 2), "float32")
    others[[0, 1, 3]] = [[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]
    replica = Replicas(4, 2, lambda rows: rows + ops.array(others), True)
    found = replicas.reduction(replica, 2).sum_gradients(ops.array([5.0, 6.0]))

    np.testing.assert_array_equal(to_numpy(found), [105.0, 206.0])


@pytest.mark.parametrize("merges_moving", [False, True])
@pytest.mark.parametrize("size", [False, True, 2])
@pytest.mark.parametrize("virtual", [False, True])
def test_who_joins_is_chosen_once(size, virtual, merges_moving):
    replica = Replicas(2, 0, None, merges_moving)
    found = type(replicas.reduction(replica, size, virtual=virtual))

    if size and not virtual:
        assert found is replicas.Synchronized
    elif size or merges_moving:
        assert found is replicas.MovingOnly
    else:
        assert found is replicas.Alone
    assert type(replicas.reduction(None, size)) is replicas.Alone
