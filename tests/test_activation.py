"""The argument `activation`: outputs, gradients, what is kept, files.

Its second order is in `test_derivatives.py`.
"""

import functools

import keras
import numpy as np
import pytest
from combinations import Combination, check
from frameworks import (
    functional,
    statistics,
    tensor_gradients,
    to_numpy,
    with_gradients,
)
from keras import layers, ops

from benchmarks import frameworks
from keras_bnx import BatchNormalization
from keras_bnx.ops.activations import recognize
from keras_bnx.reference import ACTIVATIONS

BACKEND = keras.config.backend()
HOW = "compiled" if BACKEND == "jax" else "eager"
X = np.random.default_rng(0).normal(1.0, 2.0, (16, 3)).astype("float32")


@pytest.mark.parametrize("shape", [(16, 3), (3000, 3)], ids=["few", "many"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_the_oracles(name, shape):
    check(Combination(shape=shape, arguments={"activation": name}, how=HOW))


@pytest.mark.parametrize(
    "combination",
    [
        Combination(shape=(40, 3, 50), axis=1),
        Combination(shape=(40, 50, 3), ratio=1e4),
        Combination(shape=(1030, 3), ratio=1e4),
        Combination(shape=(8, 4, 3), mask=(8, 4), mask_kind="poison"),
        Combination(shape=(8, 4, 3), mask=(8, 4), mask_kind="weights"),
        Combination(shape=(8, 3), training=False),
        Combination(shape=(8, 3), frozen="statistics"),
        Combination(shape=(8, 3), bad=np.inf),
        Combination(shape=(0, 3)),
        Combination(shape=(1, 3)),
        Combination(shape=(8, 3), training="traced False", how="compiled"),
        Combination(shape=(8, 3), how="unknown"),
        Combination(shape=(7, 4, 5), axis=(1, 2), layout="permuted"),
        Combination(shape=(10, 3), dtype="float16", policy="mixed_float16"),
        Combination(shape=(3000, 3), dtype="bfloat16", policy="mixed_bfloat16"),
        Combination(shape=(10, 3), dtype="float64", policy="float64"),
        Combination(shape=(10, 3), arguments={"virtual_batch_size": 4}),
        Combination(shape=(1024, 256), arguments={"virtual_batch_size": 512}),
        Combination(shape=(10, 3), arguments={"renorm": True}, calls=2),
        Combination(shape=(10, 3), arguments={"scale": False, "center": False}),
        Combination(shape=(10, 3), implementation="generic"),
        Combination(shape=(8, 3), saved=True),
    ],
    ids=repr,
)
def test_it_meets_every_other_option(combination):
    combination.arguments["activation"] = "silu"
    check(combination)


@pytest.mark.parametrize(
    ("name", "kink"),
    [
        ("relu", 0.0),
        ("relu6", 0.0),
        ("relu6", 6.0),
        ("leaky_relu", 0.0),
        ("elu", 0.0),
        ("hard_sigmoid", -3.0),
        ("hard_sigmoid", 3.0),
        ("hard_silu", -3.0),
        ("hard_silu", 3.0),
    ],
)
def test_the_gradient_beside_a_kink_is_that_of_its_side(name, kink):
    layer = BatchNormalization(activation=name)
    layer.build((None, 3))
    layer.moving_variance.assign(1.0 - layer.epsilon * np.ones(3))
    z = np.repeat([[kink - 1e-3], [kink + 1e-3]], 3, axis=1).astype("float32")
    run = with_gradients(layer, training=False, how=HOW)
    dx = run(ops.convert_to_tensor(z), ops.ones((2, 3)))["dx"]
    np.testing.assert_allclose(to_numpy(dx), ACTIVATIONS[name][1](z), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gradient_is_that_of_finite_differences(name, training, float64):
    layer = BatchNormalization(activation=name, dtype="float64")
    layer.build((None, 3))
    x, dy, direction = np.random.default_rng(3).normal(size=(3, 9, 3))
    step = 1e-6

    def total(x):
        y = functional(layer, training=training)(ops.convert_to_tensor(x))
        return ops.sum(ops.convert_to_tensor(dy) * y)

    (dx,) = tensor_gradients(total, ops.convert_to_tensor(x))
    ends = [to_numpy(total(x + sign * step * direction)) for sign in (-1, 1)]
    expected = (ends[1] - ends[0]) / (2 * step)
    np.testing.assert_allclose(np.sum(to_numpy(dx) * direction), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(64, 16), (64, 10, 10, 16), (600, 4, 4, 16)], ids=str
)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_more_than_the_inputs_is_kept(name, shape):
    """And on TensorFlow outputs, which what comes behind keeps, too."""
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape), "float32")
    layer = BatchNormalization(activation=name)
    subject = frameworks.active().keras_layer(layer, shape)
    kept = frameworks.active().bytes_kept(subject, x) - 20 * 16 * 4
    outputs = BACKEND == "tensorflow" and not recognize(layer.activation).needs_inputs
    assert kept / (4 * np.prod(shape)) <= (2.0 if outputs else 1.0)


