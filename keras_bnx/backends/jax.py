"""JAX: arithmetic by `generic`, which XLA fuses; differentiable to any order.

Under `jit` arrays are global, so sums already run over all devices; a named
axis (`pmap`, `shard_map`) has no sum here yet.
"""

import jax

from keras_bnx.backends.generic import (  # noqa: F401 (the contract)
    all_reduce_sum,
    is_recomputing,
    moments,
    normalize,
)

# `is_recomputing` is generic's "never": JAX state is threaded through functions,
# so a pass that `jax.checkpoint` repeats computes the same update, not a second.


def is_traced(value):
    return isinstance(value, jax.core.Tracer)
