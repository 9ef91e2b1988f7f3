"""Step 1: the statistics of a batch."""

from keras import ops

from keras_bnx.backends import Moments
from keras_bnx.ops.bounds import at_least


def moments(inputs, weights=None, *, axes, arithmetic):
    """Computes mean and variance of each channel over all other axes.

    `n = sum(w)`, `mean = sum(w * x) / n`, `variance = sum(w * (x - mean)**2) / n`
    (Ioffe and Szegedy 2015, Algorithm 1), with `w = 1` without weights.

    Args:
        inputs: floating-point tensor, `(batch, ..., channels, ...)`.
        weights: `None`, or a tensor that broadcasts against `inputs`.
        axes: tuple of the channel axes, ascending.
        arithmetic: the `Arithmetic` that takes the sums.

    Returns:
        `Moments` of the shape of the channel axes, at least float32.
    """
    return arithmetic.moments(inputs, weights, axes=axes)


def join(parts, axis, *, leave_out=True):
    """Merges the moments of virtual batches, or replicas, exactly.

    A first sum gives a shift that all share, the mean but for its rounding; in the
    second, means and variances are taken about it, so nothing cancels (Chan, Golub
    and LeVeque 1983, equation 2.1). What has no element adds zeros.

    Args:
        parts: list of `Moments` whose tensors have the batches along `axis`.
        axis: integer, not negative.
        leave_out: whether to leave out what isn't finite, channel by channel.
            Otherwise the result isn't finite either.

    Returns:
        `Moments` without `axis`.
    """
    joined = parts[0]
    if leave_out or len(parts) > 1:
        columns = zip(*(_complete(part, leave_out) for part in parts), strict=True)
        joined = Moments(*(ops.concatenate(column, axis) for column in columns))
    batches = joined.variance.shape[axis]

    def total(value):
        if isinstance(value, (int, float)):
            return value * batches
        return ops.sum(value, axis)

    def beside(value):
        return ops.expand_dims(value, axis)

    count, size = total(joined.count), total(joined.size)
    n = count
    if ops.is_tensor(count):
        n = ops.where(count > 0, count, ops.ones_like(count))
    # Divided first: XLA may leave out the rounding of a quotient after the sum, where
    # it is subtracted, and the rest of the mean would be that of another shift.
    shares = joined.count / beside(n) if ops.is_tensor(n) else joined.count / n
    shift = total(shares * (joined.shift + joined.mean))
    shift = ops.stop_gradient(shift)
    mean = (joined.shift - beside(shift)) + joined.mean
    second = total(joined.count * (joined.variance + ops.square(mean))) / n
    mean = total(joined.count * mean) / n
    # `mean` is a rounding error here, and its square no threat to the digits.
    variance = at_least(second - ops.square(mean), 0.0)
    return Moments(count, size, shift, mean, variance)


def _complete(part, leave_out):
    """All five as tensors, and zeros for what is left out."""
    zeros = ops.zeros_like(part.variance)
    full = [v + zeros if isinstance(v, (int, float)) else v for v in part]
    if not leave_out:
        return full
    known = ops.logical_and(part.size > 0, ops.isfinite(part.variance))
    return [ops.where(known, v, zeros) for v in full]


def unbiased_variance(batch):
    """Computes `variance * n / (n - 1)`, and whether it exists, `n > 1`.

    n is the sum of the weights: they are taken for frequencies, as a mask's are.
    """
    exists = batch.count > 1
    if ops.is_tensor(batch.count):
        one = ops.ones_like(batch.count)
        factor = batch.count / ops.where(exists, batch.count - 1.0, one)
    else:
        factor = batch.count / max(batch.count - 1, 1)
    return batch.variance * factor, exists
