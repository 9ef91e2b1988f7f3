"""Virtual batches: statistics of a few examples at a time (ghost batches).

Hoffer et al. 2017, https://arxiv.org/abs/1705.08741, Algorithm 1. They are another
channel axis to the steps: a batch of shape `(8, ..., channels)` is seen as
`(2, 4, ..., channels)`, and statistics have shape `(2, channels)`.
"""

from keras import ops

from keras_bnx.ops import statistics


def split(batch, size):
    """Splits a batch into virtual batches of `size` examples, in order.

    Args:
        batch: `Batch`.
        size: integer, examples in each; the last has what remains. `None` for none.

    Returns:
        List of at most two `Batch`: the virtual batches of `size` examples along a new
        axis in front of that of the examples, and the rest, one virtual batch. Where
        the number of examples isn't known yet, each may have nothing. The batch itself
        where there are none, or it has no axis but those of channels.
    """
    x, weights = batch.x, batch.weights
    axis = next((i for i in range(len(x.shape)) if i not in batch.axes), None)
    if size is None or axis is None:
        return [batch]
    # TensorFlow may know the size of one of the two only.
    known = [x.shape[axis]]
    if weights is not None and weights.shape[axis] != 1:
        known.append(weights.shape[axis])
    rows = next((n for n in known if n is not None), None)
    parts = _split(x, rows, size, axis)
    if weights is None:
        masks = [None] * len(parts)
    elif weights.shape[axis] == 1:
        masks = [ops.expand_dims(weights, axis)] * len(parts)
    else:
        # What isn't known may turn out to be 1.
        shape = list(ops.shape(weights))
        shape[axis] = ops.shape(x)[axis] if rows is None else rows
        masks = _split(ops.broadcast_to(weights, shape), rows, size, axis)
    axes = tuple(sorted([axis, *(a + (a > axis) for a in batch.axes)]))
    return [
        batch._replace(x=part, weights=mask, axes=axes, virtual_axis=axis)
        for part, mask in zip(parts, masks, strict=True)
    ]


def expand(vector, batch):
    """Gives a vector of the channels the axis of virtual batches, of size 1."""
    if batch.virtual_axis is None:
        return vector
    return ops.expand_dims(vector, batch.virtual_axis)


def merge(parts, axis):
    """Merges the moments of virtual batches, less those that aren't finite.

    Args:
        parts: list of `Moments`, of the batches that `split` returned.
        axis: their `virtual_axis`.
    """
    if axis is None:
        return parts[0]
    leave_out = not all(part.all_finite for part in parts)
    return statistics.merge(parts, axis, leave_out=leave_out)


def _split(x, rows, size, axis):
    """Splits one tensor that has `rows` examples, or an unknown number of them."""
    shape = list(ops.shape(x))
    before, after = shape[:axis], shape[axis + 1 :]
    if rows is None:
        whole = shape[axis] // size * size
    else:
        whole = rows - rows % size
        if whole == 0:
            return [ops.expand_dims(x, axis)]
        if whole == rows:
            return [ops.reshape(x, (*before, rows // size, size, *after))]
    index = (slice(None),) * axis
    full, rest = x[(*index, slice(0, whole))], x[(*index, slice(whole, None))]
    return [
        ops.reshape(full, (*before, whole // size, size, *after)),
        ops.expand_dims(rest, axis),
    ]


def join(parts, axis):
    """Undoes `split`.

    Args:
        parts: list of tensors, each of the shape of one of its batches.
        axis: their `virtual_axis`.
    """
    if axis is None:
        return parts[0]
    flat = []
    for part in parts:
        sizes = ops.shape(part)
        rows = sizes[axis] * sizes[axis + 1]
        flat.append(ops.reshape(part, (*sizes[:axis], rows, *sizes[axis + 2 :])))
    return flat[0] if len(flat) == 1 else ops.concatenate(flat, axis)
