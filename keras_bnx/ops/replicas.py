"""Who takes part in the sums: one replica, a group of them, or all.

`reduction` chooses once; what it returns is asked at two places of a training step,
for the moments to normalize by and for those that the moving statistics follow.
"""

from keras import ops

from keras_bnx.backends.contract import Moments
from keras_bnx.ops.statistics import merge, vectors_of


def reduction(replicas, synchronized, *, virtual=False):
    """Returns how the moments of this replica meet those of the others.

    Args:
        replicas: `Replicas`, or `None` where there is one.
        synchronized: the layer's argument: a bool, or the size of a group.
        virtual: whether the moments are of virtual batches. Those are a replica's
            own; what meets is what the moving statistics follow.
    """
    if replicas is None:
        return Alone()
    if synchronized and not virtual:
        return Synchronized(replicas, synchronized)
    return MovingOnly(replicas) if synchronized or replicas.merges_moving else Alone()


class Alone:
    """One replica, or several that know nothing of each other."""

    sum_gradients = None

    def statistics(self, moments):
        """The moments to normalize by."""
        return moments

    def everyone(self, moments):
        """The moments to average over time, of those to normalize by."""
        return moments


class MovingOnly(Alone):
    """Each replica normalizes by its own moments; the moving statistics are one."""

    def __init__(self, replicas):
        self.replicas = replicas

    def everyone(self, moments):
        return merge([gather(moments, self.replicas)], 0)


class Synchronized:
    """All replicas, or those of a group, are one batch. It takes one sum forward."""

    def __init__(self, replicas, size):
        self.replicas, self.size = replicas, size

    def statistics(self, moments):
        self._rows = gather(moments, self.replicas)
        rows = [_of_group(value, self.replicas, self.size) for value in self._rows[:5]]
        return merge([Moments(*rows)], 0, leave_out=False)

    def everyone(self, moments):
        return moments if self.size is True else merge([self._rows], 0)

    def sum_gradients(self, value):
        """Sums a tensor over the replicas whose elements are one batch."""
        if self.size is True:
            return self.replicas.all_reduce_sum(value)
        rows = rows_of(value, self.replicas)
        return ops.sum(_of_group(rows, self.replicas, self.size), 0)


def gather(moments, replicas):
    """Collects the moments of all replicas, by one sum.

    Each replica adds its five vectors in a row of its own, so that nothing is
    rounded, and moments about different shifts meet as they are. Differentiable: a
    replica's outputs depend on the others' inputs.

    Args:
        moments: `Moments` of this replica.
        replicas: `Replicas`.

    Returns:
        `Moments` with an axis of replicas in front.
    """
    rows = rows_of(ops.stack(vectors_of(moments)), replicas)
    return Moments(*(rows[:, i] for i in range(5)))


def rows_of(mine, replicas):
    """All replicas' tensors, along an axis in front."""
    is_mine = ops.arange(replicas.count) == replicas.index
    is_mine = ops.reshape(is_mine, (replicas.count,) + (1,) * len(mine.shape))
    rows = ops.where(is_mine, ops.expand_dims(mine, 0), ops.zeros_like(mine))
    return replicas.all_reduce_sum(rows)


def _of_group(rows, replicas, size):
    """The rows of this replica's group, `size` consecutive replicas."""
    if size is True:
        return rows
    if replicas.count % size:
        raise ValueError(
            "The replicas have to come in groups of `synchronized` each. "
            f"Received: synchronized={size} for {replicas.count} replicas. Choose a "
            "divisor, or True for all of them."
        )
    start = replicas.index // size * size
    first = (start,) + (0,) * (len(rows.shape) - 1)
    return ops.slice(rows, first, (size, *rows.shape[1:]))
