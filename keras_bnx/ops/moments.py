"""Step 1: the statistics of a batch."""

from keras import ops

from keras_bnx.backends import Moments


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


def merge(local, all_reduce_sum):
    """Merges the moments of all replicas, exactly, by two sums of vectors.

    The first sum gives a shift that the replicas share, the mean but for its
    rounding; in the second, means and variances are taken about it, so
    nothing cancels (Chan, Golub and LeVeque 1983, equation 2.1). A replica
    without a single element adds zeros.

    Args:
        local: `Moments`.
        all_reduce_sum: function that sums each tensor of a list over the replicas.
    """
    count, size, total = all_reduce_sum(
        [local.count, local.size, local.count * (local.shift + local.mean)]
    )
    n = count
    if ops.is_tensor(count):
        n = ops.where(count > 0, count, ops.ones_like(count))
    shift = ops.stop_gradient(total / n)
    mean = (local.shift - shift) + local.mean
    first, second = all_reduce_sum(
        [local.count * mean, local.count * (local.variance + ops.square(mean))]
    )
    mean = first / n
    # `mean` is a rounding error here, and its square no threat to the digits.
    variance = ops.maximum(second / n - ops.square(mean), ops.zeros_like(second))
    return Moments(count, size, shift, mean, variance)


def join(parts, axis, *, known=False):
    """Merges the moments of virtual batches into those of the batch, exactly.

    Args:
        parts: list of `Moments` whose tensors have virtual batches along `axis`.
            Batches of which nothing is known (nothing counts, or not finite) are
            left out.
        axis: integer, not negative.
        known: whether there are none of those.
    """
    joined = parts[0]
    if not known or len(parts) > 1:
        columns = zip(*(_complete(part, known) for part in parts), strict=True)
        joined = Moments(*(ops.concatenate(column, axis) for column in columns))

    def total(values):
        return [
            value * joined.variance.shape[axis]
            if isinstance(value, (int, float))
            else ops.sum(value, axis, keepdims=True)
            for value in values
        ]

    return Moments(
        *(
            ops.squeeze(value, axis) if ops.is_tensor(value) else value
            for value in merge(joined, total)
        )
    )


def _complete(part, known):
    """All five as tensors, and zeros where there is nothing to know."""
    zeros = ops.zeros_like(part.variance)
    full = [v + zeros if isinstance(v, (int, float)) else v for v in part]
    if known:
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
