"""Step 1: the statistics of a batch."""

from keras import ops

from keras_bnx.backends import Moments


def moments(inputs, weights=None, *, axis, arithmetic, all_reduce_sum=None):
    """Computes mean and variance of each channel over all other axes.

    `n = sum(w)`, `mean = sum(w * x) / n`, `variance = sum(w * (x - mean)**2) / n`
    (Ioffe and Szegedy 2015, Algorithm 1), with `w = 1` without weights.

    Args:
        inputs: floating-point tensor, `(batch, ..., channels, ...)`.
        weights: `None`, or a tensor that broadcasts against `inputs`.
        axis: the channel axis, not negative.
        arithmetic: the `Arithmetic` that takes the sums.
        all_reduce_sum: what sums over replicas, where there are any.

    Returns:
        `Moments`, tensors of shape `(channels,)`, at least float32.
    """
    batch = arithmetic.moments(inputs, weights, axis=axis)
    return _merge(batch, all_reduce_sum) if all_reduce_sum else batch


def _merge(local, all_reduce_sum):
    """Merges the moments of all replicas, exactly, by two sums of vectors.

    The first sum gives a shift that the replicas share, the mean but for its
    rounding; in the second, means and variances are taken about it, so
    nothing cancels (Chan, Golub and LeVeque 1983, equation 2.1). A replica
    without a single element adds zeros.
    """
    count, size, total = all_reduce_sum(
        [local.count, local.size, local.count * (local.shift + local.mean)]
    )
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
