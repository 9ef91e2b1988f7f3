"""Bounds that keep float64, and NaN.

`keras.ops.maximum` and `minimum` return float32 for float64 tensors on PyTorch, and
frameworks disagree about NaN in them.
"""

import keras
from keras import ops


def at_least(x, bound):
    """Computes `max(x, bound)` in the dtype of `x`; NaN in `x` stays.

    Args:
        x: floating-point tensor.
        bound: a number, or a tensor that broadcasts against `x`.
    """
    bound = _like(x, bound)
    return ops.where(x < bound, bound, x)


def at_most(x, bound):
    """Computes `min(x, bound)` in the dtype of `x`; NaN in `x` stays."""
    bound = _like(x, bound)
    return ops.where(x > bound, bound, x)


def _like(x, bound):
    # A Python number would be rounded to float32 on TensorFlow by `ops.cast`.
    if not ops.is_tensor(bound) and not isinstance(bound, keras.Variable):
        return ops.full_like(x, bound)
    return ops.cast(bound, x.dtype)
