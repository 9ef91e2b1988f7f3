"""JAX: plain arithmetic in the form that XLA makes least of.

`moments` cuts the gradient; `normalize` counts the statistics as functions of `x`.
Its tangent is written by hand, in a form whose transpose, which JAX derives, is the
best backward pass that we know. With `c = x - shift - residual`:

    dy = scale * dx + c * p + q
    scale = gamma * inv,  inv = 1 / sqrt(variance + epsilon)
    p = inv * (dgamma - gamma * inv**2 * sum(c * dx) / n)
    q = dbeta - scale * sum(dx) / n

Transposed, `p` and `q` are the two sums of a backward pass, each taken once and used
for gamma, beta and the inputs. `jax.checkpoint` makes it keep `x` and vectors. As no
`custom_vjp` is involved, `jvp`, `vmap`, and derivatives of derivatives work.

What costs time on a CPU are passes over memory. XLA computes elementwise arithmetic
within the sum that it is for, but only where nothing else uses its result; and it
makes equal expressions one. So `x - shift`, in `sum(dy * (x - shift))` and once more
beside it, becomes an array of the size of `x`, written and read again. Two measures
avoid that, and with them a float32 training step writes no such array but its results:

- The tangent needs `x - shift` in two places. What is no sum in the backward pass has
  it as `x + (-shift)`: without it a step takes 1.1 times as long.
- The residual is taken into account on vectors, never on elements. It has to be a
  rounding error for that.
"""

import functools
import math

import jax
import jax.numpy as jnp

from keras_bnx.backends import generic as in_keras_ops
from keras_bnx.backends.contract import (
    Batch,
    Implementation,
    Moments,
    Replicas,
    Statistics,
    other_axes,
)
from keras_bnx.backends.generic import is_recomputing  # noqa: F401 (the contract)

# `is_recomputing` is generic's "never": JAX state is threaded through functions,
# so a pass that `jax.checkpoint` repeats computes the same update, not a second.

# From mean/std = 10 on, the rounding of the mean may cost more than 1e-6.
_CONDITION_LIMIT = 10.0
# Up to so many elements, a pass over them takes less time than asking for it.
_TINY = 2**12


def obstacles(batch, *, synchronized):
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


generic = Implementation(
    "generic",
    "keras.ops",
    functools.partial(in_keras_ops.moments, pick_element=pick_element),
    in_keras_ops.normalize,
)


def moments(batch):
    batch = batch._replace(x=jax.lax.stop_gradient(batch.x))
    if batch.weights is not None:
        return Moments(*_weighted_moments(batch.x, batch.weights, batch.axes))
    n = math.prod(batch.x.shape[i] for i in batch.other_axes)
    return Moments(n, n, *_moments(batch.x, batch.axes))


