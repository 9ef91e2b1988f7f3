"""What broke the package and no other test noticed: a case for each such mutant.

A combination is a call against the oracle: outputs, gradients and statistics.
"""

import keras
import numpy as np
import pytest
from combinations import Combination, check
from comparison import second_order
from frameworks import (
    functional,
    gradients,
    hessian_vector_product,
    statistics,
    to_numpy,
    with_gradients,
)
from keras import ops

from keras_bnx import BatchNormalization, Ramp, force_implementation

# An eager call on JAX is dozens of small compilations.
HOW = "compiled" if keras.config.backend() == "jax" else "eager"
RENORM = {"renorm": True}
COMBINATIONS = {
    "traced_false": Combination(training="traced False", how="compiled"),
    "traced_false_large_mean": Combination(
        training="traced False", how="compiled", implementation="generic", ratio=30.0
    ),
    "traced_false_renorm": Combination(
        training="traced False", how="compiled", arguments=RENORM
    ),
    "traced_false_virtual": Combination(
        training="traced False", how="compiled", arguments={"virtual_batch_size": 3}
    ),
    "inf_in_the_last_virtual_batch": Combination(
        bad=np.inf, how=HOW, arguments={"virtual_batch_size": 2}, seed=5
    ),
    "inf": Combination(bad=np.inf, how=HOW),
    "inf_generic": Combination(bad=np.inf, how=HOW, implementation="generic"),
    "inf_renorm": Combination(bad=np.inf, how=HOW, arguments=RENORM),
    "poison": Combination(mask=(8,), mask_kind="poison", how=HOW),
    "absent_channel": Combination(mask=(1, 3), how=HOW),
    "absent_channel_at_inference": Combination(mask=(1, 3), training=False, how=HOW),
    "all_absent": Combination(mask=(8, 3), mask_kind="nothing", how=HOW),
    "all_absent_at_inference": Combination(
        mask=(8, 3), mask_kind="nothing", training=False, how=HOW
    ),
    "one_row_is_counted_once": Combination(
        shape=(1, 3), arguments={"momentum": None}, calls=2, how=HOW
    ),
    "float64_inputs": Combination(dtype="float64", how=HOW),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_is_the_oracles(name):
    check(COMBINATIONS[name])


def built(**arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, 3))
    return layer


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 1.0, shape).astype("float32")


@pytest.mark.parametrize("implementation", ["generic", "native"])
@pytest.mark.parametrize("renorm", [False, True])
def test_no_gradient_flows_through_the_statistics(implementation, renorm):
    layer, x = built(renorm=renorm), data(8, 3)
    trainable = [v.value for v in layer.trainable_variables]
    state = [v.value for v in layer.non_trainable_variables]

    def moved(x):
        _, after = layer.stateless_call(trainable, state, x, training=True)
        # The second term alone has a gradient.
        return sum(ops.sum(v) for v in after) + 2.0 * ops.sum(x)

    with force_implementation(implementation):
        (found,) = gradients(moved, x)
    np.testing.assert_array_equal(found, np.full((8, 3), 2.0))


