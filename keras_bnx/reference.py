"""Every formula of the layer, and its gradient, in float64 NumPy.

The oracle of the tests: written from the papers, importing nothing of the
package, and meant to be read beside them. No trick for speed or for digits
stands here; float64 has enough.

BN: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
BRN: Ioffe 2017, https://arxiv.org/abs/1702.03275.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class State:
    """Moving statistics, each of shape `(channels,)`.

    `moving_stddev`, `renorm_mean` and `renorm_stddev` are renorm's; by default
    they start from `moving_mean` and `moving_variance`, as the layer's do.
    """

    moving_mean: np.ndarray
    moving_variance: np.ndarray
    moving_stddev: np.ndarray = None
    renorm_mean: np.ndarray = None
    renorm_stddev: np.ndarray = None

    def __post_init__(self):
        stddev = np.sqrt(np.maximum(self.moving_variance, 0.0))
        if self.moving_stddev is None:
            self.moving_stddev = stddev
        if self.renorm_mean is None:
            self.renorm_mean = self.moving_mean
        if self.renorm_stddev is None:
            self.renorm_stddev = stddev
        for name, value in vars(self).items():
            setattr(self, name, np.asarray(value, "float64"))


@dataclass
class Arguments:
    """What the layer is constructed with, and its weights gamma and beta."""

    axis: int = -1
    momentum: float = 0.99
    epsilon: float = 1e-3
    gamma: np.ndarray = None
    beta: np.ndarray = None
    renorm: bool = False
    renorm_clipping: dict = field(default_factory=dict)
    renorm_momentum: float = 0.99


@dataclass
class Step:
    """One call of the layer: what comes out, and what its gradient needs."""

    y: np.ndarray
    state: State
    x_hat: np.ndarray
    inv: np.ndarray
    r: np.ndarray
    d: np.ndarray
    share: np.ndarray  # w / n, 0 in channels with statistics of their own
    weights: np.ndarray
    arguments: Arguments


def moments(x, weights=None, *, axis=-1):
    """Counts, means and variances per channel (BN, Algorithm 1, lines 1 and 2).

    `n = sum(w)`, `mean = sum(w * x) / n`, `variance = sum(w * (x - mean)**2) / n`.
    Elements of weight 0 may be NaN.

    Returns:
        `count` (n), `size` (how many w > 0), `mean`, `variance`, of shape
        `(channels,)`; mean and variance are 0 where nothing counts.
    """
    w = np.broadcast_to(1.0 if weights is None else weights, np.shape(x))
    x, w = _rows(x, axis), _rows(w, axis)
    counted = w > 0
    w = np.where(counted, w, 0.0)
    x = np.where(counted, x, 0.0)
    count = w.sum(0)
    n = np.where(count > 0, count, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = (w * x).sum(0) / n
        variance = (w * (x - mean) ** 2).sum(0) / n
    return count, counted.sum(0), mean, variance


def batch_normalization(x, state, arguments, *, weights=None, training=True):
    """One call of the layer.

    Args:
        x: array of shape `(batch, ..., channels, ...)`.
        state: `State` before the call.
        arguments: `Arguments`.
        weights: `None` or an array that broadcasts against `x`.
        training: batch statistics, or moving ones.

    Returns:
        `Step`, with the output and the `State` after the call.
    """
    a, shape = arguments, np.shape(x)
    w = _rows(np.broadcast_to(1.0 if weights is None else weights, shape), a.axis)
    w = np.where(w > 0, w, 0.0)
    rows = _rows(x, a.axis)
    gamma = np.ones(rows.shape[1]) if a.gamma is None else np.asarray(a.gamma, float)
    beta = np.zeros(rows.shape[1]) if a.beta is None else np.asarray(a.beta, float)

    count, size, mean, variance = moments(x, weights, axis=a.axis)
    usable = (size > 0) & np.isfinite(mean) & np.isfinite(variance) & training
    r, d = np.ones_like(gamma), np.zeros_like(gamma)
    if training and a.renorm:
        # BRN, Algorithm 1, lines 3 and 4; constants to the gradient.
        sigma = np.sqrt(variance + a.epsilon)
        moving_sigma = np.maximum(state.renorm_stddev, np.sqrt(a.epsilon))
        clip = a.renorm_clipping
        r = np.clip(sigma / moving_sigma, clip.get("rmin", 0), clip.get("rmax", np.inf))
        dmax = clip.get("dmax", np.inf)
        d = np.clip((mean - state.renorm_mean) / moving_sigma, -dmax, dmax)
        r, d = np.where(usable, r, 1.0), np.where(usable, d, 0.0)
    after = _update(state, a, usable, size, mean, variance) if training else state

    mean = np.where(usable, mean, state.moving_mean)
    variance = np.where(usable, variance, state.moving_variance)
    # A channel of padding alone, in a batch that isn't padding alone, gives beta.
    absent = (size == 0) & usable.any()
    inv = np.where(absent, 0.0, 1.0 / np.sqrt(variance + a.epsilon))
    with np.errstate(invalid="ignore"):
        x_hat = (rows - mean) * inv  # BN, Algorithm 1, line 3; Algorithm 2, line 11
    x_hat = np.where((w > 0) | np.isfinite(rows), x_hat, 0.0)
    y = (x_hat * r + d) * gamma + beta  # BN, line 4; BRN, Algorithm 1, line 5
    share = np.where(usable, w / np.where(count > 0, count, 1.0), 0.0)
    return Step(_restore(y, a.axis, shape), after, x_hat, inv, r, d, share, w, a)


def gradients(step, dy, x):
    """The gradients of `sum(dy * y)` (BN, section 3, the chain rule).

    `dx = gamma * r * inv * (dy - w/n * (sum(dy) + x_hat * sum(dy * x_hat)))`
    with sums over all elements of the channel, counted or not: all of them
    are normalized by the statistics.

    Returns:
        `dx`, of the shape of `x`; `dgamma` and `dbeta`, of shape `(channels,)`.
    """
    a, shape = step.arguments, np.shape(dy)
    dy = _rows(dy, a.axis)
    x = _rows(x, a.axis)
    gamma = 1.0 if a.gamma is None else np.asarray(a.gamma, float)
    # The output of an element that was taken for the mean doesn't depend on the batch.
    own = np.where((step.weights > 0) | np.isfinite(x), dy, 0.0)
    sums = own.sum(0) + step.x_hat * (own * step.x_hat).sum(0)
    dx = gamma * step.r * step.inv * (own - step.share * sums)
    dgamma = (dy * (step.x_hat * step.r + step.d)).sum(0)
    return _restore(dx, a.axis, shape), dgamma, dy.sum(0)


def _update(state, a, usable, size, mean, variance):
    """Moving averages (BN, Algorithm 2, line 10, as a running average)."""

    def average(old, new, momentum, where):
        return np.where(where, old * momentum + new * (1.0 - momentum), old)

    # A single element has no variance.
    has_variance = usable & (size > 1)
    moving_mean = average(state.moving_mean, mean, a.momentum, usable)
    if not a.renorm:
        moving_variance = average(
            state.moving_variance, variance, a.momentum, has_variance
        )
        return State(moving_mean, moving_variance)
    # BRN, Algorithm 1, lines 6 and 7, by the deviation, as Keras keeps it; a
    # variance set from outside decides.
    sigma = np.sqrt(variance + a.epsilon)
    stddev = np.clip(
        state.moving_stddev,
        np.sqrt(state.moving_variance),
        np.sqrt(state.moving_variance + a.epsilon),
    )
    stddev = stddev * a.momentum + sigma * (1.0 - a.momentum)
    return State(
        moving_mean,
        np.where(
            has_variance,
            np.maximum(stddev**2 - a.epsilon, 0.0),
            state.moving_variance,
        ),
        np.where(has_variance, stddev, state.moving_stddev),
        average(state.renorm_mean, mean, a.renorm_momentum, usable),
        average(state.renorm_stddev, sigma, a.renorm_momentum, has_variance),
    )


def _rows(x, axis):
    """Reshapes to `(elements per channel, channels)`."""
    x = np.moveaxis(np.asarray(x, "float64"), axis, -1)
    return x.reshape(-1, x.shape[-1])


def _restore(rows, axis, shape):
    moved = np.moveaxis(np.empty(shape), axis, -1).shape
    return np.moveaxis(rows.reshape(moved), -1, axis)
