"""Errors of float32 in plain numbers, at any mean: what README promises.

The rule of `tolerance.py` grows with the mean, as Keras's layer needs it. Here
nothing does: rounding the mean to one number is off by 3e-3 at mean/std = 1e5, and
`x * a + b` by 5e-3.
"""

import keras
import numpy as np
import pytest
from frameworks import to_numpy, with_gradients
from keras import ops

from keras_bnx import BatchNormalization, force_implementation, reference

# Of outputs whose channels have mean 0 and standard deviation 1, up to 5 in size. Up to
# a mean of 10 deviations native kernels take it for one number, and add in chains.
OUTPUTS, OUTPUTS_AT_THE_LIMIT = 5e-6, 1e-5
# Of gradients of the inputs, for upstream gradients of that size.
GRADIENTS = 2e-5

# mean / std.
RATIOS = (0.0, 1.0, 4.0, 9.0, 30.0, 99.0, 1e2, 1e3, 1e4, 1e5)
SHAPES = {
    "rows": ((64, 3), -1),
    "many_rows": ((20_000, 3), -1),
    "many_channels": ((4_000, 64), -1),
    "images": ((4, 12, 13, 5), -1),
    "images_first": ((8, 5, 16, 16), 1),
}
PATHS = ("plain", "virtual", "renorm", "masked", "two_axes", "unknown_sizes")
# How the rest runs; on JAX an eager gradient is 50 small compilations.
HOW = {"jax": "compiled"}.get(keras.config.backend(), "eager")
if keras.config.backend() == "tensorflow":
    PATHS += ("compiled", "xla", "xla_renorm")


# Dynamo alone takes seconds for each, and what it traces is the generic arithmetic.
COMBINED = [
    (kind, path, implementation)
    for kind in SHAPES
    for path in PATHS
    for implementation in ("generic", "native")
    if path not in ("compiled", "xla", "xla_renorm") or kind in ("many_rows", "images")
    if path != "unknown_sizes"
    or keras.config.backend() != "torch"
    or (kind, implementation) == ("images", "generic")
]


@pytest.mark.parametrize(("kind", "path", "implementation"), COMBINED)
def test_errors_do_not_grow_with_the_mean(kind, path, implementation):
    shape, axis = SHAPES[kind]
    if path == "two_axes":
        shape = (shape[0], 2, shape[1]) if len(shape) == 2 else shape
        axis = tuple(sorted({axis % len(shape), len(shape) - 2}))
    if implementation == "native" and path == "two_axes":
        implementation = "auto"  # TensorFlow's sums have one channel axis.
    channels = [shape[a] for a in np.atleast_1d(axis)]
    options = {"axis": axis, "momentum": 0.0, "epsilon": 1e-5}
    if path == "virtual":
        options["virtual_batch_size"] = max(2, shape[0] // 4)
    options["renorm"] = "renorm" in path
    layer, arguments = BatchNormalization(**options), reference.Arguments(**options)
    layer.build(shape)
    mask = weights = None
    if path == "masked":
        sizes = [n for i, n in enumerate(shape) if i != axis % len(shape)]
        mask = np.random.default_rng(3).uniform(size=sizes) > 0.2
        weights, mask = np.expand_dims(mask, axis), ops.convert_to_tensor(mask)
    dy = np.random.default_rng(2).normal(size=shape).astype("float32")

    too_far = {}
    with force_implementation(implementation):
        hows = {"unknown_sizes": "unknown", "xla_renorm": "xla"}
        how = hows.get(path, path if path in ("compiled", "xla") else HOW)
        run = with_gradients(layer, how=how)
        for ratio in RATIOS:
            x = np.random.default_rng(1).normal(ratio, 1.0, shape).astype("float32")
            layer.reset_moving_statistics()
            state = reference.State(np.zeros(channels), np.ones(channels))
            if options["renorm"]:
                # As in training that has settled: r and d near 1 and 0.
                layer.renorm_mean.assign(np.full(channels, ratio))
                state.renorm_mean = to_numpy(layer.renorm_mean).astype("float64")
            step = reference.batch_normalization(x, state, arguments, weights=weights)
            dx, *_ = reference.gradients(step, dy, x)

            found = run(*map(ops.convert_to_tensor, (x, dy)), mask)

            moving = layer.moving_mean, layer.moving_variance
            stored = reference.State(*(to_numpy(v).reshape(channels) for v in moving))
            still = reference.batch_normalization(x, stored, arguments, training=False)
            outputs = OUTPUTS_AT_THE_LIMIT if 1.0 < ratio < 10.0 else OUTPUTS
            for name, actual, expected, allowed in (
                ("outputs", found["y"], step.y, outputs),
                ("gradients", found["dx"], dx, GRADIENTS),
                ("inference", layer(x), still.y, OUTPUTS),
            ):
                off = np.abs(to_numpy(actual) - expected).max()
                if not off <= allowed:
                    too_far[name, ratio] = f"{off:.1e}"
    assert not too_far