@pytest.mark.parametrize("implementation", ["generic", "native"])
def test_weights_that_are_negative_or_nan_are_0(implementation):
    x, dy = data(2, 8, 3)
    weights = np.array([1.0, -2.0, 0.5, np.nan, 1.0, -0.0, 2.0, 1.0], "float32")
    results = []
    for mask in (weights, np.where(weights > 0, weights, 0.0).astype("float32")):
        layer = built(momentum=0.5)
        with force_implementation(implementation):
            run = with_gradients(layer, how=HOW)
            found = run(*map(ops.convert_to_tensor, (x, dy, mask)))
        results.append({**found, **statistics(layer)})
    for name, value in results[0].items():
        assert np.isfinite(to_numpy(value)).all(), name
        np.testing.assert_allclose(
            to_numpy(value), to_numpy(results[1][name]), rtol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("masked", [False, True])
def test_native_second_order_is_that_of_the_oracle_in_float32(masked):
    mask = np.arange(8) % 3 > 0 if masked else None
    with force_implementation("native"):
        found, expected = second_order(built(epsilon=0.1), (8, 3), mask=mask)
    # A few units of rounding of terms of the size of 100.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def test_a_momentum_of_1_keeps_the_initial_statistics_at_inference():
    layer = built(momentum=1.0, debias_moving_statistics=True)
    x = data(8, 3)
    before = to_numpy(layer(x))
    layer(x + 7.0, training=True)

    np.testing.assert_array_equal(to_numpy(layer(x)), before)


def test_a_traced_false_is_no_step_of_schedules():
    limits = {"rmax": Ramp(1.0, 3.0, start=0, end=10)}
    layer = built(renorm=True, renorm_clipping=limits)
    x, dy = map(ops.convert_to_tensor, data(2, 8, 3))
    with_gradients(layer, training="traced False", how="compiled")(x, dy)
    assert int(layer.history.steps.value) == 0
    with_gradients(layer, training="traced True", how="compiled")(x, dy)
    assert int(layer.history.steps.value) == 1


def test_freezing_one_half_leaves_the_other_frozen():
    layer = built()
    layer.freeze(statistics=True, affine=False)
    layer.freeze(statistics=False, affine=True)

    assert layer.frozen == ("statistics", "affine")


def test_a_reset_is_one_of_renorms_statistics_too():
    layer = built(renorm=True, momentum=0.5, renorm_momentum=0.5)
    before = statistics(layer)
    layer(data(8, 3), training=True)
    layer.reset_moving_statistics()

    for name, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"axis": (1, 2)},
        {"momentum": None},
        {"epsilon": 0.5},
        {"center": False},
        {"scale": False},
        {"renorm": True, "renorm_clipping": {"rmax": 2.0}, "renorm_momentum": 0.5},
        {"synchronized": 2},
        {"virtual_batch_size": 4},
        {"unbiased_moving_variance": True},
        {"debias_moving_statistics": True},
        {"axis_name": "replicas"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_each_argument_survives_its_config(arguments):
    layer = BatchNormalization(**arguments)
    other = BatchNormalization.from_config(layer.get_config())

    for name, value in arguments.items():
        assert getattr(layer, name) == value
        assert getattr(other, name) == value


def test_what_padding_overflows_to_has_no_second_derivative():
    x, vector = data(2, 8, 3)
    x[5:] = 1e25
    mask = np.arange(8) < 5
    call = functional(built(), mask=mask)
    upstream = ops.convert_to_tensor(data(8, 3, seed=1) * mask[:, None])
    found = hessian_vector_product(
        lambda x: ops.sum(upstream * call(x)), x, vector * mask[:, None]
    )

    assert np.isfinite(found).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_weights_below_one_in_all_have_no_unbiased_variance(unbiased):
    layer = built(momentum=0.0, unbiased_moving_variance=unbiased)
    x = data(8, 3)
    layer(x, training=True, mask=np.full(8, 0.1, "float32"))

    found = statistics(layer)
    np.testing.assert_allclose(found["moving_mean"], x.mean(0), rtol=1e-5)
    expected = np.ones(3) if unbiased else x.var(0)
    np.testing.assert_allclose(found["moving_variance"], expected, rtol=1e-5)


def fitted(layer):
    """A step of `fit`, compiled, where Keras donates the variables on JAX."""
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    model.fit(data(8, 3), data(8, 3), verbose=0)
    return statistics(layer)


def test_a_layer_that_was_reset_is_fitted():
    layer = built(renorm=True, momentum=0.5)
    layer.reset_moving_statistics()
    found = fitted(layer)

    np.testing.assert_allclose(found["moving_mean"], data(8, 3).mean(0) / 2, rtol=1e-5)


def test_a_layer_that_was_loaded_is_fitted(tmp_path):
    layer = built(debias_moving_statistics=True, momentum=0.5)
    plain = keras.Sequential([keras.Input((3,)), BatchNormalization()])
    plain.save_weights(tmp_path / "a.weights.h5")
    keras.Sequential([keras.Input((3,)), layer]).load_weights(tmp_path / "a.weights.h5")
    found = fitted(layer)

    # The file doesn't say after how many batches its mean is 0.
    np.testing.assert_allclose(
        found["debiased_mean"], data(8, 3).mean(0) / 2, rtol=1e-5
    )
