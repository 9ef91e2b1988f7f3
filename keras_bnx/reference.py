"""Every formula of the layer, and its gradient, in float64 NumPy.

The oracle of the tests: written from the papers, importing nothing of the
package, and meant to be read beside them. No trick for speed or for digits
stands here; float64 has enough.

BN: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
BRN: Ioffe 2017, https://arxiv.org/abs/1702.03275.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass
class State:
    """Moving statistics, each of one number per channel.

    `moving_stddev`, `renorm_mean` and `renorm_stddev` are renorm's; by default
    they start from `moving_mean` and `moving_variance`, as the layer's do.
    `mean_updates` and `scale_updates` count the batches, and `debiased` holds what
    remains of statistics by name when their initial values are divided out.
    """

    moving_mean: np.ndarray
    moving_variance: np.ndarray
    moving_stddev: np.ndarray = None
    renorm_mean: np.ndarray = None
    renorm_stddev: np.ndarray = None
    mean_updates: np.ndarray = None
    scale_updates: np.ndarray = None
    debiased: dict = field(default_factory=dict)

    def __post_init__(self):
        stddev = np.sqrt(np.maximum(self.moving_variance, 0.0))
        if self.moving_stddev is None:
            self.moving_stddev = stddev
        if self.renorm_mean is None:
            self.renorm_mean = self.moving_mean
        if self.renorm_stddev is None:
            self.renorm_stddev = stddev
        for name in ("mean_updates", "scale_updates"):
            if getattr(self, name) is None:
                setattr(self, name, np.zeros_like(stddev))
        for name, value in vars(self).items():
            if name != "debiased":
                setattr(self, name, np.asarray(value, "float64"))


@dataclass
class Arguments:
    """What the layer is constructed with, and its weights gamma and beta.

    Limits in `renorm_clipping` are numbers, those of the step. `largest` is the
    largest number that the layer stores: statistics beyond aren't finite there.
    """

    axis: int | tuple[int, ...] = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-3
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    renorm: bool = False
    renorm_clipping: dict = field(default_factory=dict)
    renorm_momentum: float = 0.99
    virtual_batch_size: int | None = None
    unbiased_moving_variance: bool = False
    debias_moving_statistics: bool = False
    largest: float = float(np.finfo("float32").max)
    activation: str | None = None  # a name of `ACTIVATIONS`


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
    z: np.ndarray | None  # what goes into the activation
    parts: list | None = None  # a `Step` and a slice of each virtual batch


def moments(x, weights=None, *, axis=-1):
    """Counts, means and variances per channel (BN, Algorithm 1, lines 1 and 2).

    `n = sum(w)`, `mean = sum(w * x) / n`, `variance = sum(w * (x - mean)**2) / n`.
    Elements of weight 0 may be NaN.

    Returns:
        `count` (n), `size` (how many w > 0), `mean`, `variance`, one number per
        channel; mean and variance are 0 where nothing counts.
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
    others = np.delete(shape, np.atleast_1d(a.axis))
    has_examples = others.size > 0 and others[0] > 0
    if training and a.virtual_batch_size is not None and has_examples:
        return _virtual_batches(x, state, a, weights)
    w = _rows(np.broadcast_to(1.0 if weights is None else weights, shape), a.axis)
    w = np.where(w > 0, w, 0.0)
    rows = _rows(x, a.axis)
    gamma = np.ones(rows.shape[1:]) if a.gamma is None else np.asarray(a.gamma, float)
    beta = np.zeros(rows.shape[1:]) if a.beta is None else np.asarray(a.beta, float)

    count, size, mean, variance = moments(x, weights, axis=a.axis)
    usable = (size > 0) & _fits(mean, variance, a) & training
    r, d = np.ones_like(gamma), np.zeros_like(gamma)
    if training and a.renorm:
        # BRN, Algorithm 1, lines 3 and 4; constants to the gradient.
        sigma = np.sqrt(variance + a.epsilon)
        renorm_mean, renorm_stddev = state.renorm_mean, state.renorm_stddev
        debias = a.debias_moving_statistics and a.renorm_momentum != 1.0
        if debias:
            renorm_mean = state.debiased.get("renorm_mean", renorm_mean)
            renorm_stddev = state.debiased.get("renorm_stddev", renorm_stddev)
        moving_sigma = np.maximum(renorm_stddev, np.sqrt(a.epsilon))
        clip = a.renorm_clipping
        r = np.clip(sigma / moving_sigma, clip.get("rmin", 0), clip.get("rmax", np.inf))
        dmax = clip.get("dmax", np.inf)
        d = np.clip((mean - renorm_mean) / moving_sigma, -dmax, dmax)
        known = usable
        if debias:
            known = usable & (state.scale_updates > 0)
        r, d = np.where(known, r, 1.0), np.where(known, d, 0.0)
    after = state
    if training:
        after = _update(state, a, usable, count, size, mean, variance)

    moving_mean, moving_variance = inference_statistics(state, a)
    mean = np.where(usable, mean, moving_mean)
    variance = np.where(usable, variance, moving_variance)
    # A channel of padding alone, in a batch that isn't padding alone, gives beta.
    absent = (size == 0) & (size > 0).any()
    inv = np.where(absent, 0.0, 1.0 / np.sqrt(variance + a.epsilon))
    with np.errstate(invalid="ignore"):
        x_hat = (rows - mean) * inv  # BN, Algorithm 1, line 3; Algorithm 2, line 11
    x_hat = np.where((w > 0) | np.isfinite(rows), x_hat, 0.0)
    z = (x_hat * r + d) * gamma + beta  # BN, line 4; BRN, Algorithm 1, line 5
    y = z
    if a.activation is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            y = ACTIVATIONS[a.activation][0](z)
    share = np.where(usable, w / np.where(count > 0, count, 1.0), 0.0)
    y = _restore(y, a.axis, shape)
    return Step(y, after, x_hat, inv, r, d, share, w, a, z)


