"""Statistics and affine part frozen apart, in any model, under `fit`."""

import keras
import numpy as np
import pytest
from frameworks import to_numpy

from keras_bnx import BatchNormalization, freeze, unfreeze

KERAS = keras.layers.BatchNormalization
X = np.random.default_rng(0).normal(5.0, 2.0, (32, 3)).astype("float32")
Y = np.zeros((32, 2), "float32")


class Block(keras.layers.Layer):
    """A layer that hides its normalization in a dictionary of lists."""

    def __init__(self, cls, **kwargs):
        super().__init__(**kwargs)
        self.parts = {"norms": [cls(momentum=0.5, name="hidden")]}

    def build(self, input_shape):
        self.parts["norms"][0].build(input_shape)

    def call(self, x):
        return self.parts["norms"][0](x)


def model_of(cls=BatchNormalization):
    """A functional model with a nested sequential one, and a block."""
    inner = keras.Sequential([keras.Input((3,)), cls(momentum=0.5, name="bn")])
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(Block(cls)(inner(inputs)))
    return keras.Model(inputs, outputs)


def norms(model):
    return [model.layers[1].layers[0], model.layers[2].parts["norms"][0]]


def moved_by_fit(model):
    """Which weights of the normalizations `fit` moves."""
    before = [[to_numpy(w) for w in layer.weights] for layer in norms(model)]
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    model.fit(X, Y, epochs=2, verbose=0)
    return [
        [
            not np.array_equal(a, to_numpy(b))
            for a, b in zip(old, la.weights, strict=True)
        ]
        for old, la in zip(before, norms(model), strict=True)
    ]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_each_half_is_frozen_under_fit_and_thawed(statistics, affine):
    model = model_of()
    freeze(model, statistics=statistics, affine=affine)
    # Keras's own switch, turned off and on, must not thaw anything.
    model.trainable = False
    model.trainable = True

    moved = [not affine] * 2 + [not statistics] * 2
    assert moved_by_fit(model) == [moved, moved]

    with pytest.warns(UserWarning, match="compile"):
        unfreeze(model)
    assert moved_by_fit(model) == [[True] * 4] * 2


def test_frozen_statistics_normalize_in_training():
    model = model_of()
    freeze(model, affine=False)
    y = to_numpy(norms(model)[0](X, training=True))

    np.testing.assert_allclose(y, X / np.sqrt(1.001), rtol=1e-6)


def test_keras_layers_are_frozen_as_a_whole():
    model = model_of(KERAS)
    for half in ({"statistics": False}, {"affine": False}):
        with pytest.raises(ValueError, match=r"False.*'(bn|hidden)'"):
            freeze(model, **half)
        assert all(layer.trainable for layer in norms(model))
    freeze(model)
    assert moved_by_fit(model) == [[False] * 4] * 2
    with pytest.warns(UserWarning, match="compile"):
        unfreeze(model)
    assert moved_by_fit(model) == [[True] * 4] * 2


def test_a_model_without_normalization_is_refused():
    with pytest.raises(ValueError, match="no batch normalization"):
        freeze(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))


def test_a_compiled_model_says_what_has_to_be_done():
    model = model_of()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"model\.compile"):
        freeze(model)
    assert norms(model)[0].frozen == ("statistics", "affine")
    assert len(model.trainable_weights) == 2


def test_clones_and_configs_are_frozen_alike():
    model = model_of()
    freeze(model, statistics=True, affine=False)
    layer = BatchNormalization.from_config(norms(model)[0].get_config())

    assert layer.frozen == ("statistics",)
    assert "frozen" not in BatchNormalization().get_config()
