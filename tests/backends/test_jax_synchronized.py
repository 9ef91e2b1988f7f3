"""Synchronized statistics under mixed precision, by `vmap` with a name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks import to_numpy
from tolerance import assert_near, kappa

from keras_bnx import BatchNormalization
from keras_bnx.reference import Arguments, State, batch_normalization


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_has_the_statistics_of_all_replicas(dtype):
    layer = BatchNormalization(
        momentum=0.5, synchronized=True, axis_name="r", dtype=f"mixed_{dtype}"
    )
    layer.build((None, 3))
    x = np.random.default_rng(0).normal(2.0, 1.0, (2, 8, 3))
    x[1] += 4.0
    x = np.round(x * 16) / 16  # which 16 bits hold
    trainable = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def run(x):
        return layer.stateless_call(trainable, others, x, training=True)

    y, moving = jax.vmap(run, axis_name="r")(jnp.asarray(x, dtype))
    rows = x.reshape(-1, 3)
    step = batch_normalization(
        rows, State(np.zeros(3), np.ones(3)), Arguments(momentum=0.5)
    )
    assert y.dtype == dtype
    y = to_numpy(y).reshape(-1, 3)
    assert_near(y, step.y, scale=kappa(rows), dtype=dtype)
    for found, name in zip(moving, ("moving_mean", "moving_variance"), strict=True):
        expected = np.stack([getattr(step.state, name)] * 2)
        assert_near(to_numpy(found), expected, scale=0.0, units=16.0)
