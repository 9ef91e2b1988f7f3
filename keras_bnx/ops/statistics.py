"""What is done with the moments of a batch: judge, choose and merge them."""

import math

from keras import ops

from keras_bnx.backends.contract import Moments, Statistics
from keras_bnx.ops.bounds import at_least
from keras_bnx.ops.conditions import both, select


def exist(moments, narrow_to=None):
    """Where there are statistics: something counts, and all is finite.

    Args:
        moments: `Moments`.
        narrow_to: the dtype of the moving statistics, a string, where it holds less
            than that of the moments: what float64 holds may be infinite there.

    Returns:
        A bool vector; or a bool, where it is known.
    """
    # The variance is finite only where the mean is.
    usable = moments.size > 0
    if narrow_to is not None:
        for vector in (moments.variance, moments.shift + moments.residual):
            usable = both(usable, ops.isfinite(ops.cast(vector, narrow_to)))
    elif not moments.all_finite:
        usable = both(usable, ops.isfinite(moments.variance))
    return usable


def choose(usable, moments, constants):
    """Takes the statistics of the batch; where they aren't usable, others.

    Args:
        usable: a bool vector, or `True`.
        moments: `Moments` of the batch.
        constants: function that returns a mean and a variance, vectors.

    Returns:
        `Statistics`.
    """
    shift, residual, variance = moments.shift, moments.residual, moments.variance
    if usable is True:
        return Statistics(shift, residual, variance, 1.0 / moments.count)
    mean, other_variance = constants()
    if not isinstance(residual, float):
        residual = select(usable, residual, ops.zeros_like(residual))
    if ops.is_tensor(moments.count):
        # Both of a `where` are differentiated: 1 / 0 would be NaN there, times 0.
        count = select(usable, moments.count, ops.full_like(mean, math.inf))
        inverse_count = 1.0 / count
    else:
        inverse_count = ops.cast(usable, mean.dtype) / moments.count
    return Statistics(
        select(usable, shift, mean),
        residual,
        select(usable, variance, other_variance),
        inverse_count,
    )


def merge(parts, axis, *, leave_out=True):
    """Merges the moments of virtual batches, or replicas, exactly.

    A first sum gives a shift that all share, the mean but for its rounding; in the
    second, means and variances are taken about it, so nothing cancels (Chan, Golub
    and LeVeque 1983, equation 2.1). What has no element adds zeros.

    Args:
        parts: list of `Moments` whose vectors have the batches along `axis`.
        axis: integer, not negative.
        leave_out: whether to leave out what isn't finite, channel by channel.
            Otherwise the result isn't finite either.

    Returns:
        `Moments` without `axis`.
    """
    merged = parts[0]
    if leave_out or len(parts) > 1:
        columns = zip(*(_complete(part, leave_out) for part in parts), strict=True)
        merged = Moments(*(ops.concatenate(column, axis) for column in columns))
    batches = merged.variance.shape[axis]

    def total(value):
        if isinstance(value, (int, float)):
            return value * batches
        return ops.sum(value, axis)

    def of_parts(value):
        return ops.expand_dims(value, axis)

    count, size = total(merged.count), total(merged.size)
    n = count
    if ops.is_tensor(count):
        n = ops.where(count > 0, count, ops.ones_like(count))
    # Divided first: XLA may leave out the rounding of a quotient after the sum, where
    # it is subtracted, and the residual would be that of another shift.
    fractions = merged.count / (of_parts(n) if ops.is_tensor(n) else n)
    shift = total(fractions * (merged.shift + merged.residual))
    shift = ops.stop_gradient(shift)
    residual = (merged.shift - of_parts(shift)) + merged.residual
    second = total(merged.count * (merged.variance + ops.square(residual))) / n
    residual = total(merged.count * residual) / n
    # The residual is a rounding error here, and its square no threat to the digits.
    variance = at_least(second - ops.square(residual), 0.0)
    return Moments(count, size, shift, residual, variance)


def vectors_of(moments):
    """The five numbers of each channel, as vectors."""
    zeros = ops.zeros_like(moments.variance)
    return [value + zeros for value in moments[:5]]


def _complete(part, leave_out):
    """All five as vectors, and zeros for what is left out."""
    full = vectors_of(part)
    if not leave_out or part.all_finite:
        return full
    exists = ops.logical_and(part.size > 0, ops.isfinite(part.variance))
    return [ops.where(exists, v, ops.zeros_like(part.variance)) for v in full]


def without_gradient(moments):
    """The moments as constants: moving statistics don't depend on the inputs."""
    if moments.all_finite:
        # Only kernels have looked, and theirs are constants.
        return moments
    return moments._replace(
        residual=_constant(moments.residual), variance=_constant(moments.variance)
    )


def _constant(value):
    return value if isinstance(value, float) else ops.stop_gradient(value)


def unbiased_variance(moments):
    """Computes `variance * n / (n - 1)`, and whether it exists, `n > 1`.

    n is the sum of the weights: they are taken for frequencies, as a mask's are.
    """
    exists = moments.count > 1
    if ops.is_tensor(moments.count):
        one = ops.ones_like(moments.count)
        factor = moments.count / ops.where(exists, moments.count - 1.0, one)
    else:
        factor = moments.count / max(moments.count - 1, 1)
    return moments.variance * factor, exists
