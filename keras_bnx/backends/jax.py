"""JAX: plain arithmetic, arranged for XLA, and a gradient that keeps the inputs.

Plain differentiation of the generic arithmetic keeps `x - shift` beside `x` (in
float32, also where `x` has 16 bits), and takes a dozen passes over the data. Here
the tangent of the outputs is written by hand, and in a form whose transpose, which
JAX derives, is the best backward pass that we know:

    dy = (gamma * inv) * dx + x_hat * p + q
    p = dgamma - gamma * inv * sum(share * dx * x_hat)
    q = dbeta - gamma * inv * sum(share * dx)

Transposed, `p` and `q` are the two sums of a backward pass, each taken once and
used for gamma, beta and the inputs. `jax.checkpoint` makes it keep `x`, not
`x_hat`. So `jvp`, `vmap`, `grad` of `grad` and `jit` all work, which a `custom_vjp`
would not allow, in its time.

The same arithmetic with barriers between reductions and elementwise passes, and
as a `custom_vjp`, was measured to take as long or longer on a CPU.
"""

import functools
import math

import jax
import jax.numpy as jnp

from keras_bnx.backends import Arithmetic, Moments, Replicas
from keras_bnx.backends import generic as in_keras_ops
from keras_bnx.backends.generic import (  # noqa: F401 (the contract)
    is_known_finite,
    is_recomputing,
    other_axes,
)

# `is_recomputing` is generic's "never": JAX state is threaded through functions,
# so a pass that `jax.checkpoint` repeats computes the same update, not a second.
# Nor is anything known before the compiled function runs.

# From mean/std = 10 on, the rounding of the mean may cost more than 1e-6.
_LARGE = 10.0


def obstacles(x, *, axes, synchronized):
    if synchronized:
        return ["The gradient of sums over a named axis is taken of plain arithmetic."]
    return []


def pick_element(x, axes):
    """Picks one element of each channel, also of arrays with a sharding in their type.

    JAX refuses to slice those along a sharded axis; a minimum needs one more pass.
    """
    if any(jax.typeof(x).sharding.spec):
        return jnp.min(x, axis=axes, keepdims=True)
    return in_keras_ops.pick_element(x, axes)


generic = Arithmetic(
    "generic",
    "keras.ops",
    functools.partial(in_keras_ops.moments, pick_element=pick_element),
    in_keras_ops.normalize,
)


def moments(x, weights, *, axes):
    x = jax.lax.stop_gradient(x)
    if weights is not None:
        return generic.moments(x, weights, axes=axes)
    n = math.prod(n for i, n in enumerate(x.shape) if i not in axes)
    return Moments(n, n, *_moments(x, axes))


# Compiled, also where nothing else is: a `cond` would be compiled anew in each call.
# Inlined where something else is: a small convolutional network's training step with
# calls in it took 1.15 times as long.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _moments(x, axes):
    x, others, per_element = _widened(x), other_axes(x, axes), _per_element(x, axes)
    n = math.prod(x.shape[i] for i in others)
    # Divided first: a quotient after the sum would be computed again wherever it is
    # used, and there XLA may leave out its rounding, so that `x - mean` and the rest
    # of the mean meet different means (3e-3 deviations at mean/std = 1e5).
    mean = jnp.sum(x / n, others)
    variance = jnp.sum(jnp.square(x - per_element(mean)), others) / n

    def second_look():
        rest = jnp.sum(x - per_element(mean), others) / n
        return rest, jnp.maximum(variance - jnp.square(rest), 0.0)

    large = jnp.any(jnp.square(mean) > _LARGE**2 * variance)
    rest, variance = jax.lax.platform_dependent(
        # One more pass on a CPU. Elsewhere XLA takes both sums in the same pass.
        cpu=lambda: jax.lax.cond(
            large, second_look, lambda: (jnp.zeros_like(mean), variance)
        ),
        default=second_look,
    )
    return mean, rest, variance


def normalize(
    x, weights, *, axes, mean, epsilon, share=None, sum_replicas=None, **vectors
):
    if share is None:
        numbers = (("epsilon", epsilon),)
        if isinstance(mean, float):
            numbers += (("mean", mean),)
        else:
            vectors["mean"] = mean
        return _inference(axes, numbers, x, weights, vectors)
    return _training(axes, epsilon, x, weights, share, {**vectors, "mean": mean})


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _inference(axes, numbers, x, weights, vectors):
    # Nothing but x is kept here either.
    function = functools.partial(in_keras_ops.normalize, axes=axes, **dict(numbers))
    return jax.checkpoint(function)(x, weights, **vectors)


