"""The layer against the oracle and against Keras's layer, and its arguments."""

from functools import partial

import keras
import numpy as np
import pytest
from cases import CASES
from frameworks import (
    compiled,
    functional,
    gradients,
    statistics,
    tensor_gradients,
    to_numpy,
)
from keras import ops
from tolerance import assert_near, kappa

from keras_bnx import BatchNormalization, force_implementation, reference


def make(case, cls=BatchNormalization):
    """The layer of a case, with random weights and moving statistics."""
    layer = cls(axis=case.axis, dtype=case.policy, **case.arguments)
    layer.build(case.shape)
    rng = np.random.default_rng(3)
    channels = case.shape[case.axis]
    mean = case.std * (case.ratio + rng.normal(size=channels))
    for name, value in {
        "gamma": rng.uniform(0.5, 1.5, channels),
        "beta": rng.normal(size=channels),
        "moving_mean": mean,
        "moving_variance": case.std**2 * rng.uniform(0.5, 1.5, channels),
        "renorm_mean": mean,
        "renorm_stddev": np.sqrt(case.std**2 * rng.uniform(0.5, 1.5, channels) + 1e-3),
    }.items():
        if getattr(layer, name, None) is not None:
            getattr(layer, name).assign(value)
    if case.arguments.get("renorm"):
        layer.moving_stddev.assign(ops.sqrt(layer.moving_variance + layer.epsilon))
    return layer


def oracle(layer):
    """The oracle's state and arguments for a layer, with its stored numbers."""
    names = ("moving_mean", "moving_variance")
    names += ("moving_stddev", "renorm_mean", "renorm_stddev") if layer.renorm else ()
    state = reference.State(**{name: to_numpy(getattr(layer, name)) for name in names})
    return state, reference.Arguments(
        axis=layer.axis,
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        gamma=None if layer.gamma is None else to_numpy(layer.gamma),
        beta=None if layer.beta is None else to_numpy(layer.beta),
        renorm=layer.renorm,
        renorm_clipping=dict(layer.renorm_clipping or {}),
        renorm_momentum=layer.renorm_momentum,
    )


def tensor(case, x):
    return ops.convert_to_tensor(x, dtype=case.dtype)


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


COMPILERS = {
    "jax": [{}],
    "tensorflow": [{}, {"jit_compile": True}, {"reduce_retracing": True}],
    "torch": [{}],
}[keras.config.backend()]

# Native kernels add in their own order: in one chain of up to 4096 elements on
# TensorFlow, which is off by up to 6 units.
UNITS = {"generic": 4.0, "auto": 16.0}


@pytest.fixture(params=list(UNITS))
def implementation(request):
    with force_implementation(request.param):
        yield request.param


@each(CASES)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_statistics_are_the_oracles(
    case, training, float64, implementation
):
    layer, x = make(case), case.inputs()
    mask, weights = case.weights()
    state, arguments = oracle(layer)
    expected = reference.batch_normalization(
        x, state, arguments, weights=weights, training=training
    )

    y = layer(tensor(case, x), training=training, mask=mask)

    epsilon = layer.epsilon
    scale = kappa(x, axis=case.axis, epsilon=epsilon, weights=weights)
    dtype = "float64" if case.dtype == "float64" else "float32"
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    units = UNITS[implementation]
    assert_near(
        to_numpy(y), expected.y, scale=scale, dtype=layer.compute_dtype, units=units
    )
    for name, value in statistics(layer).items():
        # Stored in `dtype`: one rounding of each product and sum.
        assert_near(
            value, getattr(expected.state, name), scale=0.0, dtype=dtype, units=units
        )


@each(CASES)
def test_gradients_are_the_oracles(case, float64, implementation):
    assert_gradients(case, gradients)


COMPILED = (
    "dense images channels_first middle_axis volume few_channels_mean_1e3 many_rows "
    "many_images no_affine mean_1e4_many raw_table mask weights_axis_1 renorm_clipped "
    "float64 bfloat16_100 mixed_bfloat16_rows mixed_float16_images_first"
).split()


