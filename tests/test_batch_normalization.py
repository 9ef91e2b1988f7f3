"""The layer against the oracle and against Keras's layer, and its arguments."""

from functools import partial

import keras
import numpy as np
import pytest
from cases import CASES
from combinations import oracle_of
from comparison import (
    assert_statistics_near,
    gradient_tolerances,
    largest_kappa,
    make,
    tensor,
)
from frameworks import (
    compiled,
    functional,
    gradients,
    statistics,
    tensor_gradients,
    to_numpy,
)
from keras import ops
from tolerance import assert_near

from keras_bnx import force_implementation, reference


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


COMPILERS = {
    # There gradients are compiled in each test, so that these say nothing new.
    "jax": [pytest.param({}, marks=pytest.mark.full)],
    "tensorflow": [
        {},
        {"jit_compile": True},
        pytest.param({"reduce_retracing": True}, marks=pytest.mark.full),
    ],
    "torch": [{}],
}[keras.config.backend()]

# Native kernels add in their own order: in one chain of up to 4096 elements on
# TensorFlow, which is off by up to 6 units.
UNITS = {"generic": 4.0, "auto": 16.0}


# The generic arithmetic is one for all backends; where a framework differs, the random
# combinations and test_accuracy.py find it on each.
IMPLEMENTATIONS = [
    "auto",
    pytest.param("generic", marks=pytest.mark.full(except_on="torch")),
]


@pytest.fixture(params=IMPLEMENTATIONS)
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
    state, arguments = oracle_of(layer)
    expected = reference.batch_normalization(
        x, state, arguments, weights=weights, training=training
    )

    y = layer(tensor(case, x), training=training, mask=mask)

    epsilon = layer.epsilon
    scale = largest_kappa(case, x, weights, epsilon)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    units = UNITS[implementation]
    assert_near(
        to_numpy(y), expected.y, scale=scale, dtype=layer.compute_dtype, units=units
    )
    # Stored in `dtype`: one rounding of each product and sum.
    assert_statistics_near(
        layer, expected.state, scale=0.0, dtype=case.wide, units=units
    )


@each(CASES)
def test_gradients_are_the_oracles(case, float64, implementation):
    assert_gradients(case, gradients)


COMPILED = (
    "dense images channels_first middle_axis volume few_channels_mean_1e3 many_rows "
    "many_images no_affine mean_1e4_many raw_table mask weights_axis_1 renorm_clipped "
    "float64 bfloat16_100 mixed_bfloat16_rows mixed_float16_images_first "
    "virtual_divides virtual_remainder virtual_images_first virtual_mask "
    "virtual_renorm axes_apart debiased"
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


@each([case for case in CASES if case.name in COMPILED])
def test_gradients_at_inference_are_the_oracles(case, float64, implementation):
    """Those of fine-tuning on frozen statistics."""
    assert_gradients(case, gradients, training=False)


def assert_gradients(case, gradients, *, training=True):
    """Asserts that `gradients` computes those of the oracle, of a case's layer."""
    layer, x, dy = make(case), case.inputs(), case.upstream()
    mask, weights = case.weights()
    state, arguments = oracle_of(layer)
    step = reference.batch_normalization(
        x, state, arguments, weights=weights, training=training
    )
    expected = reference.gradients(step, dy, x)
    mask = None if mask is None else ops.array(mask)
    call = functional(layer, mask=mask, training=training)
    upstream = ops.convert_to_tensor(dy, case.wide)

    def loss(x, *trainable):
        return ops.sum(ops.cast(call(x, *trainable), case.wide) * upstream)

    trainable = [to_numpy(v) for v in layer.trainable_variables]
    dx, *dweights = gradients(loss, tensor(case, x), *trainable)

    allowed = gradient_tolerances(case, arguments, step, dy)
    assert_near(dx, expected[0], dtype=case.dtype, **allowed["inputs"])
    names = [v.name for v in layer.trainable_variables]
    for name, value in zip(names, dweights, strict=True):
        wanted = expected[1 if name == "gamma" else 2]
        assert_near(
            value.reshape(wanted.shape), wanted, dtype=case.wide, **allowed["weights"]
        )


def _keras_outputs(case):
    layer = make(case, keras.layers.BatchNormalization)
    state, arguments = oracle_of(layer)
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
        # Of 16 bits no more than that; of a mean no multiple.
        tolerance = 1e-3 * (1 + np.abs(expected))
        if case.wide == "float64":
            tolerance = tolerance * 1e-7
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
