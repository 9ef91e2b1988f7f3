"""What batch normalizations see while a model runs, against NumPy."""

import keras
import numpy as np
import pytest
from networks import BOTH, KERAS, X, chain, inputs_of_normalizations

from keras_bnx import BatchNormalization
from keras_bnx.tools.observation import Population, observe


def test_a_population_is_that_of_all_its_parts():
    rng = np.random.default_rng(0)
    x = rng.normal(5000.0, 0.1, (100, 3))
    population = Population(3)
    for part in (x[:1], x[1:50], x[50:50], x[50:]):
        n = np.full(3, float(len(part)))
        mean, variance = (part.mean(0), part.var(0)) if len(part) else np.zeros((2, 3))
        population.add(n, n, mean, variance)

    np.testing.assert_allclose(population.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(population.variance, x.var(0), rtol=1e-9)
    np.testing.assert_allclose(population.unbiased_variance, x.var(0, ddof=1), 1e-9)
    np.testing.assert_array_equal(population.size, 100)


def test_a_population_leaves_out_what_is_not_finite():
    population = Population(2)
    one = np.ones(2)
    population.add(4 * one, 4 * one, np.array([2.0, np.nan]), np.array([3.0, np.nan]))
    population.add(4 * one, 4 * one, 4 * one, 3 * one)

    np.testing.assert_array_equal(population.count, [8, 4])
    np.testing.assert_array_equal(population.mean, [3.0, 4.0])
    np.testing.assert_array_equal(population.variance, [4.0, 3.0])


@pytest.mark.parametrize("cls", BOTH)
def test_layers_see_what_layers_that_normalize_by_the_batch_give(cls):
    model = chain(cls)
    seen = observe(model, X, batch_size=32, verbose=0)

    expected = inputs_of_normalizations(model, [X[i : i + 32] for i in (0, 32, 64, 96)])
    assert (seen.samples, seen.batches) == (100, 4)
    assert [layer.name for layer in seen.layers] == ["first", "second"]
    for what, values in zip(seen.layers.values(), expected, strict=True):
        # Float32 through a network, whose sums have 8 terms.
        np.testing.assert_allclose(
            what.population.mean, values.mean(0), rtol=0, atol=1e-6 * values.std()
        )
        np.testing.assert_allclose(what.population.variance, values.var(0), rtol=1e-5)
        assert (what.calls, what.updates, what.sizes) == (4, 4, [32, 32, 32, 4])


def test_a_shared_layer_sees_all_of_its_calls():
    inputs = keras.Input((3,))
    shared = BatchNormalization()
    both = keras.layers.Concatenate()([shared(inputs), shared(10.0 + inputs)])
    what = observe(keras.Model(inputs, both), X[:, :3], verbose=0).layers[shared]

    x = X[:, :3].astype("float64")
    joined = np.concatenate([x, x + 10.0])
    np.testing.assert_allclose(what.population.mean, joined.mean(0), rtol=1e-6)
    np.testing.assert_allclose(what.population.variance, joined.var(0), rtol=1e-5)
    assert what.calls == 8 and set(what.sizes) == {32, 4}


@pytest.mark.parametrize("cls", BOTH)
def test_a_mask_counts(cls):
    x = np.arange(24.0).reshape(2, 4, 3).astype("float32")
    x[0, 2:] = -1.0
    layer = cls()
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Masking(-1.0), layer])
    what = observe(model, x, verbose=0).layers[layer]

    seen = np.concatenate([x[0, :2], x[1]]).astype("float64")
    np.testing.assert_allclose(what.population.mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(what.population.variance, seen.var(0), rtol=1e-6)
    assert what.masked and what.sizes == [6]


def test_several_channel_axes_are_channels_each():
    x = np.random.default_rng(1).normal(size=(50, 2, 4, 3)).astype("float32")
    layer = BatchNormalization(axis=[1, 3])
    model = keras.Sequential([keras.Input((2, 4, 3)), layer])
    population = observe(model, x, verbose=0).layers[layer].population

    expected = x.astype("float64").mean((0, 2)).reshape(-1)
    np.testing.assert_allclose(population.mean, expected, rtol=0, atol=1e-6)


def test_other_layers_are_in_inference_and_frozen_ones_stay():
    frozen = BatchNormalization(name="frozen", trainable=False)
    after = BatchNormalization(name="after")
    layers = [keras.Input((8,)), frozen, keras.layers.Dropout(0.9), after]
    seen = observe(keras.Sequential(layers), X, verbose=0)

    # Moving statistics 0 and 1, and nothing dropped.
    expected = X.astype("float64").var(0) / (1.0 + frozen.epsilon)
    np.testing.assert_allclose(
        seen.layers[after].population.variance, expected, rtol=1e-5
    )
    assert seen.layers[frozen].calls == 4


@pytest.mark.parametrize("cls", BOTH)
def test_what_is_not_finite_is_marked_and_leaves_the_rest(cls):
    x = X.copy()
    x[40, 2] = np.inf
    layer = cls()
    model = keras.Sequential([keras.Input((8,)), layer])
    what = observe(model, x, batch_size=20, verbose=0).layers[layer]

    assert what.not_finite == [2]
    clean = np.delete(X[:, 2].astype("float64"), np.s_[40:60])
    np.testing.assert_allclose(what.population.mean[2], clean.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        what.population.mean[1], X[:, 1].mean(dtype="float64"), rtol=1e-5
    )


def test_a_layer_that_is_told_to_train_in_inference_is_noticed():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.quiet, self.loud = BatchNormalization(), KERAS()

        def call(self, x):
            return self.loud(self.quiet(x), training=True)

    model = Model()
    model(X)
    layers = observe(model, X, verbose=0).layers

    assert layers[model.loud].told_to_train
    assert not layers[model.quiet].told_to_train


@pytest.mark.parametrize("cls", BOTH)
def test_nothing_of_the_model_changes(cls):
    model = chain(cls)
    before = [np.copy(w) for w in model.get_weights()]
    observe(model, X, verbose=0)
    with pytest.raises(ValueError, match="batch 1, counted from 0"):
        x = np.where(np.arange(100)[:, None] == 40, np.nan, X)
        observe(model, x, verbose=0, finite=True)

    assert not any("call" in vars(layer) for layer in model.layers)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layer_in_a_compiled_loop_is_refused():
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.state_size, self.norm = 3, BatchNormalization()

        def build(self, shape):
            self.norm.build(shape)

        def call(self, inputs, states, training=None):
            return self.norm(inputs), states

    model = keras.Sequential([keras.Input((4, 3)), keras.layers.RNN(Cell())])
    x = np.ones((2, 4, 3), "float32")
    if keras.config.backend() == "jax":
        with pytest.raises(ValueError, match="inside of a compiled loop"):
            observe(model, x, verbose=0)
    else:
        # PyTorch's loop calls its cell once more, for the shape of its outputs.
        layer = model.layers[0].cell.norm
        assert observe(model, x, verbose=0).layers[layer].calls in (4, 5)
