"""What README says of the layer under Keras's own machinery."""

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy

from keras_bnx import BatchNormalization


@pytest.mark.parametrize("k", [2, 4])
def test_accumulated_gradients_keep_the_time_constant(k):
    """`momentum=0.99 ** (1 / k)`: after k micro-batches the old values weigh 0.99."""
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (8 * k, 5, 3)).astype("float32")
    rows = x.reshape(-1, 3)
    layer = BatchNormalization(momentum=0.99 ** (1 / k))
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=k), "mse")
    gamma = to_numpy(layer.gamma).copy()
    model.fit(rows, rows[:, :1], batch_size=5, shuffle=False, verbose=0)

    # The closed form: each micro-batch decays by 0.99 in k steps; 8 of these.
    x = x.astype("float64")
    age = np.arange(8 * k)[::-1, None]
    weights = 0.99 ** (age / k) * (1 - 0.99 ** (1 / k))
    found = statistics(layer)
    np.testing.assert_allclose(
        found["moving_mean"], (weights * x.mean(1)).sum(0), rtol=1e-5
    )
    np.testing.assert_allclose(
        found["moving_variance"], 0.99**8 + (weights * x.var(1)).sum(0), rtol=1e-5
    )
    # As many updates as groups of k, so that Keras did accumulate.
    assert int(model.optimizer.iterations) == 8
    assert (to_numpy(layer.gamma) != gamma).any()


def test_time_distributed_is_a_step_of_its_own_for_each_time():
    x = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("float32")
    x = (x + 10.0 * np.arange(4)[:, None]).astype("float32")
    layer = BatchNormalization(momentum=0.5, epsilon=1e-6)
    y = to_numpy(keras.layers.TimeDistributed(layer)(x, training=True))

    x = x.astype("float64")
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    mean, variance = np.zeros(3), np.ones(3)
    for time in range(4):
        mean = (mean + x[:, time].mean(0)) / 2
        variance = (variance + x[:, time].var(0)) / 2
    found = statistics(layer)
    np.testing.assert_allclose(found["moving_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(found["moving_variance"], variance, rtol=1e-5)


def test_without_time_distributed_there_is_one_set_of_statistics():
    x = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("float32")
    x = (x + 10.0 * np.arange(4)[:, None]).astype("float32")
    layer = BatchNormalization(momentum=0.5)
    layer(x, training=True)

    wanted = x.astype("float64").mean((0, 1)) / 2
    np.testing.assert_allclose(statistics(layer)["moving_mean"], wanted, rtol=1e-5)
