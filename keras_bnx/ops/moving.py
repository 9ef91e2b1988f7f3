"""Step 3: averages over time."""

from keras import ops


def update_mean(moving, batch, *, momentum):
    """Computes `moving * momentum + mean * (1 - momentum)`, by the difference.

    Adding a share of the difference leaves `moving` in place once it is right;
    the two products of the plain form don't sum to it in floating point.

    Args:
        moving: tensor of shape `(channels,)`.
        batch: `Moments` of the batch.
        momentum: float, the weight of the old value.
    """
    return moving + (1.0 - momentum) * ((batch.shift - moving) + batch.mean)


def update_scale(moving, new, *, momentum):
    """Computes `moving * momentum + new * (1 - momentum)`.

    For variances and standard deviations: a sum of products that aren't
    negative keeps small values' digits next to large ones, and the sign.
    """
    return moving * momentum + new * (1.0 - momentum)


def consistent_stddev(moving_stddev, moving_variance, *, epsilon):
    """Takes the moving deviation that renorm keeps from the moving variance.

    Keras's renorm keeps `moving_stddev` beside `moving_variance`: the root of
    the variance when both are initialized, the root of variance + epsilon after
    an update. Outside of these bounds the variance was set by somebody else (an
    import, `assign`) and decides; otherwise the next update would overwrite it.
    """
    lower = ops.sqrt(moving_variance)
    upper = ops.sqrt(moving_variance + epsilon)
    return ops.minimum(ops.maximum(moving_stddev, lower), upper)