native = Arithmetic(
    "native", "XLA, with a gradient that keeps the inputs", moments, normalize
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _normalize(axes, epsilon, x, weights, share, vectors):
    return in_keras_ops.normalize(x, weights, axes=axes, epsilon=epsilon, **vectors)


@_normalize.defjvp
def _(axes, epsilon, primals, tangents):
    x, weights, share, vectors = primals
    dx, _, _, dvectors = tangents
    tangent = jax.checkpoint(functools.partial(_tangent, axes, epsilon))
    return (
        _normalize(axes, epsilon, *primals),
        tangent(x, weights, share, vectors, dx, dvectors["gamma"], dvectors["beta"]),
    )


_training = jax.jit(_normalize, static_argnums=(0, 1), inline=True)


def _tangent(axes, epsilon, x, weights, share, vectors, dx, dgamma, dbeta):
    """The tangent of the outputs; `shift`, `mean` and `variance` are functions of x."""
    others, per_element = other_axes(x, axes), _per_element(x, axes)
    shift, gamma = vectors["shift"], vectors["gamma"]
    centered, dx, weight, harmless = _centered(axes, x, weights, share, shift, dx)
    mean, variance = _attached(
        axes, x, weights, share, shift, vectors["mean"], vectors["variance"]
    )
    inverse = 1.0 / jnp.sqrt(variance + epsilon)
    x_hat = (centered - per_element(mean)) * per_element(inverse)
    if harmless is not None:
        x_hat = jnp.where(harmless, x_hat, 0.0)
    scale = inverse if gamma is None else gamma * inverse
    first, second = _through_statistics(
        share,
        jnp.sum(weight * dx, others),
        # An element of weight 0 may be so large that only in this order it is 0.
        jnp.sum((weight * x_hat) * dx, others),
    )
    p, q = -scale * second, -scale * first
    p = p if gamma is None else dgamma + p
    if harmless is None and vectors["beta"] is not None:
        q = dbeta + q
    dy = per_element(scale) * dx + x_hat * per_element(p) + per_element(q)
    if harmless is not None:
        dy = jnp.where(harmless, dy, 0.0)
        if vectors["beta"] is not None:
            dy = dy + per_element(dbeta)
    return dy.astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attached(axes, x, weights, share, shift, mean, variance):
    """Returns mean and variance; to differentiation they are functions of x.

    `moments` cut them off, because a first derivative doesn't need it; a second
    one does.
    """
    return mean, variance


@_attached.defjvp
def _(axes, primals, tangents):
    x, weights, share, shift, mean, variance = primals
    others = other_axes(x, axes)
    centered, dx, weight, _ = _centered(axes, x, weights, share, shift, tangents[0])
    mean, variance = _attached(axes, *primals)
    centered = centered - _per_element(x, axes)(mean)
    return (mean, variance), _through_statistics(
        share,
        jnp.sum(weight * dx, others),
        jnp.sum(2.0 * weight * centered * dx, others),
    )


def _through_statistics(share, *sums):
    """The sums, and 0 in channels that are normalized by other numbers.

    There each term has been multiplied by 0; but 0 times infinity is NaN.
    """
    return tuple(jnp.where(share > 0, total, 0.0) for total in sums)


def _centered(axes, x, weights, share, shift, dx):
    """`x - shift`, its tangent, the weight of each element, and which are harmless."""
    per_element = _per_element(x, axes)
    centered = _widened(x) - per_element(shift)
    dx = _widened(dx)
    weight = per_element(jnp.broadcast_to(share, shift.shape).astype(shift.dtype))
    if weights is None:
        return centered, dx, weight, None
    harmless = (weights > 0) | jnp.isfinite(x)
    weight = weight * jnp.where(weights > 0, weights, 0.0)
    zero = jnp.zeros((), centered.dtype)
    return (
        jnp.where(harmless, centered, zero),
        jnp.where(harmless, dx, zero),
        weight,
        harmless,
    )


def _widened(x):
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _per_element(x, axes):
    others = other_axes(x, axes)
    return lambda vector: jnp.expand_dims(vector, others)


def replicas(axis_name):
    """Those along a named axis of `shard_map`, `pmap` or `vmap`, inside of it.

    Arrays that are sharded under `jit` need none: there a sum is that of all devices.
    """
    if axis_name is None:
        return None
    try:
        count = jax.lax.axis_size(axis_name)
    except NameError:
        return None
    return Replicas(
        count,
        jax.lax.axis_index(axis_name),
        functools.partial(jax.lax.psum, axis_name=axis_name),
        True,
    )


def is_traced(value):
    return isinstance(value, jax.core.Tracer)
