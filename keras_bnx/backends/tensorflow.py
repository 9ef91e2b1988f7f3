"""TensorFlow: its fused op and XLA, with sums and a gradient of our own.

- The kernels of `FusedBatchNormV3` and its gradient do the elementwise passes on a
  CPU (inference mode for the outputs; the gradient takes any mean and variance).
  Under XLA the op's outputs are `x * a + b` and its statistics E[x**2] - E[x]**2, so
  in a graph only its gradient is used.
- In a graph whose shapes are static, each of the three steps is compiled by XLA on
  its own, whatever compiles the rest: 1.3 to 1.7 times as fast as the fused op where
  oneDNN doesn't replace it. Elsewhere each new shape would be a compilation.
- Sums avoid `tf.nn.moments`, which stops the gradient of the mean and so gets
  second-order gradients wrong (16 % in a Hessian-vector product).

The gradient keeps the inputs and vectors. Its own gradient is TensorFlow's, of the
formula in `_gradients`.
"""

import functools
import math
import sys

import tensorflow as tf

from keras_bnx.backends import Arithmetic, Moments, Replicas
from keras_bnx.backends import generic as in_keras_ops
from keras_bnx.backends.generic import (  # noqa: F401 (the contract)
    is_known_finite,
    other_axes,
)

# TensorFlow's CPU kernel adds the rows of a column one after the other: at 100,000
# rows the variance is off by 1e-5, 100 units in the last place. Blocks of blocks
# keep each chain below 250 additions for up to a million rows.
_BLOCK = 64
# Rows from which the chains of a product with ones are too long.
_MANY = 4096
# From mean/std = 10 on, the rounding of the mean may cost more than 1e-5.
_LARGE = 10.0
# Up to mean/std = 4, `x * a + b` is at most 1e-6 off.
_FOLDABLE = 4.0


def reduce_sum(x, axis, keepdims):
    """Sums over all axes but the channels', in three stages; keeps the axes."""
    if len(x.shape) - len(axis) > 1:
        # Several channel axes are rare enough for the simplest way that is accurate.
        total = tf.reduce_sum(tf.cast(x, tf.float64), axis=axis, keepdims=True)
        return tf.cast(total, x.dtype)
    (channel,) = set(range(len(x.shape))) - set(axis)

    # The gradient of a sum is a broadcast, to any order; the slices' own would
    # write the tensor twice more.
    @tf.custom_gradient
    def blocked_sum(x):
        shape = tf.shape(x)
        inner = tuple(a for a in axis if a > channel)
        rows = tf.reduce_sum(x, axis=inner) if inner else x
        rows = tf.reshape(rows, (-1, shape[channel]))
        total = 0.0
        for _ in range(2):
            full = tf.shape(rows)[0] // _BLOCK * _BLOCK
            total += tf.reduce_sum(rows[full:], axis=0)
            blocks = tf.reshape(rows[:full], (-1, _BLOCK, shape[channel]))
            rows = tf.reduce_sum(blocks, axis=1)
        total += tf.reduce_sum(rows, axis=0)
        kept = [1] * len(x.shape)
        kept[channel] = x.shape[channel] or shape[channel]
        return tf.reshape(total, kept), lambda dy: tf.broadcast_to(dy, shape)

    return blocked_sum(x)


def _generic_moments(x, weights, *, axes):
    x, axes = _flat(x, axes)
    return in_keras_ops.moments(x, weights, axes=axes, reduce_sum=reduce_sum)


def _generic_normalize(x, weights, *, axes, **statistics):
    values, axes = _flat(x, axes)
    y = in_keras_ops.normalize(values, weights, axes=axes, **statistics)
    return x.with_flat_values(y) if isinstance(x, tf.RaggedTensor) else y


generic = Arithmetic("generic", "keras.ops", _generic_moments, _generic_normalize)


def obstacles(x, *, axes, synchronized):
    found = []
    if isinstance(x, tf.RaggedTensor):
        found.append("The kernels take no ragged tensors.")
    if x.dtype == tf.float64:
        found.append("The fused op has no kernel for float64.")
    if synchronized:
        found.append("The gradient of synchronized sums is taken of plain arithmetic.")
    if len(axes) > 1 and not (len(axes) == 2 and axes[0] == 0):
        found.append("The sums take one channel axis, and one of virtual batches.")
    return found


