"""Virtual batches: statistics of a few examples at a time (ghost batches).

Hoffer et al. 2017, https://arxiv.org/abs/1705.08741, Algorithm 1. They are another
channel axis to the three steps: a batch of shape `(8, ..., channels)` is seen as
`(2, 4, ..., channels)`, and statistics have shape `(2, channels)`.
"""

from keras import ops


def batch_axis(ndim, axes):
    """The first axis that isn't a channel axis; `None` where there is none."""
    return next((i for i in range(ndim) if i not in axes), None)


def with_virtual_axis(axes, batch_axis):
    """The channel axes, and that of the virtual batches in front of `batch_axis`."""
    return tuple(sorted([batch_axis, *(a + (a > batch_axis) for a in axes)]))


def split(x, weights, size, axis):
    """Splits a batch into virtual batches of `size` examples, in order.

    Args:
        x: tensor.
        weights: tensor that broadcasts against `x`, or `None`.
        size: integer, examples in each; the last has what remains.
        axis: the axis of the examples.

    Returns:
        Two lists of at most two tensors, of `x` and of `weights`: the virtual batches
        of `size` examples along a new axis in front of `axis`, and the rest, one
        virtual batch. Where the number of examples isn't known yet, each may have
        nothing. Of `weights` that aren't there each is `None`.
    """
    # TensorFlow may know the size of one of the two only.
    known = [x.shape[axis]]
    if weights is not None and weights.shape[axis] != 1:
        known.append(weights.shape[axis])
    rows = next((n for n in known if n is not None), None)
    parts = _split(x, rows, size, axis)
    if weights is None:
        return parts, [None] * len(parts)
    if weights.shape[axis] == 1:
        return parts, [ops.expand_dims(weights, axis)] * len(parts)
    # What isn't known may turn out to be 1.
    shape = list(ops.shape(weights))
    shape[axis] = ops.shape(x)[axis] if rows is None else rows
    return parts, _split(ops.broadcast_to(weights, shape), rows, size, axis)


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
        parts: list of tensors, as `split` returns it.
        axis: the axis of the examples.
    """
    flat = []
    for part in parts:
        sizes = ops.shape(part)
        rows = sizes[axis] * sizes[axis + 1]
        flat.append(ops.reshape(part, (*sizes[:axis], rows, *sizes[axis + 2 :])))
    return flat[0] if len(flat) == 1 else ops.concatenate(flat, axis)
