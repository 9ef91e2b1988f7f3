"""Statistics of several replicas: one sum of vectors per layer and step."""

from keras import ops

from keras_bnx.backends import Moments


def gather(batch, replicas):
    """Collects the moments of all replicas, by one sum.

    Each replica adds its five vectors in a row of its own, so that nothing is
    rounded, and moments about different shifts meet as they are. Differentiable: a
    replica's outputs depend on the others' inputs.

    Args:
        batch: `Moments` of this replica.
        replicas: `Replicas`.

    Returns:
        `Moments` with an axis of replicas in front.
    """
    zeros = ops.zeros_like(batch.variance)
    rows = _rows(ops.stack([value + zeros for value in batch]), replicas)
    return Moments(*(rows[:, i] for i in range(len(batch))))


def group(gathered, replicas, size):
    """Takes the moments of this replica's group.

    Args:
        gathered: `Moments`, as `gather` returns them.
        replicas: `Replicas`.
        size: how many consecutive replicas are a group; `True` for all of them.
    """
    return Moments(*(_own(value, replicas, size) for value in gathered))


def sum_group(value, *, replicas, size):
    """Sums a tensor over this replica's group."""
    if size is True:
        return replicas.all_reduce_sum(value)
    return ops.sum(_own(_rows(value, replicas), replicas, size), 0)


def _rows(mine, replicas):
    """All replicas' tensors, along an axis in front."""
    is_mine = ops.arange(replicas.count) == replicas.index
    is_mine = ops.reshape(is_mine, (replicas.count,) + (1,) * len(mine.shape))
    rows = ops.where(is_mine, ops.expand_dims(mine, 0), ops.zeros_like(mine))
    return replicas.all_reduce_sum(rows)


def _own(rows, replicas, size):
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