def moments(x, weights, *, axes):
    x = tf.stop_gradient(x)
    if weights is not None:
        return generic.moments(x, weights, axes=axes)
    values, channels = _canonical(x, axes)
    n = _static_count(x, axes)
    in_blocks = _has_many_rows(n)
    if _compiles(x):
        mean, variance = _compiled(_look, channels, values.shape.rank)(
            values, channels, in_blocks
        )
    else:
        fits = values.dtype != tf.float32 and not in_blocks
        look = _fused_look if fits else _look
        mean, variance = look(values, channels, in_blocks)
    # NaN isn't large, and nothing to look at again.
    large = tf.reduce_any(tf.square(mean) > _LARGE**2 * variance)
    rest, variance = tf.cond(
        large,
        lambda: _look(
            _widened(values) - _along(mean, values, channels), channels, in_blocks
        ),
        lambda: (tf.zeros_like(mean), variance),
    )
    n = _count(values, channels) if n is None else n
    return Moments(n, n, mean, rest, variance)


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
    statistics = shift, mean, variance, epsilon
    compiles = weights is None and _compiles(x)
    n = _static_count(x, axes)
    in_blocks = _has_many_rows(n)

    def forward(x, gamma, beta):
        if weights is not None:
            return generic.normalize(
                x,
                weights,
                axes=axes,
                shift=shift,
                mean=mean,
                variance=variance,
                epsilon=epsilon,
                gamma=gamma,
                beta=beta,
            )
        if share is None and not tf.executing_eagerly():
            return _foldable_affine(x, axes, shift, variance, epsilon, gamma, beta)
        values, channels = _canonical(x, axes)
        affine = (
            _compiled(_affine, channels, values.shape.rank)
            if compiles
            else _fused_affine
        )
        y = affine(values, channels, *statistics, gamma, beta)
        return _like(y, x)

    def backward(dy, x, gamma):
        if weights is not None:
            return _gradients(dy, x, gamma, *statistics, weights, share, axes)
        (values, channels), (dy, _) = _canonical(x, axes), _canonical(dy, axes)
        gradients = (
            _compiled(_gradients, channels, values.shape.rank)
            if compiles
            else _fused_gradients
        )
        dx, *others = gradients(
            dy, values, gamma, *statistics, None, share, channels, in_blocks=in_blocks
        )
        return _like(dx, x), *others

    def differentiable(dy, x, gamma):
        """The gradients by operations whose own gradient is right."""
        return _gradients(
            dy, x, gamma, *statistics, weights, share, axes, attached=True
        )

    @tf.custom_gradient
    def normalized(x, *vectors):
        vectors = list(vectors)
        g = vectors.pop(0) if gamma is not None else None
        b = vectors.pop(0) if beta is not None else None

        def gradient(dy):
            dx, dgamma, dbeta = _with_gradient(backward, differentiable, dy, x, g)
            wanted = (dx, dgamma, dbeta)
            given = (x, gamma, beta)
            return [d for d, v in zip(wanted, given, strict=True) if v is not None]

        return forward(x, g, b), gradient

    return normalized(x, *(v for v in (gamma, beta) if v is not None))


native = Arithmetic("native", "FusedBatchNormV3 on the CPU, or XLA", moments, normalize)


def _with_gradient(function, differentiable, *arguments):
    """Calls `function`, whose gradient is that of `differentiable`."""
    present = [a for a in arguments if a is not None]

    def restored(values):
        values = iter(values)
        return [None if a is None else next(values) for a in arguments]

    @tf.custom_gradient
    def call(*values):
        def gradient(*upstream):
            with tf.GradientTape() as tape:
                tape.watch(values)
                outputs = differentiable(*restored(values))
            return tape.gradient(outputs, list(values), list(upstream))

        return function(*restored(values)), gradient

    return call(*present)


