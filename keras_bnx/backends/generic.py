"""The whole contract in `keras.ops`: the version to read, and the fallback.

Two measures keep float32 accurate whatever the mean of a channel is:

- Everything is computed on `x - shift`, where `shift` is an element of the same
  channel. Subtracting two nearby floating-point numbers is exact, so no digits
  of `x` are lost, and sums stay of the order of the standard deviation, not of
  the mean. The mean is kept as the pair (`shift`, `mean - shift`) for as long
  as it is used: rounding the pair to one number costs half a unit in the last
  place of the mean, 0.4 % of a standard deviation at mean/std = 1e5.
- The variance takes a second look at the data, after the mean is known.
  E[x**2] - E[x]**2 would cancel wherever `shift` is a poor guess.

Gradients of first and second order, forward mode and `vmap` come from the
framework's own differentiation of these lines; `shift` cancels out of the
result, so it has no gradient.
"""

import math

import keras
from keras import ops

from keras_bnx.backends import Arithmetic, Moments

# The root of the largest number of each dtype.
_ROOT_OF_LARGEST = {"float32": 2.0**64, "float64": 2.0**512}


def replicas(axis_name):
    return None


def obstacles(x, *, axes, synchronized):
    return [f"There are no native kernels for {keras.config.backend()!r}."]


def is_known_finite(vector):
    return False


def is_traced(value):
    return False


def is_recomputing():
    return False


def pick_element(x, axes):
    """Picks one element of each channel, keeping the axes; 0 where there is none."""
    first = tuple(
        slice(0, 1) if i in axes else slice(None) for i in range(len(x.shape))
    )
    # The sum of one element is that element, and of none it is zero.
    return ops.sum(x[first], axis=axes, keepdims=True) if axes else x


def moments(x, weights, *, axes, reduce_sum=ops.sum, pick_element=pick_element):
    """Computes `count`, `size`, mean and variance per channel.

    Args:
        x: floating-point tensor of shape `(batch, ..., channels, ...)`.
        weights: `None`, or a float32 or float64 tensor of `x`'s rank that
            broadcasts against `x`; elements of weight zero or less don't count, and may
            be NaN.
        axes: tuple of the channel axes, ascending.
        reduce_sum: what takes sums, for backends whose own isn't accurate.
        pick_element: what takes the shift, for arrays that can't be sliced.

    Returns:
        `Moments` of the shape of the channel axes. A channel in which nothing
        counts has count 0, shift 0, mean 0 and variance 0.
    """
    x = widened(x)
    others = other_axes(x, axes)
    shape = ops.shape(x)

    def total(values):
        # Frameworks disagree about a sum over no axes (an input of rank 1).
        return reduce_sum(values, axis=others, keepdims=True) if others else values

    if weights is None:
        shift = ops.stop_gradient(pick_element(x, others))
        shifted = x - shift
        size = 1
        for i in others:
            size = size * shape[i]
        # A product keeps PyTorch's symbolic sizes symbolic, so that compiled code
        # serves any batch; converting them to a tensor would fix them.
        one = ops.ones((), dtype=x.dtype)
        size = ops.cast(size, x.dtype) if ops.is_tensor(size) else one * size
        count = size
    else:
        counted = weights > 0
        weights = ops.where(counted, weights, ops.zeros_like(weights))
        # Sums over the mask alone need its channel axes only where it has them.
        shape = list(shape)
        for i in axes:
            shape[i] = 1 if weights.shape[i] == 1 else shape[i]
        count = total(ops.broadcast_to(weights, shape))
        size = total(ops.cast(ops.broadcast_to(counted, shape), x.dtype))
        shift = ops.where(counted, x, ops.cast(float("inf"), x.dtype))
        if 0 in tuple(x.shape):
            # A minimum of nothing is an error.
            shift = ops.sum(shift, axis=others, keepdims=True)
        elif others:
            shift = ops.amin(shift, axis=others, keepdims=True)
        shift = ops.stop_gradient(ops.where(size > 0, shift, ops.zeros_like(shift)))
        shifted = ops.where(counted, x, shift) - shift

    def average(values):
        if weights is not None:
            values = weights * values
        return total(values) / ops.where(count > 0, count, ops.ones_like(count))

    mean = average(shifted)
    # An element whose square overflows leaves the channel without a variance, so that
    # it is normalized by other numbers and no gradient comes back here. NaN in place
    # of the element keeps that 0 from being multiplied by infinity.
    centered = shifted - mean
    limit = _ROOT_OF_LARGEST[keras.backend.standardize_dtype(x.dtype)]
    nan = ops.full_like(mean, math.nan)
    variance = average(ops.square(ops.where(ops.abs(centered) < limit, centered, nan)))

    channels = [ops.shape(x)[i] for i in axes]

    def per_channel(values):
        if len(values.shape):
            values = ops.squeeze(values, axis=others) if others else values
        return ops.broadcast_to(values, channels)

    return Moments(*map(per_channel, (count, size, shift, mean, variance)))


def normalize(
    x,
    weights,
    *,
    axes,
    shift,
    mean,
    variance,
    epsilon,
    gamma,
    beta,
    share=None,
    sum_replicas=None,
):
    """Computes `((x - shift) - mean) * gamma / sqrt(variance + epsilon) + beta`.

    Args:
        x: floating-point tensor of shape `(batch, ..., channels, ...)`.
        weights: as in `moments`. An element that doesn't count and isn't finite
            is taken for the mean: its output is `beta`, its gradient 0.
        axes: tuple of the channel axes, ascending.
        shift, mean: tensors of the shape of the channel axes; their sum is the
            mean. `mean` may be the number 0.
        variance: tensor of the same shape.
        epsilon: float, added to the variance.
        gamma, beta: tensors of the same shape, or `None`.
        share, sum_replicas: not needed here; see `Arithmetic`.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    dtype, x = x.dtype, widened(x)
    others = other_axes(x, axes)

    def per_element(vector):
        for i in others:
            vector = ops.expand_dims(vector, i)
        return vector

    centered = x - per_element(shift)
    if not isinstance(mean, float):
        centered = centered - per_element(mean)
    if weights is not None:
        harmless = ops.logical_or(weights > 0, ops.isfinite(x))
        centered = ops.where(harmless, centered, ops.zeros_like(centered))
    # A root and a quotient per channel: some backends' rsqrt is approximate.
    stddev = ops.sqrt(variance + epsilon)
    scale = (ops.ones_like(stddev) if gamma is None else gamma) / stddev
    y = centered * per_element(scale)
    return ops.cast(y if beta is None else y + per_element(beta), dtype)


def other_axes(x, axes):
    """The axes that statistics are taken over."""
    return tuple(i for i in range(len(x.shape)) if i not in axes)


def widened(x):
    """`x` in at least float32: sums of 16-bit numbers stall."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float64" if dtype == "float64" else "float32")


generic = native = Arithmetic("generic", "keras.ops", moments, normalize)
