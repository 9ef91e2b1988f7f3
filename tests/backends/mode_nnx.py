"""Keras on Flax's NNX (`KERAS_NNX_ENABLED`), where layers are `nnx.Module`s.

Run by `test_jax_modes.py`, in a process of its own.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from keras_bnx import BatchNormalization
from keras_bnx.reference import Arguments, State, batch_normalization, gradients

X = np.random.default_rng(0).normal(3.0, 2.0, (16, 4)).astype("float32")
OPTIONS = pytest.mark.parametrize(
    "arguments",
    [
        {},
        {
            "renorm": True,
            "debias_moving_statistics": True,
            "virtual_batch_size": 5,
        },
    ],
    ids=["plain", "all"],
)


def expected(arguments):
    layer = BatchNormalization(momentum=0.5, **arguments)
    same = Arguments(momentum=0.5, **arguments)
    return layer, batch_normalization(X, State(np.zeros(4), np.ones(4)), same)


def assert_updated(layer, step):
    for name in ("moving_mean", "moving_variance"):
        wanted = getattr(step.state, name)
        np.testing.assert_allclose(getattr(layer, name).value, wanted, rtol=1e-5)
    if layer.renorm:
        np.testing.assert_allclose(
            layer.history.debiased_mean.value, X.mean(0), rtol=1e-5
        )


def test_the_mode_is_on():
    assert isinstance(BatchNormalization(), nnx.Module)


@OPTIONS
def test_fit_updates_the_statistics_and_files_keep_them(arguments, tmp_path):
    layer, step = expected(arguments)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :2], batch_size=16, verbose=0)

    # Of the whole batch, however it was shuffled into virtual ones.
    assert_updated(layer, step)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0)
    )


@OPTIONS
@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_nnx_differentiates_and_updates_the_statistics(arguments, transform):
    layer, step = expected(arguments)
    layer.build(X.shape)
    trainable = nnx.All(keras.Variable, lambda path, value: value.trainable)
    dy = np.random.default_rng(1).normal(size=X.shape).astype("float32")

    @transform
    def run(layer, x):
        def loss(layer, x):
            return jnp.sum(layer(x, training=True) * dy)

        return nnx.grad(loss, argnums=(nnx.DiffState(0, trainable), 1))(layer, x)

    found, dx = run(layer, jnp.asarray(X))
    found = (dx, *jax.tree.leaves(found))
    for value, wanted in zip(found, gradients(step, dy, X), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    assert_updated(layer, step)