def _look(values, channels, in_blocks):
    """Mean and variance per channel."""
    values, n = _widened(values), _count(values, channels)
    # Divided first: a quotient after the sum would be computed again wherever it is
    # used, and there XLA may leave out its rounding, so that `x - mean` and the rest
    # of the mean meet different means (3e-3 deviations at mean/std = 1e5).
    mean = _sum(values, channels, in_blocks, factor=1.0 / n)
    centered = values - _along(mean, values, channels)
    return mean, _sum(tf.square(centered), channels, in_blocks) / n


def _fused_look(values, channels, in_blocks):
    """The same by the fused op, which reads 16 bits and adds in float32."""
    if not (tf.executing_eagerly() and _fuses(values, channels)):
        return _look(values, channels, in_blocks)
    one, n = tf.ones(values.shape[1]), _count(values, channels)
    _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=values[:, None, None],
        scale=one,
        offset=one,
        mean=[],
        variance=[],
        is_training=True,
    )
    # The op stores the variance with the divisor n - 1.
    return mean, variance * (tf.maximum(n - 1.0, 1.0) / n)


def _affine(values, channels, shift, mean, variance, epsilon, gamma, beta):
    scale, offset = (
        _along(vector, values, channels)
        for vector in _scale_and_offset(mean, variance, epsilon, gamma, beta)
    )
    centered = _widened(values) - _along(shift, values, channels)
    return tf.cast(centered * scale + offset, values.dtype)


def _foldable_affine(x, axes, mean, variance, epsilon, gamma, beta):
    """Inference in a graph: exact, and converters fold it into the layer before.

    They fold `x * a + b`, which loses digits where the mean is large; so only a
    large mean is subtracted first. Where there is none, a converter sees a sum with
    zeros and drops it, if it knows that the sum has the shape of `x`.
    """
    x = tf.ensure_shape(x, x.shape)
    large = tf.abs(mean) > _FOLDABLE * tf.sqrt(variance + epsilon)
    zeros = tf.zeros_like(mean)
    shift, mean = tf.where(large, -mean, zeros), tf.where(large, zeros, mean)
    scale, offset = _scale_and_offset(mean, variance, epsilon, gamma, beta)
    shift, scale, offset = (_along(v, x, axes) for v in (shift, scale, offset))
    return tf.cast((_widened(x) + shift) * scale + offset, x.dtype)


def _fused_affine(values, channels, shift, mean, variance, epsilon, gamma, beta):
    # XLA takes the op for `x * a + b`, off by 3e-3 at mean/std = 1e5, and in a graph
    # nobody knows whether XLA will compile it.
    if not (tf.executing_eagerly() and _fuses(values, channels)):
        return _affine(values, channels, shift, mean, variance, epsilon, gamma, beta)
    return tf.raw_ops.FusedBatchNormV3(
        x=values[:, None, None],
        scale=tf.ones_like(shift) if gamma is None else gamma,
        offset=_scale_and_offset(mean, variance, epsilon, gamma, beta)[1],
        mean=shift,
        variance=variance,
        epsilon=epsilon,
        is_training=False,
    )[0][:, 0, 0]


def _scale_and_offset(mean, variance, epsilon, gamma, beta):
    """What is left of the mean goes into the offset: of the order of a deviation."""
    stddev = tf.sqrt(variance + epsilon)
    scale = (tf.ones_like(stddev) if gamma is None else gamma) / stddev
    offset = -mean * scale
    return scale, offset if beta is None else offset + beta


