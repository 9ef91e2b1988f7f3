"""Second order, compilation and rematerialization, on every backend."""

import keras
import numpy as np
import pytest
from comparison import second_order
from frameworks import (
    compiled,
    one_step,
    statistics,
    to_numpy,
    with_gradients,
)
from keras import ops

from keras_bnx import BatchNormalization


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def built(**arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, 3))
    return layer


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"axis": 1},
        *({"activation": name} for name in ("silu", "gelu", "mish")),
        *({"activation": name} for name in ("softplus", "relu", "elu")),
    ],
    ids=str,
)
def test_second_order_is_that_of_the_oracle(arguments, masked, float64):
    shape = (4, 3, 2) if "axis" in arguments else (8, 3)
    layer = BatchNormalization(dtype="float64", **arguments)
    layer.build(shape)
    mask = np.arange(shape[0]) % 3 > 0 if masked else None
    found, expected = second_order(layer, shape, mask=mask)

    # Central differences of float64 gradients. Keras on TensorFlow is 16 % off.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_is_eager_and_traced_once(training, renorm, masked):
    eager, layer = (
        built(
            renorm=renorm,
            renorm_clipping={"rmax": 3.0, "dmax": 5.0} if renorm else None,
            momentum=0.5,
        )
        for _ in range(2)
    )
    mask = ops.convert_to_tensor(np.arange(8) > 2) if masked else None
    x = data(8, 3).astype("float32") + 1
    expected = [to_numpy(eager(v, training=training, mask=mask)) for v in (x, x + 1)]

    if keras.config.backend() == "jax":
        trainable = [v.value for v in layer.trainable_variables]

        def f(state, x):
            return layer.stateless_call(
                trainable, state, x, training=training, mask=mask
            )

        run, counter = compiled(f)
        state, outputs = [v.value for v in layer.non_trainable_variables], []
        for value in (x, x + 1):
            y, state = run(state, ops.convert_to_tensor(value))
            outputs.append(to_numpy(y))
        moved = [to_numpy(v) for v in state]
    else:
        run, counter = compiled(lambda x: layer(x, training=training, mask=mask))
        outputs = [to_numpy(run(ops.convert_to_tensor(v))) for v in (x, x + 1)]
        moved = [to_numpy(v.value) for v in layer.non_trainable_variables]

    assert counter.traces == 1
    for y, other in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(y, other, rtol=1e-5, atol=1e-6)
    for value, name in zip(moved, statistics(eager), strict=True):
        np.testing.assert_allclose(value, statistics(eager)[name], rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_training_may_be_a_traced_tensor(training, masked):
    layer = built(momentum=0.5)
    x = data(8, 3).astype("float32") + 4
    # A mask that leaves out a channel as a whole.
    mask = np.broadcast_to([True, False, True], (8, 3)) if masked else None
    mask = ops.convert_to_tensor(mask) if masked else None

    def f(x, training):
        y, state = layer.stateless_call(
            [v.value for v in layer.trainable_variables],
            [v.value for v in layer.non_trainable_variables],
            x,
            training=training,
            mask=mask,
        )
        return y, state[0]

    run, _ = compiled(f)
    y, mean = run(ops.convert_to_tensor(x), ops.convert_to_tensor(training))

    other = built(momentum=0.5)
    expected = to_numpy(other(x, training=training, mask=mask))
    np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_numpy(mean), statistics(other)["moving_mean"])


@pytest.mark.parametrize("arguments", [{}, {"virtual_batch_size": 3, "renorm": True}])
@pytest.mark.parametrize("value", [True, False])
def test_a_traced_training_has_the_gradients_of_a_known_one(value, arguments):
    """Those of inference for False: nothing flows through the batch's statistics."""
    x, dy = data(2, 8, 3).astype("float32")
    found = []
    for training in (f"traced {value}", value):
        layer = built(momentum=0.5, **arguments)
        run = with_gradients(layer, training=training, how="compiled")
        results = run(*map(ops.convert_to_tensor, (x, dy)))
        found.append([*map(to_numpy, results.values()), *statistics(layer).values()])

    for traced, known in zip(*found, strict=True):
        np.testing.assert_allclose(traced, known, rtol=1e-5, atol=1e-5)
    if not value:
        np.testing.assert_allclose(found[0][1], dy / np.sqrt(1.001), rtol=1e-5)


def test_jit_compile_trains_a_model():
    x, y = data(64, 3).astype("float32") * 0.1 + 5000, data(64, 1).astype("float32")
    model = keras.Sequential([BatchNormalization(), keras.layers.Dense(1)])
    # Torch's code generator takes a minute: Dynamo alone runs in the test above.
    jit_compile = keras.config.backend() != "torch"
    model.compile("sgd", "mse", jit_compile=jit_compile)
    history = model.fit(x, y, batch_size=24, epochs=2, verbose=0)

    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize("renorm", [False, True])
def test_rematerialization_updates_the_statistics_once(renorm):
    x = data(16, 3).astype("float32") + 1
    plain, layer = (built(momentum=0.5, renorm=renorm) for _ in range(2))
    expected = one_step(plain, x, lambda f: f)
    found = one_step(layer, x, keras.remat)

    # Renorm's second pass finds r and d of statistics that have moved by one batch.
    tolerance = 0.02 if renorm else 1e-4
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    for name, value in statistics(plain).items():
        np.testing.assert_allclose(
            statistics(layer)[name], value, rtol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("mode", ["full", "larger_than"])
def test_a_remat_scope_trains_with_one_update_a_step(mode):
    """On JAX and TensorFlow a full scope breaks layers of Keras's, which it wraps."""
    x = data(16, 3).astype("float32") + 1
    with keras.RematScope(mode=mode, output_size_threshold=1):
        layer = BatchNormalization(momentum=0.5)
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    loss = model.fit(x, x, batch_size=16, epochs=2, verbose=0).history["loss"]

    assert loss[1] < loss[0]
    moved = statistics(layer)["moving_mean"]
    np.testing.assert_allclose(moved, x.mean(0) * 0.75, rtol=1e-5)


def test_each_call_of_a_shared_layer_updates_the_statistics():
    layer = built(momentum=0.5)
    x = np.ones((4, 3), "float32")
    layer(x, training=True)
    layer(x, training=True)

    np.testing.assert_allclose(statistics(layer)["moving_mean"], np.full(3, 0.75))