# Compiled, also where nothing else is: a `cond` would be compiled anew in each call.
# Inlined where something else is: a small convolutional network's training step with
# calls in it took 1.15 times as long.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _moments(x, axes):
    x, others, per_element = _widened(x), other_axes(x, axes), _per_element(x, axes)
    n = math.prod(x.shape[i] for i in others)

    def variance_about(mean):
        return jnp.sum(jnp.square(x - per_element(mean)), others) / n

    def corrected_two_pass(mean, variance):
        """Adds what the mean was off by rounding (Chan, Golub and LeVeque 1983)."""
        residual = jnp.sum((x - per_element(mean)) / n, others)
        variance = jnp.maximum(variance - jnp.square(residual), 0.0)
        return *_rounded(mean, residual), variance

    # XLA doesn't keep a quotient, but divides again wherever it is used, and there may
    # leave out the rounding, so that `x - mean` and the residual meet different means
    # (3e-3 deviations at mean/std = 1e5). What it keeps are sums, hence the divisions
    # before them, and what comes out of a `cond` whose branches differ. A sum without
    # divisions in it is faster, so the usual case takes the latter way.

    def always():
        mean = jnp.sum(x / n, others)
        return corrected_two_pass(mean, variance_about(mean))

    def where_needed():
        mean = jnp.sum(x, others) / n
        variance = variance_about(mean)
        return jax.lax.cond(
            jnp.any(jnp.square(mean) > _CONDITION_LIMIT**2 * variance),
            corrected_two_pass,
            lambda mean, variance: (mean, jnp.zeros_like(mean), variance),
            mean,
            variance,
        )

    if x.size <= _TINY:
        return always()
    # One more pass on a CPU. Elsewhere XLA takes both sums in the same pass.
    return jax.lax.platform_dependent(cpu=where_needed, default=always)


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _weighted_moments(x, weights, axes):
    others, per_element = other_axes(x, axes), _per_element(x, axes)
    # Only counts are taken of these; compiled, the rest isn't computed.
    n, size, *_ = generic.moments(Batch(x, weights, axes, None))
    counted = weights > 0
    fractions = jnp.where(counted, weights / per_element(jnp.where(n > 0, n, 1.0)), 0.0)
    x = _widened(x)
    mean = jnp.sum(fractions * jnp.where(counted, x, 0.0), others)
    centered = jnp.where(counted, x - per_element(mean), 0.0)
    residual = jnp.sum(fractions * centered, others)
    variance = jnp.sum(fractions * jnp.square(centered), others)
    variance = jnp.maximum(variance - jnp.square(residual), 0.0)
    return n, size, *_rounded(mean, residual), variance


def _rounded(shift, residual):
    """The same mean, of a shift that is the mean but for its rounding."""
    mean = shift + residual
    return mean, (shift - mean) + residual


def normalize(
    batch, statistics, affine, *, epsilon, activation=None, sum_gradients=None
):
    call = batch.axes, epsilon, activation, batch.x, batch.weights
    if statistics.are_constants:
        return _inference(*call, statistics.shift, statistics.variance, affine)
    inverse_count = jnp.asarray(statistics.inverse_count, statistics.variance.dtype)
    statistics = statistics._replace(inverse_count=inverse_count)
    return _training(*call, statistics, affine)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _inference(axes, epsilon, activation, x, weights, mean, variance, affine):
    # Nothing but x is kept here either.
    @jax.checkpoint
    def normalize(x, weights, mean, variance, affine):
        statistics = Statistics(mean, 0.0, variance)
        batch = Batch(x, weights, axes, None)
        z = in_keras_ops.normalize(batch, statistics, affine, epsilon=epsilon)
        return z if activation is None else _activated(activation, z)

    return normalize(x, weights, mean, variance, affine)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _training(axes, epsilon, activation, *tensors):
    if activation is None:
        return _normalize(axes, epsilon, *tensors)

    # What the activation needs for its gradient is computed anew. XLA would make it
    # one with the first time, and keep it, but for the barrier of a checkpoint.
    @jax.checkpoint
    def activated(*tensors):
        return _activated(activation, _normalize(axes, epsilon, *tensors))

    return activated(*tensors)


def _activated(activation, z):
    # Keras's own tanh rounds float64 to float32 here.
    return jnp.tanh(z) if activation.name == "tanh" else activation(z)


