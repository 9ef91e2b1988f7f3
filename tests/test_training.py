"""The layer inside models, under `fit`."""

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy

from keras_bnx import BatchNormalization


def table(rows=256, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, (x @ np.array([[1.0], [-2.0], [0.5], [0.0]])).astype("float32")


def test_a_column_of_5000_trains():
    x, y = table()
    x[:, 0] = 5000 + 0.1 * x[:, 0]
    model = keras.Sequential([BatchNormalization(momentum=0.5), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    loss = model.fit(x, y, epochs=8, batch_size=32, verbose=0).history["loss"]

    # The variance of y is 5.3; measured 0.2 to 0.5, what statistics of 32 rows leave.
    # Keras on PyTorch gives NaN.
    assert loss[-1] < 1.0
    # The initial 0 has weight 0.5**64 in the moving mean of 5000.
    assert model.evaluate(x, y, verbose=0) < 1.0


@pytest.mark.parametrize("rows", [33, 31])
def test_the_last_batch_of_one_row_is_harmless(rows):
    x, y = table(rows)
    model = keras.Sequential([BatchNormalization(momentum=0.0), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=32 if rows == 33 else 30, shuffle=False, verbose=0)

    variance = statistics(model.layers[0])["moving_variance"]
    expected = x[: 32 if rows == 33 else 30].var(0)
    np.testing.assert_allclose(variance, expected, rtol=1e-5)


def test_a_skipped_step_leaves_a_model_that_predicts():
    x, y = table()
    x[100, 2] = np.inf
    model = keras.Sequential(
        [
            BatchNormalization(dtype="mixed_float16"),
            keras.layers.Dense(8, activation="relu", dtype="mixed_float16"),
            BatchNormalization(dtype="mixed_float16"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
    good = np.delete(x, 100, axis=0)

    assert all(np.isfinite(to_numpy(w.value)).all() for w in model.weights)
    assert np.isfinite(model.predict(good, verbose=0)).all()


def test_masks_of_embeddings_reach_the_layer():
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]] * 4)
    model = keras.Sequential(
        [
            keras.layers.Embedding(6, 3, mask_zero=True),
            BatchNormalization(momentum=0.0),
            keras.layers.LSTM(2),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(tokens, np.zeros((8, 1)), batch_size=8, verbose=0)

    rows = to_numpy(model.layers[0].embeddings.value)[tokens[tokens > 0]]
    found = statistics(model.layers[1])
    np.testing.assert_allclose(found["moving_mean"], rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], rows.var(0), rtol=1e-4)


@pytest.mark.parametrize("static", [False, True])
def test_virtual_batches_of_masked_sequences_of_any_length_train(static):
    """There TensorFlow knows neither the length nor, often, the number of rows."""
    rng = np.random.default_rng(0)
    inputs = keras.Input(batch_shape=(8 if static else None, None, 3))
    h = keras.layers.Masking()(inputs)
    layer = BatchNormalization(virtual_batch_size=3, momentum=0.0)
    outputs = keras.layers.GlobalAveragePooling1D()(layer(h))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    for length in (5, 7):
        x = rng.normal(2.0, 3.0, (8, length, 3)).astype("float32")
        x[:, 4:] = 0.0
        model.train_on_batch(x, np.zeros((8, 3)))

        seen = x[:, :4].reshape(-1, 3)
        found = statistics(layer)
        np.testing.assert_allclose(found["moving_mean"], seen.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found["moving_variance"], seen.var(0), rtol=1e-5)


def test_propagated_masks_serve_4d_inputs():
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")
    x[:, 3:] = 0.0
    inputs = keras.Input((5, 6))
    h = keras.layers.Masking()(inputs)
    h = keras.layers.TimeDistributed(keras.layers.Reshape((3, 2)))(h)
    h = BatchNormalization(momentum=0.0)(h)
    # The mask would reach the loss, which knows masks of its own rank only.
    model = keras.Model(inputs, keras.layers.Flatten()(h))
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((4, 30)), batch_size=4, verbose=0)

    rows = x[:, :3].reshape(-1, 2)
    found = statistics(model.layers[-2])
    np.testing.assert_allclose(found["moving_mean"], rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], rows.var(0), rtol=1e-4)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_training_equals_keras(run_eagerly):
    x, y = table()
    results = []
    for cls in (keras.layers.BatchNormalization, BatchNormalization):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.layers.Dense(16, activation="relu"),
                cls(momentum=0.9),
                keras.layers.Dense(1),
            ]
        )
        model.compile("adam", "mse", run_eagerly=run_eagerly)
        model.fit(x, y, epochs=1, batch_size=64, shuffle=False, verbose=0)
        results.append([to_numpy(w.value) for w in model.weights])

    for theirs, ours in zip(*results, strict=True):
        # Four steps of Adam, whose first is a sign: rounding grows a little.
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