def _gradients(
    dy,
    x,
    gamma,
    shift,
    mean,
    variance,
    epsilon,
    weights,
    share,
    channels,
    in_blocks=None,
    attached=False,
):
    """The gradients by their formula, in operations that TensorFlow differentiates.

    `dx = gamma * inv * (dy - w * share * (sum(dy) + x_hat * sum(dy * x_hat)))`
    (Ioffe and Szegedy 2015, section 3), with `share = 1 / n`.
    """

    def total(values):
        return _sum(values, channels, in_blocks)

    def per_element(vector):
        return _along(vector, x, channels)

    def of_counted(values):
        # Weight 0 isn't enough: 0 times a square that overflows is NaN.
        return values if weights is None else tf.where(weights > 0, values, 0.0)

    harmless = None
    centered, dy = _widened(x) - per_element(shift), _widened(dy)
    if weights is not None:
        harmless = (weights > 0) | tf.math.is_finite(x)
        centered = tf.where(harmless, centered, 0.0)
    if share is not None:
        weight = per_element(tf.broadcast_to(share, tf.shape(shift)))
        if weights is not None:
            weight *= tf.where(weights > 0, weights, 0.0)
    if attached and share is not None:
        # The statistics as functions of x: their values stay, and get gradients.
        first = total(weight * centered)
        mean += first - tf.stop_gradient(first)
        squares = tf.square(of_counted(centered - per_element(mean)))
        second = total(weight * squares)
        variance += second - tf.stop_gradient(second)
    inverse = 1.0 / tf.sqrt(variance + epsilon)
    x_hat = (centered - per_element(mean)) * per_element(inverse)
    if harmless is not None:
        x_hat = tf.where(harmless, x_hat, 0.0)
    dbeta, dgamma = total(dy), total(dy * x_hat)
    dx, first = dy, dbeta
    if harmless is not None:
        dx = tf.where(harmless, dy, 0.0)
        first = total(dx)
    if share is not None:
        # A channel that is normalized by its moving statistics has the gradient of
        # inference: its sums aren't finite where an element isn't, and 0 times inf
        # is NaN.
        first, second = (
            per_element(tf.where(share > 0, vector, tf.zeros_like(vector)))
            for vector in (first, dgamma)
        )
        # An element of weight 0 may be so large that only in this order it is 0.
        dx -= weight * first + (weight * x_hat) * second
    dx *= per_element(inverse if gamma is None else gamma * inverse)
    return tf.cast(dx, x.dtype), dgamma, dbeta


def _fused_gradients(
    dy, x, gamma, shift, mean, variance, epsilon, weights, share, channels, in_blocks
):
    def formula():
        return _gradients(
            dy,
            x,
            gamma,
            shift,
            mean,
            variance,
            epsilon,
            weights,
            share,
            channels,
            in_blocks,
        )

    def fused(is_training):
        dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy[:, None, None],
            x=x[:, None, None],
            scale=tf.ones_like(shift) if gamma is None else gamma,
            reserve_space_1=shift + mean,
            reserve_space_2=variance,
            reserve_space_3=[],
            epsilon=epsilon,
            is_training=is_training,
        )
        return dx[:, 0, 0], dgamma, dbeta

    if not _fuses(x, channels):
        return formula()
    if share is None:
        return fused(False)
    # The op takes the mean as one number, and every channel's to be the batch's.
    fits = tf.reduce_all((share > 0) & (mean == 0))
    return tf.cond(fits, lambda: fused(True), formula)


def _sum(values, channels, in_blocks, factor=1.0):
    """Sums `factor * values` over all axes but the channels'.

    A product with ones is faster than a sum of many rows, and adds in blocks: the
    sum's chains of additions lose digits (3e-6 of the variance of 4000 rows). Its own
    chains are too long from `_MANY` rows on, so that it is taken of 64 parts (3e-6 of
    a mean of 20,000 rows, 2e-7 in parts). A GPU rounds the factors of products.

    Args:
        values: float32 tensor.
        channels: tuple of the channel axes.
        in_blocks: whether there are so many rows, or it isn't known; `None` where the
            values aren't canonical.
    """
    others = other_axes(values, channels)
    rank, shape = len(values.shape), tf.shape(values)
    if in_blocks is None or _on_gpu() or rank > 3:
        values = values if isinstance(factor, float) else values * factor
        return tf.reduce_sum(values, axis=others) if others else values
    if channels == (1,) and rank == 3:
        outer, inner = shape[0], shape[2]
        rows = tf.reshape(values, (outer * shape[1], inner))
        sums = tf.linalg.matvec(rows, tf.fill((inner,), factor))
        return tf.reduce_sum(tf.reshape(sums, (outer, shape[1])), axis=0)

    def of_rows(values):
        factors = tf.fill((1, tf.shape(values)[-2]), factor)
        return tf.squeeze(tf.matmul(factors, values), axis=-2)

    if rank > 2 or not in_blocks:
        return of_rows(values)
    count = shape[0] // _BLOCK
    whole, tail = values[: count * _BLOCK], values[count * _BLOCK :]
    parts = of_rows(tf.reshape(whole, (_BLOCK, count, shape[1])))
    return tf.reduce_sum(parts, axis=0) + tf.reduce_sum(tail * factor, axis=0)


