"""Models with other batch normalization, and the same weights."""

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy

from keras_bnx import BatchNormalization, convert, freeze
from keras_bnx.models import batch_normalizations

KERAS = keras.layers.BatchNormalization
X = np.random.default_rng(0).normal(3.0, 2.0, (16, 4, 3)).astype("float32")


def trained(cls, **arguments):
    """A Functional model with a Sequential one in it, and a shared layer."""
    shared = cls(name="shared", **arguments)
    inner = keras.Sequential(
        [keras.layers.Dense(5), cls(name="inner", **arguments)], name="nested"
    )
    inputs = keras.Input((4, 3))
    x = shared(keras.layers.Dense(3)(shared(inputs)))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(inner(x)))
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(np.random.default_rng(1).uniform(0.5, 1.5, weight.shape))
    model(X, training=True)
    return model


@pytest.mark.parametrize("first", [KERAS, BatchNormalization])
def test_there_and_back_keeps_all_but_the_arguments(first):
    model = trained(first, momentum=0.75)
    there = convert(model, synchronized=True)
    back = convert(there, synchronized=False)

    layers = batch_normalizations(there)
    assert {layer.name for layer in layers} == {"shared", "inner"}
    assert all(layer.synchronized is True for layer in layers)
    assert all(layer.momentum == 0.75 for layer in layers)
    assert not any(layer.synchronized for layer in batch_normalizations(back))
    for other in (there, back):
        assert all(type(la) is BatchNormalization for la in batch_normalizations(other))
        for a, b in zip(model.weights, other.weights, strict=True):
            # On its own, and not the same array.
            assert a is not b
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
        np.testing.assert_allclose(
            to_numpy(other(X)), to_numpy(model(X)), rtol=1e-5, atol=1e-5
        )
    before = to_numpy(model.get_layer("shared").moving_mean).copy()
    there(X, training=True)
    np.testing.assert_array_equal(
        to_numpy(model.get_layer("shared").moving_mean), before
    )


def test_options_start_from_the_moving_statistics():
    model = trained(KERAS)
    other = convert(model, renorm=True, debias_moving_statistics=True)

    found = statistics(other.get_layer("shared"))
    np.testing.assert_array_equal(found["renorm_mean"], found["moving_mean"])
    np.testing.assert_allclose(
        to_numpy(other(X)), to_numpy(model(X)), rtol=1e-5, atol=1e-5
    )


def test_what_averages_know_and_what_is_frozen_is_kept():
    model = trained(BatchNormalization, momentum=None)
    freeze(model, affine=False)
    other = convert(model, epsilon=0.5)

    for name in ("shared", "nested"):
        old, new = model.get_layer(name), other.get_layer(name)
        if name == "nested":
            old, new = old.get_layer("inner"), new.get_layer("inner")
        assert new.epsilon == 0.5 and new.frozen == ("statistics",)
        updates = statistics(old)["mean_updates"]
        assert updates.min() >= 1
        np.testing.assert_array_equal(statistics(new)["mean_updates"], updates)


def test_models_that_are_not_built_have_no_weights_to_copy():
    model = convert(keras.Sequential([keras.layers.Dense(2), KERAS()]), momentum=0.5)
    assert model(X).shape == (16, 4, 2)
    assert model.layers[1].momentum == 0.5


def test_what_cannot_be_converted_is_named():
    class Subclass(keras.Model):
        pass

    hidden = keras.Sequential(
        [keras.Input((4, 3)), keras.layers.TimeDistributed(KERAS(name="hidden"))]
    )
    with pytest.raises(ValueError, match="Subclass"):
        convert(Subclass())
    with pytest.raises(ValueError, match="hidden"):
        convert(hidden)
    with pytest.raises(ValueError, match="no batch normalization"):
        convert(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="momentum=2"):
        convert(trained(KERAS), momentum=2)
    with pytest.raises(ValueError, match="moment"):
        convert(trained(KERAS), moment=0.5)
