"""Errors of float32 in plain numbers, at any mean: what README promises.

The rule of `tolerance.py` grows with the mean, as that of Keras's own layer has to. Here
nothing does: rounding the mean to one number is off by 3e-3 at mean/std = 1e5, and
`x * a + b` by 5e-3.
"""

import keras
import numpy as np
import pytest
from frameworks import call_and_gradients, to_numpy
from keras import ops

from keras_bnx import BatchNormalization, force_implementation, reference

# Of outputs whose channels have mean 0 and standard deviation 1, up to 5 in size.
OUTPUTS = 5e-6
# Of gradients of the inputs for upstream gradients of that size, with a standard
# deviation of the inputs of 1. They are made of three terms of it.
GRADIENTS = 2e-5

# mean / std; between 1 and 10 some native kernels are at their limit.
RATIOS = (0.0, 1.0, 4.0, 9.0, 30.0, 99.0, 1e2, 1e3, 1e4, 1e5, 1e6)
SHAPES = {
    "rows": ((64, 3), -1),
    "many_rows": ((20_000, 3), -1),
    "images": ((4, 12, 13, 5), -1),
    "images_first": ((8, 5, 16, 16), 1),
}
PATHS = {
    "plain": {},
    "virtual": {"virtual_batch_size": 2},
    "renorm": {"renorm": True},
    "masked": {},
    "two_axes": {},
    "compiled": {},
}


def results(shape, axis, path, ratio):
    """What the layer gives, and the oracle: training, its gradient, then inference."""
    x = np.random.default_rng(1).normal(ratio, 1.0, shape).astype("float32")
    dy = np.random.default_rng(2).normal(size=shape).astype("float32")
    mask = None
    if path == "masked":
        examples = [n for i, n in enumerate(shape) if i != axis % len(shape)]
        mask = np.random.default_rng(3).uniform(size=examples) > 0.2
    if path == "two_axes":
        axis = tuple(sorted({axis % len(shape), len(shape) - 2}))
    layer = BatchNormalization(axis, momentum=0.0, epsilon=1e-5, **PATHS[path])
    layer.build(shape)
    channels = [shape[a] for a in np.atleast_1d(axis)]
    arguments = reference.Arguments(
        axis=axis, momentum=0.0, epsilon=1e-5, **PATHS[path]
    )
    state = reference.State(np.zeros(channels), np.ones(channels))
    if path == "renorm":
        # r and d near 1 and 0, as in training that has settled.
        layer.renorm_mean.assign(np.full(channels, ratio, "float32"))
        state.renorm_mean = to_numpy(layer.renorm_mean).astype("float64")
    weights = None if mask is None else np.expand_dims(mask, axis)
    step = reference.batch_normalization(x, state, arguments, weights=weights)
    dx, *_ = reference.gradients(step, dy, x)

    tensors = [ops.convert_to_tensor(v) for v in (x, dy)]
    how = "compiled" if path == "compiled" or _compiles_anyway() else "eager"
    found = call_and_gradients(
        layer, *tensors, None if mask is None else ops.convert_to_tensor(mask), how=how
    )
    stored = [to_numpy(v).reshape(channels) for v in _moving(layer)]
    still = reference.batch_normalization(
        x, reference.State(*stored), arguments, training=False
    )
    return {
        "outputs": (found["y"], step.y, OUTPUTS),
        "gradients": (found["dx"], dx, GRADIENTS),
        "inference": (layer(tensors[0]), still.y, OUTPUTS),
    }


def _moving(layer):
    return layer.moving_mean.value, layer.moving_variance.value


def _compiles_anyway():
    # An eager gradient on JAX is 50 small compilations.
    return keras.config.backend() == "jax"


@pytest.mark.parametrize("implementation", ["generic", "native"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_do_not_grow_with_the_mean(shape, path, implementation):
    shape, axis = SHAPES[shape]
    if path == "two_axes":
        if len(shape) == 2 or implementation == "native":
            implementation = "auto"  # Kernels have one channel axis.
        if len(shape) == 2:
            shape = (shape[0], 2, shape[1])
    if path == "compiled" and keras.config.backend() == "torch":
        implementation = "auto"  # Its compiler fuses the generic arithmetic.
    worst = {}
    for ratio in RATIOS:
        with force_implementation(implementation):
            found = results(shape, axis, path, ratio)
        for name, (actual, expected, allowed) in found.items():
            off = np.abs(to_numpy(actual) - expected).max()
            worst[name, ratio] = off / allowed
            assert np.isfinite(off)
    too_far = {k: f"{v:.2f} times" for k, v in worst.items() if not v <= 1.0}
    assert not too_far, too_far