def _has_many_rows(n):
    """Whether sums are taken in blocks; also where the number isn't known."""
    return n is None or n >= _MANY


def _canonical(x, axes):
    """Reshapes to one shape a kind, and returns the channel axes there.

    Those are `(rows, channels)` and `(examples, channels, inner)`, each behind an
    axis of virtual batches, if there are such.
    """
    shape = [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)]
    leading, axis = shape[: len(axes) - 1], axes[-1]
    channels = (*range(len(leading)), len(leading) + 1)
    # Products, not -1, which can't be told where there is nothing.
    outer, inner = math.prod(shape[len(leading) : axis]), math.prod(shape[axis + 1 :])
    sizes = (
        (outer, shape[axis]) if axis == len(shape) - 1 else (outer, shape[axis], inner)
    )
    return tf.reshape(x, (*leading, *sizes)), channels


def _like(values, x):
    return tf.ensure_shape(tf.reshape(values, tf.shape(x)), x.shape)


def _along(vector, values, channels):
    """Reshapes one number per channel to broadcast along values."""
    if isinstance(vector, float):  # a mean of 0
        return vector
    first = channels[0]
    # Axes in front of the first are left to broadcasting: a converter to TFLite
    # doesn't fold a vector that has them into a one-dimensional convolution.
    for axis in other_axes(values, channels):
        vector = tf.expand_dims(vector, axis - first) if axis > first else vector
    return vector


def _widened(x):
    return tf.cast(x, tf.float32)


def _count(values, channels):
    """Elements per channel, a float32 scalar."""
    shape = tf.shape(values, tf.int64)
    sizes = [shape[axis] for axis in other_axes(values, channels)]
    return tf.cast(math.prod(sizes), tf.float32)


def _static_count(x, axes):
    sizes = [x.shape[axis] for axis in other_axes(x, axes)]
    return None if None in sizes else math.prod(sizes)


def _fuses(values, channels):
    """Whether the fused op serves: its kernel for channels first is slow on a CPU."""
    return channels == (1,) and len(values.shape) == 2 and not _on_gpu()


@functools.cache
def _on_gpu():
    return bool(tf.config.list_logical_devices("GPU"))


def _compiles(x):
    """Whether XLA compiles the steps: once, where the shape can't change."""
    return (
        not tf.executing_eagerly()
        and x.shape.is_fully_defined()
        and sys.platform != "darwin"
    )


@functools.cache
def _compiled(function, channels, rank):
    """One compiled function for all tensors of a kind."""
    return tf.function(
        function, jit_compile=True, reduce_retracing=True, autograph=False
    )


def _flat(x, axes):
    """The values of a ragged tensor: what it holds is what counts."""
    if not isinstance(x, tf.RaggedTensor):
        return x, axes
    if min(axes) <= x.ragged_rank:
        raise ValueError(
            "The channels of a ragged tensor have to be behind its ragged axes. "
            f"Received: axis={axes} for ragged_rank={x.ragged_rank}. Choose the "
            "last axis, or pass a padded tensor and a mask."
        )
    return x.flat_values, tuple(axis - x.ragged_rank for axis in axes)


def replicas(axis_name):
    """Those of the current `tf.distribute` strategy, inside of `Strategy.run`."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return Replicas(
        context.num_replicas_in_sync,
        context.replica_id_in_sync_group,
        functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM),
        True,
    )


def is_traced(value):
    return tf.is_tensor(value) and tf.is_symbolic_tensor(value)


def is_recomputing():
    """Whether `tf.recompute_grad` (`keras.remat`) is repeating a forward pass.

    TensorFlow has no name for this state: the second pass runs under a gradient
    tape as any training step does. What tells them apart is who calls, so look
    there. Where TensorFlow renames the function, the test of rematerialization
    fails and says so; nothing else changes.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "inner_recompute_grad":
            return True
        frame = frame.f_back
    return False
