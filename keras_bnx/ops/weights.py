"""Reading a mask as weights."""

import keras
from keras import ops


def mask_to_weights(mask, inputs, dtype, *, axes):
    """Turns any mask into weights that broadcast against the inputs.

    Statistics count elements by weight, `n = sum(w)`; a mask is the case of
    weights 0 and 1. Shapes are tried in this order, and the first that fits is
    taken:

    1. the rank of the inputs: as it is, channel axes may have size 1;
    2. at most the rank without the channel axes: the inputs' axes other than
       `axes`, **batch first**, missing ones at the end (Keras's masks: a mask
       `(batch, time)` serves inputs `(batch, time, ..., channels)`);
    3. the same, missing ones at the front (NumPy's broadcasting);
    4. the inputs' axes from the first on, channel axes among them: what
       Keras's mask propagation hands to a layer whose channels aren't last.

    Args:
        mask: tensor, array or nested list; bool, or real weights. Negative and
            NaN weights count as 0. No gradient flows to a mask.
        inputs: tensor of shape `(batch, ..., channels, ...)`.
        dtype: the dtype of the weights.
        axes: tuple of the channel axes, ascending.

    Returns:
        Tensor of `inputs`' rank that broadcasts against `inputs`.

    Raises:
        ValueError: if no shape fits, or the mask is complex.
    """
    mask = ops.convert_to_tensor(mask)
    if "complex" in keras.backend.standardize_dtype(mask.dtype):
        raise ValueError(
            "A mask holds bools or real weights. "
            f"Received: mask.dtype={keras.backend.standardize_dtype(mask.dtype)}. "
            "Pass its real part or a comparison."
        )
    full = tuple(inputs.shape)
    mask_shape = tuple(mask.shape)
    for shape in _candidates(mask_shape, len(full), axes):
        if all(map(_broadcasts, shape, full)):
            break
    else:
        without_channels = tuple(n for i, n in enumerate(full) if i not in axes)
        raise ValueError(
            "A mask has to broadcast against the inputs without their channel axis. "
            f"Received: mask.shape={mask_shape}, inputs.shape={full}, "
            f"axis={axes[0] if len(axes) == 1 else axes}. "
            f"Pass a mask of shape {without_channels}, where any size may be 1."
        )
    # Sizes that aren't known yet come from the mask itself.
    sizes = iter(n for n, m in zip(ops.shape(mask), mask_shape, strict=True) if m != 1)
    shape = [1 if n == 1 else next(sizes) for n in shape]
    return ops.stop_gradient(ops.reshape(ops.cast(mask, dtype), shape))


def vary_by_channel(batch):
    """Whether the weights may count an element in one channel and not in another."""
    weights = batch.weights
    return weights is not None and any(weights.shape[i] != 1 for i in batch.axes)


def are_counted(batch):
    """Whether anything counts in each channel, a bool vector."""
    others, counted = batch.other_axes, batch.weights > 0
    return ops.any(counted, axis=others) if others else counted


def leave_out_absent(gamma, counted, batch):
    """Sets gamma to 0 in channels that a mask leaves out as a whole: they give `beta`.

    Keras's own masks do so to a layer whose channels aren't last, where they cover
    the channels of padding. In a batch that is padding alone none is left out.

    Args:
        gamma: vector.
        counted: bool vector: whether anything counts in a channel.
        batch: `Batch`, whose mask it is.
    """
    # Each virtual batch may be one of padding alone.
    axes = [i for i, a in enumerate(batch.axes) if a != batch.virtual_axis]
    any_counts = ops.any(counted, axis=tuple(axes), keepdims=True)
    absent = ops.logical_and(ops.logical_not(counted), any_counts)
    return ops.where(absent, ops.zeros_like(gamma), gamma)


def _broadcasts(size, full_size):
    """Whether a size of the mask serves that of the inputs; unknown ones do."""
    # Comparisons, not `in`: symbolic sizes of `torch.compile` can't be searched for.
    if size is None or full_size is None:
        return True
    return size == 1 or size == full_size


def _candidates(shape, ndim, axes):
    if len(shape) == ndim:
        yield shape
    missing = ndim - len(axes) - len(shape)
    if missing >= 0:
        for spatial in (shape + (1,) * missing, (1,) * missing + shape):
            sizes = iter(spatial)
            yield tuple(1 if i in axes else next(sizes) for i in range(ndim))
    if len(shape) < ndim:
        yield shape + (1,) * (ndim - len(shape))