def gradients(step, dy, x):
    """The gradients of `sum(dy * y)` (BN, section 3, the chain rule).

    `dx = gamma * r * inv * (dy - w/n * (sum(dy) + x_hat * sum(dy * x_hat)))`
    with sums over all elements of the channel, counted or not: all of them
    are normalized by the statistics.

    Returns:
        `dx`, of the shape of `x`; `dgamma` and `dbeta`, of shape `(channels,)`.
    """
    a, shape = step.arguments, np.shape(dy)
    if step.parts is not None:
        dx, vectors = np.empty(shape), []
        for part, index in step.parts:
            dx[index], *dvectors = gradients(part, dy[index], x[index])
            vectors.append(dvectors)
        return dx, *(sum(v) for v in zip(*vectors, strict=True))
    dy = _rows(dy, a.axis)
    if a.activation is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            dy = dy * ACTIVATIONS[a.activation][1](step.z)
    x = _rows(x, a.axis)
    gamma = 1.0 if a.gamma is None else np.asarray(a.gamma, float)
    # The output of an element that was taken for the mean doesn't depend on the batch.
    own = np.where((step.weights > 0) | np.isfinite(x), dy, 0.0)
    # Where the statistics aren't the batch's, nothing flows through them: not 0 times
    # an infinite sum either.
    with np.errstate(invalid="ignore", over="ignore"):
        sums = own.sum(0) + step.x_hat * (own * step.x_hat).sum(0)
        through = np.where(step.share > 0, step.share * sums, 0.0)
    dx = gamma * step.r * step.inv * (own - through)
    dgamma = (dy * (step.x_hat * step.r + step.d)).sum(0)
    return _restore(dx, a.axis, shape), dgamma, dy.sum(0)


def inference_statistics(state, a):
    """Mean and variance at inference."""
    mean, variance = state.moving_mean, state.moving_variance
    # A momentum of 1 gives no batch any weight: 0 / 0 is no reason to leave the
    # initial values.
    if a.debias_moving_statistics and a.momentum != 1.0:
        scale = state.debiased.get("scale", variance)
        if a.renorm:
            scale = np.maximum(scale**2 - a.epsilon, 0.0)
        mean = np.where(state.mean_updates > 0, state.debiased.get("mean", mean), mean)
        variance = np.where(state.scale_updates > 0, scale, variance)
    return mean, variance


