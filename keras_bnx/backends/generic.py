"""The whole contract in `keras.ops`: the version to read, and the fallback.

Two measures keep float32 accurate whatever the mean of a channel is:

- Everything is computed on `x - shift`, where `shift` is an element of the same
  channel. Subtracting two nearby floating-point numbers is exact, so no digits
  of `x` are lost, and sums stay of the order of the standard deviation, not of
  the mean. The mean is kept as the pair (`shift`, `residual`) for as long as it is
  used: rounding the pair to one number costs half a unit in the last place of the
  mean, 0.4 % of a standard deviation at mean/std = 1e5.
- The variance is taken in a second pass over the data, after the mean is known.
  E[x**2] - E[x]**2 would cancel wherever `shift` is a poor guess.

Gradients of first and second order, forward mode and `vmap` come from the
framework's own differentiation of these lines; `shift` cancels out of the
result, so it has no gradient. Where a framework's native kernels stand in their
place, `gradients` has the backward pass as a formula.
"""

import math

import keras
from keras import ops

from keras_bnx.backends.contract import Implementation, Moments

# The root of the largest number of each dtype.
_ROOT_OF_LARGEST = {"float32": 2.0**64, "float64": 2.0**512}


def replicas(axis_name):
    return None


def obstacles(batch, *, synchronized):
    return [f"There are no native kernels for {keras.config.backend()!r}."]


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


def moments(batch, *, reduce_sum=ops.sum, pick_element=pick_element):
    """Computes count, size, mean and variance per channel.

    `n = sum(w)`, `mean = sum(w * x) / n`, `variance = sum(w * (x - mean)**2) / n`
    (Ioffe and Szegedy 2015, Algorithm 1), with `w = 1` without weights.

    Args:
        batch: `Batch`.
        reduce_sum: what takes sums, for backends whose own isn't accurate.
        pick_element: what takes the shift, for arrays that can't be sliced.

    Returns:
        `Moments`. A channel in which nothing counts has count 0, shift 0, residual 0
        and variance 0.
    """
    x, weights, axes = widened(batch.x), batch.weights, batch.axes
    others = batch.other_axes
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

    residual = average(shifted)
    # An element whose square overflows leaves the channel without a variance, so that
    # it is normalized by other numbers and no gradient comes back here. NaN in place
    # of the element keeps that 0 from being multiplied by infinity.
    centered = shifted - residual
    limit = _ROOT_OF_LARGEST[keras.backend.standardize_dtype(x.dtype)]
    nan = ops.full_like(residual, math.nan)
    variance = average(ops.square(ops.where(ops.abs(centered) < limit, centered, nan)))

    channels = [ops.shape(x)[i] for i in axes]

    def per_channel(values):
        if len(values.shape):
            values = ops.squeeze(values, axis=others) if others else values
        return ops.broadcast_to(values, channels)

    return Moments(*map(per_channel, (count, size, shift, residual, variance)))