native = Implementation(
    "native", "XLA, with a gradient that keeps the inputs", moments, normalize
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _normalize(axes, epsilon, x, weights, statistics, affine):
    shift, residual, variance, _ = statistics
    per_element = _per_element(x, axes)
    # A root and a quotient per channel: some backends' rsqrt is approximate.
    scale = affine.gamma / jnp.sqrt(variance + epsilon)
    centered = _widened(x) - per_element(shift)
    centered = _invalid_at_mean(axes, x, weights, centered, residual)
    offset = affine.beta - residual * scale
    y = centered * per_element(scale) + per_element(offset)
    return y.astype(x.dtype)


@_normalize.defjvp
def _(axes, epsilon, primals, tangents):
    dx, _, _, daffine = tangents
    tangent = jax.checkpoint(functools.partial(_tangent, axes, epsilon))
    x, weights, statistics, affine = primals
    return (
        _normalize(axes, epsilon, *primals),
        tangent(x, weights, statistics, affine.gamma, dx, *daffine),
    )


def _tangent(axes, epsilon, x, weights, statistics, gamma, dx, dgamma, dbeta):
    """The tangent of the outputs; mean and variance are functions of `x`."""
    per_element, inverse_count = _per_element(x, axes), statistics.inverse_count
    # Once, so that what comes back meets before it is rounded to 16 bits.
    dx = _widened(dx)
    statistics = _differentiable_statistics(axes, x, weights, statistics)
    shift, residual, variance, _ = statistics
    inverse = 1.0 / jnp.sqrt(variance + epsilon)
    scale = gamma * inverse
    first, second = _sums(axes, x, weights, statistics, dx)
    first, second = _through_statistics(
        # Divided here, and not by the root twice: transposed, this is the last of the
        # steps to a vector, and XLA doesn't repeat a division for each element.
        inverse_count,
        first,
        second / (variance + epsilon),
    )
    p = inverse * dgamma - scale * second
    q = dbeta - scale * first
    # The same as `x - shift`, and not the same expression: see above.
    centered = _widened(x) + per_element(-shift)
    centered = _invalid_at_mean(axes, x, weights, centered, residual)
    dy = per_element(scale) * dx + centered * per_element(p)
    dy = dy + per_element(q - residual * p)
    if weights is not None:
        dy = jnp.where(_are_valid(x, weights), dy, per_element(dbeta))
    return dy.astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable_statistics(axes, x, weights, statistics):
    """Returns the statistics; to differentiation they are functions of `x`.

    `moments` cut them off, because a first derivative doesn't need it; a second
    one does.
    """
    return statistics


@_differentiable_statistics.defjvp
def _(axes, primals, tangents):
    x, weights, statistics = primals
    statistics = _differentiable_statistics(axes, x, weights, statistics)
    zeros, inverse_count = jnp.zeros_like(statistics.shift), statistics.inverse_count
    first, second = _through_statistics(
        inverse_count, *_sums(axes, x, weights, statistics, tangents[0])
    )
    constant = jnp.zeros_like(inverse_count)
    return statistics, Statistics(zeros, first, 2.0 * second, constant)


def _sums(axes, x, weights, statistics, dx):
    """`sum(w * dx)` and `sum(w * (x - shift - residual) * dx)`."""
    others, dx = other_axes(x, axes), _widened(dx)
    centered = _widened(x) - _per_element(x, axes)(statistics.shift)
    centered = _invalid_at_mean(axes, x, weights, centered, statistics.residual)
    if weights is None:
        first, second = dx, dx * centered
    else:
        dx = jnp.where(_are_valid(x, weights), dx, 0.0)
        weights = jnp.where(weights > 0, weights, 0.0)
        # An element of weight 0 may be so large that only in this order it is 0.
        first, second = weights * dx, (weights * centered) * dx
    first = jnp.sum(first, others)
    return first, jnp.sum(second, others) - statistics.residual * first


def _through_statistics(inverse_count, *sums):
    """The sums over n, and 0 in channels that are normalized by other numbers.

    There each sum is multiplied by 0; but 0 times infinity is NaN.
    """
    return tuple(jnp.where(inverse_count > 0, inverse_count * s, 0.0) for s in sums)


def _invalid_at_mean(axes, x, weights, centered, residual):
    """Takes an element that doesn't count, and isn't finite, for the mean."""
    if weights is None:
        return centered
    residual = _per_element(x, axes)(residual)
    return jnp.where(_are_valid(x, weights), centered, residual)


def _are_valid(x, weights):
    return (weights > 0) | jnp.isfinite(x)


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