def _virtual_batches(x, state, a, weights):
    """Statistics of a few examples at a time (Hoffer et al. 2017, Algorithm 1).

    The moving statistics are updated by the batch, of which each virtual batch
    without statistics of its own is left out.
    """
    x = np.asarray(x, "float64")
    w = np.broadcast_to(1.0 if weights is None else weights, x.shape).astype(float)
    channel_axes = {i % x.ndim for i in np.atleast_1d(a.axis)}
    axis = next(i for i in range(x.ndim) if i not in channel_axes)
    plain = replace(a, virtual_batch_size=None)
    parts = []
    for start in range(0, x.shape[axis], a.virtual_batch_size):
        index = [slice(None)] * x.ndim
        index[axis] = slice(start, start + a.virtual_batch_size)
        index = tuple(index)
        part = batch_normalization(x[index], state, plain, weights=w[index])
        _, size, mean, variance = moments(x[index], w[index], axis=a.axis)
        known = _along((size > 0) & _fits(mean, variance, a), x, a.axis)
        w[index] = np.where(known, w[index], 0.0)
        parts.append((part, index))
    y = np.empty_like(x)
    for part, index in parts:
        y[index] = part.y
    count, size, mean, variance = moments(x, w, axis=a.axis)
    usable = (size > 0) & _fits(mean, variance, a)
    after = _update(state, a, usable, count, size, mean, variance)
    return Step(y, after, None, None, None, None, None, None, a, None, parts)


def _fits(mean, variance, a):
    """Whether statistics can be stored; NaN can't."""
    return (np.abs(mean) <= a.largest) & (variance <= a.largest)


def _update(state, a, usable, count, size, mean, variance):
    """Moving averages (BN, Algorithm 2, line 10, as a running average)."""
    # A single element has no variance, and weights of 1 in sum none without bias.
    has_variance = usable & (size > 1)
    unbiased = variance
    if a.unbiased_moving_variance:
        has_variance = has_variance & (count > 1)
        unbiased = variance * count / np.where(count > 1, count - 1, 1.0)
    mean_updates = state.mean_updates + usable
    scale_updates = state.scale_updates + has_variance

    def average(old, new, momentum, where, updates, *, debias=False):
        updates = np.maximum(updates, 1)
        if momentum is None:
            share = 1.0 / updates
        elif debias and momentum < 1:
            share = (1.0 - momentum) / (1.0 - momentum**updates)
        else:
            share = 1.0 - momentum
        return np.where(where, old * (1.0 - share) + new * share, old)

    def of_mean(old, momentum, **kwargs):
        return average(old, mean, momentum, usable, mean_updates, **kwargs)

    def of_scale(old, new, momentum, **kwargs):
        return average(old, new, momentum, has_variance, scale_updates, **kwargs)

    # BRN, Algorithm 1, lines 6 and 7, by the deviation, as Keras keeps it; a
    # variance set from outside decides.
    sigma = np.sqrt(variance + a.epsilon)
    scale = np.sqrt(unbiased + a.epsilon) if a.renorm else unbiased
    debiased, zero = {}, np.zeros_like(mean)
    if a.debias_moving_statistics:
        old = {name: state.debiased.get(name, zero) for name in _DEBIASED}
        m, renorm = a.momentum, a.renorm_momentum
        debiased["mean"] = of_mean(old["mean"], m, debias=True)
        debiased["scale"] = of_scale(old["scale"], scale, m, debias=True)
        if a.renorm:
            debiased["renorm_mean"] = of_mean(old["renorm_mean"], renorm, debias=True)
            debiased["renorm_stddev"] = of_scale(
                old["renorm_stddev"], sigma, renorm, debias=True
            )
    more = {
        "mean_updates": mean_updates,
        "scale_updates": scale_updates,
        "debiased": debiased,
    }
    moving_mean = of_mean(state.moving_mean, a.momentum)
    if not a.renorm:
        moving_variance = of_scale(state.moving_variance, scale, a.momentum)
        return State(moving_mean, moving_variance, **more)
    stddev = np.clip(
        state.moving_stddev,
        np.sqrt(state.moving_variance),
        np.sqrt(state.moving_variance + a.epsilon),
    )
    stddev = of_scale(stddev, scale, a.momentum)
    return State(
        moving_mean,
        np.where(
            has_variance,
            np.maximum(stddev**2 - a.epsilon, 0.0),
            state.moving_variance,
        ),
        np.where(has_variance, stddev, state.moving_stddev),
        of_mean(state.renorm_mean, a.renorm_momentum),
        of_scale(state.renorm_stddev, sigma, a.renorm_momentum),
        **more,
    )


