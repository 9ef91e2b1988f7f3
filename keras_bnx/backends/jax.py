"""JAX: arithmetic by `generic`, which XLA fuses; differentiable to any order.

Under `jit` arrays are global, so sums already run over all devices; a named
axis (`pmap`, `shard_map`) has no sum here yet.
"""

import functools

import jax

from keras_bnx.backends import generic
from keras_bnx.backends.generic import (  # noqa: F401 (the contract)
    all_reduce_sum,
    is_recomputing,
    normalize,
)

# `is_recomputing` is generic's "never": JAX state is threaded through functions,
# so a pass that `jax.checkpoint` repeats computes the same update, not a second.


def pick_element(x, axes):
    """Picks one element of each channel, also of arrays with a sharding in their type.

    JAX refuses to slice those along a sharded axis; a minimum needs one more pass.
    """
    if any(jax.typeof(x).sharding.spec):
        return jax.numpy.min(x, axis=axes, keepdims=True)
    return generic.pick_element(x, axes)


moments = functools.partial(generic.moments, pick_element=pick_element)


def is_traced(value):
    return isinstance(value, jax.core.Tracer)
