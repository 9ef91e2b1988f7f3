"""The one rule for "near"."""

import numpy as np

# Unit roundoff spacing of each dtype; NumPy has no bfloat16.
EPS = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
}


def assert_near(actual, expected, *, scale=1.0, dtype="float32", units=4.0):
    """Asserts `|actual - expected| <= units * eps * (scale + |expected|)`.

    Args:
        actual: array that the code under test computed.
        expected: float64 array, from the oracle.
        scale: what the error may grow with, broadcasts against `expected`: for
            outputs kappa = max|x| / std of the channel.
        dtype: the dtype of the output. Arithmetic in 16 bits doesn't exist: it
            is float32, and half a unit of the output's dtype is added.
        units: 4 for outputs; any other number has its reason beside it.
    """
    actual = np.asarray(actual)
    if np.asarray(expected).dtype != np.float64:
        raise TypeError(
            f"Expected values have to be float64. Received: {expected.dtype}."
        )
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual = actual.astype("float64")
    assert np.isfinite(expected).all(), "the expected values aren't finite"
    assert np.isfinite(actual).all(), "the actual values aren't finite"
    allowed = allowed_error(expected, scale=scale, dtype=dtype, units=units)
    excess = times_allowed(actual, expected, allowed)
    worst = np.unravel_index(np.argmax(excess), excess.shape) if excess.size else ()
    assert excess.size == 0 or excess[worst] <= 1.0, (
        f"{excess[worst]:.3g} times the allowed error at {tuple(map(int, worst))}: "
        f"got {actual[worst]!r}, expected {expected[worst]!r}"
    )


def allowed_error(expected, *, scale=1.0, dtype="float32", units=4.0):
    """What `assert_near` allows, by its arguments."""
    eps = EPS["float64" if dtype == "float64" else "float32"]
    allowed = units * eps * (scale + np.abs(expected))
    if dtype in ("float16", "bfloat16"):
        # Half a unit, and the least subnormal of float16.
        allowed = allowed + EPS[dtype] / 2 * np.abs(expected) + 2.0**-25
    return allowed


def times_allowed(actual, expected, allowed):
    """`|actual - expected| / allowed`; where nothing is allowed, nothing is off."""
    difference = np.abs(actual - expected)
    return np.divide(
        difference,
        allowed,
        out=np.where(difference > 0, np.inf, 0.0),
        where=allowed > 0,
    )


def kappa(x, *, axis=-1, epsilon=0.0, weights=None):
    """`max|x| / std` of each channel, shaped to broadcast against `x`."""
    x = np.asarray(x, "float64")
    channel_axes = {i % x.ndim for i in np.atleast_1d(axis)}
    axes = tuple(i for i in range(x.ndim) if i not in channel_axes)
    w = np.broadcast_to(1.0 if weights is None else weights, x.shape) > 0
    x = np.where(w, x, np.nan)
    std = np.sqrt(np.nanvar(x, axis=axes, keepdims=True) + epsilon)
    return np.nanmax(np.abs(x), axis=axes, keepdims=True) / std