@each([case for case in CASES if case.name in COMPILED])
@pytest.mark.parametrize("options", COMPILERS, ids=str)
def test_compiled_gradients_are_the_oracles(case, options, float64):
    def compiled_gradients(f, *arrays):
        if keras.config.backend() == "torch":
            return gradients(compiled(f)[0], *arrays)  # Dynamo compiles the forward.
        run, _ = compiled(partial(tensor_gradients, f), **options)
        return [to_numpy(g) for g in run(*map(ops.convert_to_tensor, arrays))]

    assert_gradients(case, compiled_gradients)


def assert_gradients(case, gradients):
    """Asserts that `gradients` computes those of the oracle, of a case's layer."""
    layer, x = make(case), case.inputs()
    mask, weights = case.weights()
    state, arguments = oracle(layer)
    dy = np.random.default_rng(5).normal(size=case.shape)
    if case.mixed:
        dy = np.round(dy * 16) / 16  # which 16 bits hold
    step = reference.batch_normalization(x, state, arguments, weights=weights)
    expected = reference.gradients(step, dy, x)
    call = functional(layer, mask=None if mask is None else ops.array(mask))
    dtype = "float64" if case.dtype == "float64" else "float32"
    upstream = ops.convert_to_tensor(dy, dtype)

    def loss(x, *trainable):
        return ops.sum(ops.cast(call(x, *trainable), dtype) * upstream)

    trainable = [to_numpy(v) for v in layer.trainable_variables]
    dx, *dweights = gradients(loss, tensor(case, x), *trainable)

    # Each gradient is made of sums over a channel: their terms' sizes are the
    # scale, and TensorFlow adds the terms of a broadcast's gradient one by one.
    units = 4.0 + 0.02 * np.sqrt(dy.size / step.inv.size) * (
        40 if keras.config.backend() == "tensorflow" else 1
    )
    rows = np.moveaxis(dy, case.axis, -1).reshape(-1, step.inv.size)
    scale = step.inv * step.r * (1 + np.abs(rows).max(0)) * 4
    if dtype == "float64":
        # The oracle subtracts a rounded mean as well.
        scale = scale * (1 + case.ratio)
    shape = [1] * dy.ndim
    shape[case.axis] = -1
    scale = scale.reshape(shape)
    assert_near(dx, expected[0], scale=scale, dtype=case.dtype, units=units)
    names = [v.name for v in layer.trainable_variables]
    spread = (1 + case.ratio if dtype == "float64" else 1) * (
        np.abs(rows) * (1 + np.abs(step.x_hat * step.r + step.d))
    ).sum(0)
    for name, value in zip(names, dweights, strict=True):
        assert_near(
            value,
            expected[1 if name == "gamma" else 2],
            scale=spread,
            dtype=dtype,
            units=units,
        )


def _keras_outputs(case):
    layer = make(case, keras.layers.BatchNormalization)
    state, arguments = oracle(layer)
    mask, weights = case.weights()
    x = case.inputs()
    expected = reference.batch_normalization(x, state, arguments, weights=weights)
    y = layer(tensor(case, x), training=True, mask=mask)
    return to_numpy(y), expected.y, statistics(layer)


@each([c for c in CASES if f"{keras.config.backend()}?" not in c.keras_is_right])
def test_keras_agrees_exactly_where_the_table_says_so(case, float64):
    right = keras.config.backend() in case.keras_is_right
    try:
        y, expected, moving = _keras_outputs(case)
        dtype = "float64" if case.dtype == "float64" else "float32"
        # The rule for paths that aren't generic.
        tolerance = (
            4
            * np.finfo(dtype).eps
            * (
                kappa(case.inputs(), axis=case.axis, weights=case.weights()[1])
                + np.abs(expected)
            )
        )
        if dtype == "float32":
            tolerance = np.maximum(tolerance, 1e-4 * (1 + np.abs(expected)))
        agrees = bool((np.abs(y - expected) <= tolerance).all())
    except Exception as error:
        agrees, y = error, None
    assert (agrees is True) == right, agrees
    if right:
        layer = make(case)
        mine = to_numpy(
            layer(tensor(case, case.inputs()), training=True, mask=case.weights()[0])
        )
        assert (np.abs(mine - y) <= 2 * tolerance).all()
        for name, value in statistics(layer).items():
            np.testing.assert_allclose(value, moving[name], rtol=1e-4, atol=1e-5)
