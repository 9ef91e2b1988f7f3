"""Batch renormalization: a correction of step 2."""

import math

from keras import ops

from keras_bnx.ops.bounds import at_least, at_most


def renorm_corrections(
    moments, *, renorm_mean, renorm_stddev, epsilon, rmin=None, rmax=None, dmax=None
):
    """Computes r and d, which turn batch statistics into moving ones.

    `x_hat * r + d` with `r = stddev / renorm_stddev` and
    `d = (mean - renorm_mean) / renorm_stddev` is the input normalized by the
    moving statistics; clipping keeps it near the batch's. Both are constants to
    the gradient (Ioffe 2017, Algorithm 1).

    Args:
        moments: `Moments` of the batch.
        renorm_mean, renorm_stddev: moving statistics, one number per channel.
        epsilon: float, `stddev = sqrt(variance + epsilon)`.
        rmin, rmax, dmax: numbers, scalar tensors or `None`; r is clipped to
            `[rmin, rmax]` (where they contradict, `rmax` decides), d to
            `[-dmax, dmax]`.

    Returns:
        r, d: tensors of one number per channel.
    """
    stddev = ops.sqrt(moments.variance + epsilon)
    # A stored deviation can be 0; one computed here never is below this.
    renorm_stddev = at_least(renorm_stddev, math.sqrt(epsilon))
    r = stddev / renorm_stddev
    d = ((moments.shift - renorm_mean) + moments.residual) / renorm_stddev
    if rmin is not None:
        r = at_least(r, rmin)
    if rmax is not None:
        r = at_most(r, rmax)
    if dmax is not None:
        d = at_most(at_least(d, -dmax), dmax)
    return ops.stop_gradient(r), ops.stop_gradient(d)
