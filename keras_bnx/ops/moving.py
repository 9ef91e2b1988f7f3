"""Step 3: averages over time."""

import contextlib
import math

from keras import ops

from keras_bnx.ops.bounds import at_least, at_most

# A step of this share of a float32 lands on its next neighbour.
_NEXT = 0.6 * 2.0**-23

_kept = False


@contextlib.contextmanager
def keep_moving_statistics():
    """Training passes inside of this `with` statement leave moving statistics alone.

    Layers still normalize by the batch, as for gradient penalties, adversarial
    passes, or a second stream through the same layer. The switch is read when a
    layer is called. So with `jax.jit`, `tf.function` and `torch.compile` it
    belongs inside the function that is compiled; around a call of what has been
    compiled before, it changes nothing on JAX and TensorFlow.

    Example:

    >>> import keras, keras_bnx
    >>> layer, x = keras_bnx.BatchNormalization(), keras.ops.ones((4, 3))
    >>> with keras_bnx.keep_moving_statistics():
    ...     y = layer(x, training=True)
    >>> print(float(layer.moving_mean[0]))
    0.0
    """
    global _kept
    before, _kept = _kept, True
    try:
        yield
    finally:
        _kept = before


def are_kept():
    """Whether `keep_moving_statistics` is in force."""
    return _kept


def newest_weight(momentum, updates=None, *, debias=False):
    """Computes the weight of a batch in an average over batches.

    - `momentum` a number: `1 - momentum`, an exponential average.
    - `momentum=None`: `1 / updates`, the cumulative average.
    - `debias`: `(1 - momentum) / (1 - momentum**updates)`, which makes the average
      what the exponential one is when the share `momentum**updates` of its initial
      value is divided out (Kingma and Ba 2015, section 3).

    Where it depends on `updates`, the first batch has the weight 1 exactly: a root
    of rounding less would leave 6e-8 of the initial value, which is much beside a
    variance of 1e-6. (A compiled `1 / x` may be approximate on TensorFlow.)

    Args:
        momentum: float in [0, 1], or `None`.
        updates: tensor, the number of batches, this one included.
        debias: bool.
    """
    if momentum is None:
        return _exact_first(1.0 / updates, updates)
    if not debias or momentum in (0.0, 1.0):
        return 1.0 - momentum
    # By expm1 exact also where `momentum**updates` is near 1.
    gone = -ops.expm1(updates * math.log(momentum))
    return _exact_first((1.0 - momentum) / gone, updates)


def _exact_first(weight, updates):
    """The weight of a batch, which is 1 for the first one and never more."""
    return ops.where(updates > 1, at_most(weight, 1.0), ops.ones_like(weight))


def update_mean(moving, batch, weight):
    """Computes `moving + weight * (mean - moving)`.

    Adding a share of the difference leaves `moving` in place once it is right;
    two products don't sum to it in floating point. Where the mean is so large that
    the share is lost in rounding, and `moving` would stand still up to three
    deviations off, it takes the smallest step there is, to the neighbouring number.

    Args:
        moving: tensor of one number per channel.
        batch: `Moments` of the batch.
        weight: the weight of the batch, a number or a tensor.
    """
    difference = batch.shift - moving
    if isinstance(batch.mean, float):
        # The mean is one number, of less than 100 deviations: nothing is lost.
        return moving + weight * difference
    difference = difference + batch.mean
    share = weight * difference
    new = moving + share
    step = _NEXT * ops.abs(moving)
    stands = ops.logical_and(new == moving, ops.abs(difference) > step)
    stands = ops.logical_and(stands, share != 0.0)
    return ops.where(stands, moving + ops.sign(difference) * step, new)


def update_scale(moving, new, weight):
    """Computes `moving * (1 - weight) + new * weight`.

    For variances and standard deviations: a sum of products that aren't
    negative keeps small values' digits next to large ones, and the sign.
    """
    return moving * (1.0 - weight) + new * weight


def consistent_stddev(moving_stddev, moving_variance, *, epsilon):
    """Takes the moving deviation that renorm keeps from the moving variance.

    Keras's renorm keeps `moving_stddev` beside `moving_variance`: the root of
    the variance when both are initialized, the root of variance + epsilon after
    an update. Outside of these bounds the variance was set by somebody else (an
    import, `assign`) and decides; otherwise the next update would overwrite it.
    """
    lower = ops.sqrt(moving_variance)
    upper = ops.sqrt(moving_variance + epsilon)
    return at_most(at_least(moving_stddev, lower), upper)
