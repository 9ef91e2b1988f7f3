"""Step 2: centering, scale and offset."""

from keras import ops

from keras_bnx import backends


def normalize(
    inputs, weights=None, *, axis, shift, mean, variance, epsilon, gamma, beta
):
    """Computes `(x - shift - mean) * gamma / sqrt(variance + epsilon) + beta`.

    Subtracting first keeps the digits that `x * a + b` would lose where the
    mean is large: at mean/std = 1e5 the float32 error is 1e-7, not 2e-2.

    Args:
        inputs: float32 or float64 tensor, `(batch, ..., channels, ...)`.
        weights: `None`, or a tensor that broadcasts against `inputs`. All
            elements are normalized; those of weight zero that aren't finite
            give `beta`, and no gradient.
        axis: the channel axis, not negative.
        shift, mean: tensors of shape `(channels,)`; the mean is their sum.
        variance: tensor of shape `(channels,)`.
        epsilon: float, added to the variance.
        gamma, beta: tensors of shape `(channels,)`, or `None`.

    Returns:
        Tensor of the shape and dtype of `inputs`.
    """
    # A root and a quotient per channel: some backends' rsqrt is approximate.
    stddev = ops.sqrt(variance + epsilon)
    scale = (ops.ones_like(stddev) if gamma is None else gamma) / stddev
    return backends.active().normalize(
        inputs, weights, axis=axis, shift=shift, mean=mean, scale=scale, offset=beta
    )