def normalize(
    batch, statistics, affine, *, epsilon, activation=None, sum_gradients=None
):
    """Computes `((x - shift) - residual) * gamma / sqrt(variance + epsilon) + beta`.

    Subtracting first keeps the digits that `x * a + b` would lose where the mean is
    large: at mean/std = 1e5 the float32 error is 1e-7, not 2e-2.

    Args:
        batch: `Batch`. An element that doesn't count and isn't finite is taken for
            the mean: its output is `beta`, its gradient 0.
        statistics: `Statistics`.
        affine: `Affine`.
        epsilon: float, added to the variance.
        activation: `Activation` that follows, or `None`.
        sum_gradients: not needed here; see `Implementation`.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    x = widened(batch.x)
    centered = x - per_element(statistics.shift, batch)
    if not isinstance(statistics.residual, float):
        centered = centered - per_element(statistics.residual, batch)
    if batch.weights is not None:
        valid = ops.logical_or(batch.weights > 0, ops.isfinite(x))
        centered = ops.where(valid, centered, ops.zeros_like(centered))
    # A root and a quotient per channel: some backends' rsqrt is approximate.
    scale = affine.gamma / ops.sqrt(statistics.variance + epsilon)
    y = centered * per_element(scale, batch) + per_element(affine.beta, batch)
    y = ops.cast(y, batch.x.dtype)
    return y if activation is None else activation(y)


def gradients(
    dy,
    batch,
    statistics,
    affine,
    *,
    epsilon,
    through_activation=None,
    sum_gradients=None,
    reduce_sum=ops.sum,
    differentiable=False,
):
    """Computes the gradients of `normalize` from `x` and vectors.

    `dx = gamma * inv * (dy - w / n * (sum(dy) + x_hat * sum(dy * x_hat)))`,
    `dgamma = sum(dy * x_hat)`, `dbeta = sum(dy)`, with
    `inv = 1 / sqrt(variance + epsilon)` (Ioffe and Szegedy 2015, section 3).

    Args:
        dy: tensor of the shape of `x`, the gradient of the outputs.
        batch, statistics, affine, epsilon, sum_gradients: as `normalize` had them.
        through_activation: where there was an activation, what computes the gradient
            of its inputs `z`, a function of `(dy, z)`.
        reduce_sum: as in `moments`.
        differentiable: whether the result is to be differentiated again. Mean and
            variance are functions of `x` then: they keep their values, and get
            gradients.

    Returns:
        `dx`, of the dtype of `x`; `dgamma` and `dbeta`, vectors.
    """
    x, weights = widened(batch.x), batch.weights
    shift, residual, variance, inverse_count = statistics
    others = batch.other_axes

    def total(values):
        if not others:
            return values
        return ops.squeeze(reduce_sum(values, axis=others, keepdims=True), others)

    def through(sums):
        return through_statistics(sums, inverse_count, sum_gradients)

    centered = x - per_element(shift, batch)
    if isinstance(residual, float):
        residual = ops.zeros_like(shift)
    weight = valid = None
    if weights is not None:
        zeros, counted = ops.zeros_like(centered), weights > 0
        valid = ops.logical_or(counted, ops.isfinite(x))
        centered = ops.where(valid, centered, zeros)
        weight = ops.where(counted, weights, ops.zeros_like(weights))

    def weighted(values):
        # Weight 0 isn't enough: 0 times a square that overflows is NaN.
        return values if weight is None else ops.where(counted, weight * values, zeros)

    if differentiable and not statistics.are_constants:
        first = through(total(weighted(centered)))
        residual = residual + (first - ops.stop_gradient(first))
        deviations = centered - per_element(residual, batch)
        if weight is not None:
            deviations = ops.where(counted, deviations, zeros)
        second = through(total(weighted(ops.square(deviations))))
        variance = variance + (second - ops.stop_gradient(second))
    if through_activation is not None:
        # As it was: an element beside a kink stays on its side of it.
        statistics = statistics._replace(residual=residual, variance=variance)
        z = normalize(batch, statistics, affine, epsilon=epsilon)
        dy = through_activation(dy, z)
    dy = widened(dy)
    inverse = 1.0 / ops.sqrt(variance + epsilon)
    x_hat = (centered - per_element(residual, batch)) * per_element(inverse, batch)
    if valid is not None:
        x_hat = ops.where(valid, x_hat, zeros)
    dgamma, dbeta = total(dy * x_hat), total(dy)
    dx, first = dy, dbeta
    if valid is not None:
        dx = ops.where(valid, dy, zeros)
        first = total(dx)
    if not statistics.are_constants:
        sums = through(ops.stack([first, dgamma]))
        first, second = (per_element(sums[i], batch) for i in range(2))
        if weight is None:
            dx = dx - (first + x_hat * second)
        else:
            dx = dx - (weight * first + weighted(x_hat) * second)
    dx = dx * per_element(affine.gamma * inverse, batch)
    return ops.cast(dx, batch.x.dtype), dgamma, dbeta


def through_statistics(sums, inverse_count, sum_gradients=None):
    """Computes `sums / n`: what flows back through mean and variance.

    Nothing does in a channel that is normalized by other numbers. Its sums may not be
    finite, and 0 times infinity would be NaN for all of its elements.
    """
    if sum_gradients is not None:
        sums = sum_gradients(sums)
    if not isinstance(inverse_count, float):
        sums = ops.where(inverse_count > 0, sums, ops.zeros_like(sums))
    return inverse_count * sums


def per_element(vector, batch):
    """Reshapes a vector to broadcast against `x`."""
    for i in batch.other_axes:
        vector = ops.expand_dims(vector, i)
    return vector


def widened(x):
    """`x` in at least float32: sums of 16-bit numbers stall."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float64" if dtype == "float64" else "float32")


generic = native = Implementation("generic", "keras.ops", moments, normalize)