def _sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def _softplus(z):
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def _normal(z):
    """Density and distribution function of the standard normal distribution."""
    density = np.exp(-(z**2) / 2.0) / math.sqrt(2.0 * math.pi)
    return density, 0.5 * (1.0 + np.vectorize(math.erf, [float])(z / math.sqrt(2.0)))


def _silu_like(inner, slope):
    """`z * inner(z)` and its derivative."""
    return lambda z: z * inner(z), lambda z: inner(z) + z * slope(z)


def _dsigmoid(z):
    return _sigmoid(z) * (1.0 - _sigmoid(z))


# By the names of `keras.activations`, with their default arguments: the function, and
# its derivative, at a kink that from the left.
ACTIVATIONS = {
    "elu": (
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0.0))),
        lambda z: np.where(z > 0, 1.0, np.exp(np.minimum(z, 0.0))),
    ),
    "gelu": _silu_like(lambda z: _normal(z)[1], lambda z: _normal(z)[0]),
    "hard_sigmoid": (
        lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
        lambda z: np.where(np.abs(z) < 3.0, 1.0 / 6.0, 0.0),
    ),
    "hard_silu": _silu_like(
        lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
        lambda z: np.where(np.abs(z) < 3.0, 1.0 / 6.0, 0.0),
    ),
    "leaky_relu": (
        lambda z: np.where(z > 0, z, 0.2 * z),
        lambda z: np.where(z > 0, 1.0, 0.2),
    ),
    "mish": _silu_like(
        lambda z: np.tanh(_softplus(z)),
        lambda z: (1.0 - np.tanh(_softplus(z)) ** 2) * _sigmoid(z),
    ),
    "relu": (
        lambda z: np.maximum(z, 0.0),
        lambda z: np.where(z > 0, 1.0, 0.0),
    ),
    "relu6": (
        lambda z: np.clip(z, 0.0, 6.0),
        lambda z: np.where((z > 0) & (z < 6), 1.0, 0.0),
    ),
    "sigmoid": (_sigmoid, _dsigmoid),
    "silu": _silu_like(_sigmoid, _dsigmoid),
    "softplus": (_softplus, _sigmoid),
    "squareplus": (
        lambda z: (z + np.sqrt(z**2 + 4.0)) / 2.0,
        lambda z: (1.0 + z / np.sqrt(z**2 + 4.0)) / 2.0,
    ),
    "tanh": (np.tanh, lambda z: 1.0 - np.tanh(z) ** 2),
}

_DEBIASED = ("mean", "scale", "renorm_mean", "renorm_stddev")


def _rows(x, axis):
    """Reshapes to `(elements per channel, *channels)`."""
    axes = sorted(i % np.ndim(x) for i in np.atleast_1d(axis))
    x = np.moveaxis(np.asarray(x, "float64"), axes, range(-len(axes), 0))
    return x.reshape(-1, *x.shape[x.ndim - len(axes) :])


def _restore(rows, axis, shape):
    axes = sorted(i % len(shape) for i in np.atleast_1d(axis))
    moved = np.moveaxis(np.empty(shape), axes, range(-len(axes), 0)).shape
    return np.moveaxis(rows.reshape(moved), range(-len(axes), 0), axes)


def _along(vector, x, axis):
    """One number per channel, shaped to broadcast against `x`."""
    axes = {i % x.ndim for i in np.atleast_1d(axis)}
    return vector.reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])
