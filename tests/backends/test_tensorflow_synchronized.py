"""Synchronized statistics under mixed precision, by a `MirroredStrategy`."""

import numpy as np
import pytest
import tensorflow as tf
from tolerance import assert_near

from keras_bnx import BatchNormalization
from keras_bnx.reference import Arguments, State, batch_normalization


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_has_the_statistics_of_all_replicas(dtype):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = BatchNormalization(
            momentum=0.5, synchronized=True, dtype=f"mixed_{dtype}"
        )
        layer.build((None, 3))
    x = np.random.default_rng(0).normal(2.0, 1.0, (2, 8, 3))
    x[1] += 4.0
    x = np.round(x * 16) / 16  # which 16 bits hold
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: tf.cast(x[context.replica_id_in_sync_group], dtype)
    )

    @tf.function
    def run(parts):
        return strategy.run(lambda x: layer(x, training=True), (parts,))

    results = strategy.experimental_local_results(run(parts))
    step = batch_normalization(
        x.reshape(-1, 3), State(np.zeros(3), np.ones(3)), Arguments(momentum=0.5)
    )
    for y, expected in zip(results, step.y.reshape(x.shape), strict=True):
        assert y.dtype == dtype
        y = tf.cast(y, "float32").numpy()
        # |x| / std is below 6.
        assert_near(y, expected, scale=6.0, dtype=dtype)
    for name in ("moving_mean", "moving_variance"):
        expected = getattr(step.state, name)
        for copy in strategy.experimental_local_results(getattr(layer, name).value):
            assert_near(copy.numpy(), expected, scale=0.0, units=16.0)