def test_a_layer_behind_keeps_more():
    shape = (64, 10, 10, 16)

    class Two(BatchNormalization):
        def call(self, *args, **kwargs):
            return ops.gelu(super().call(*args, **kwargs))

    subject = frameworks.active().keras_layer(Two(), shape)
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape), "float32")
    assert frameworks.active().bytes_kept(subject, x) > 1.9 * 4 * np.prod(shape)


def softened(x):
    return x / (1.0 + ops.abs(x))


class Scaled:
    """A callable object, with a state."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x

    def get_config(self):
        return {"factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "activation",
    [
        "softmax",
        "celu",
        softened,
        Scaled(2.0),
        layers.Softmax(),
        functools.partial(keras.activations.elu, alpha=0.5),
    ],
    ids=["softmax", "celu", "function", "object", "layer", "partial"],
)
def test_any_other_callable_is_what_a_layer_behind_would_be(activation, training):
    found = {}
    for one in (True, False):
        layer = BatchNormalization(
            activation=activation if one else None, virtual_batch_size=5
        )
        layer.build(X.shape)
        function = keras.activations.get(None if one else activation)

        def loss(x, layer=layer, function=function):
            y = function(functional(layer, training=training)(x))
            return ops.sum(y * ops.convert_to_tensor(np.cos(X)))

        y = function(layer(X, training=training))
        (dx,) = tensor_gradients(loss, ops.convert_to_tensor(X))
        found[one] = [to_numpy(y), to_numpy(dx), *statistics(layer).values()]
    for a, b in zip(found[True], found[False], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_activation_that_trains_does():
    layer = BatchNormalization(activation=layers.PReLU())
    model = keras.Sequential([keras.Input((3,)), layer, layers.Dense(1)])
    model.compile("sgd", "mse")
    before = to_numpy(layer.activation.alpha)
    model.fit(X, np.ones(len(X)), verbose=0)
    assert (to_numpy(layer.activation.alpha) != before).all()


def test_an_activation_has_to_keep_the_shape_and_no_statistics_are_lost():
    layer = BatchNormalization(activation="glu")
    x = np.ones((4, 6), "float32")
    layer.build(x.shape)
    before = statistics(layer)
    with pytest.raises(
        ValueError, match=r"has to keep the shape.*\(4, 3\) of \(4, 6\)"
    ):
        layer(x, training=True)
    for name, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_it_may_be_set_later():
    layer = BatchNormalization(activation="relu")
    layer.activation = keras.activations.tanh
    np.testing.assert_allclose(
        to_numpy(layer(X)), np.tanh(to_numpy(BatchNormalization()(X))), rtol=1e-5
    )


def test_what_is_no_activation_is_refused():
    with pytest.raises(ValueError, match="12"):
        BatchNormalization(activation=12)
    with pytest.raises(ValueError, match="unheard"):
        BatchNormalization(activation="unheard_of")


def test_a_plain_layer_has_no_activation_in_its_config():
    assert "activation" not in BatchNormalization().get_config()
    assert "activation" not in BatchNormalization(activation="linear").get_config()
    assert BatchNormalization(activation="relu").get_config()["activation"] == "relu"


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize(
    "activation",
    [
        "silu",
        layers.LeakyReLU(0.3, name="leaky"),
        layers.PReLU(),
        softened,
        Scaled(3.0),
    ],
    ids=["name", "layer", "weights", "function", "object"],
)
def test_it_is_stored(activation, suffix, tmp_path):
    layer = BatchNormalization(activation=activation, name="bn")
    model = keras.Sequential([keras.Input((3,)), layer])
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    with keras.utils.custom_object_scope({"softened": softened, "Scaled": Scaled}):
        model.save(tmp_path / f"model.{suffix}")
        other = keras.models.load_model(tmp_path / f"model.{suffix}")
    assert type(other.layers[0].activation) is type(layer.activation)
    np.testing.assert_array_equal(
        to_numpy(other(X, training=False)), to_numpy(model(X, training=False))
    )


def test_weights_are_exchanged_with_a_layer_without(tmp_path):
    models = [
        keras.Sequential([keras.Input((3,)), BatchNormalization(activation=a)])
        for a in ("relu", None)
    ]
    models[0](X, training=True)
    models[0].save_weights(tmp_path / "a.weights.h5")
    models[1].load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(
        to_numpy(models[0](X)), np.maximum(to_numpy(models[1](X)), 0.0), rtol=1e-6
    )
