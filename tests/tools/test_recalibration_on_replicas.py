"""Recalibration where several replicas train one model, by each framework's engine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

X = np.random.default_rng(0).normal(3.0, 2.0, (100, 8)).astype("float32")
# Unequal, and of other numbers of batches.
SHARES = [X[:70], X[70:]]


def recalibrated(x):
    from keras_bnx import BatchNormalization, recalibrate

    layer = BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), layer])
    record = recalibrate(model, x, batch_size=20, verbose=0)
    moments = layer.moving_mean, layer.moving_variance
    return record, [keras.ops.convert_to_numpy(value) for value in moments]


def assert_of_all(moments):
    x = X.astype("float64")
    np.testing.assert_allclose(moments[0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments[1], x.var(0), rtol=1e-5)


def on_torch():
    folder = tempfile.mkdtemp()
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, folder, str(rank)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    for rank in range(2):
        found = np.load(Path(folder, f"{rank}.npz"))
        assert_of_all(found["moments"])
        # 70 rows are four batches of 20, 30 are two.
        assert found["samples"] == 100 and found["batches"] == 6
        # The other rank's data weren't finite.
        words = "ranks [1]" if rank == 0 else "aren't finite"
        assert words in str(found["error"])
        np.testing.assert_array_equal(found["after"], found["before"])


def rank_on_torch(folder, rank):
    from torch import distributed

    from keras_bnx import BatchNormalization, recalibrate

    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    record, moments = recalibrated(SHARES[rank])
    layer = BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), layer])
    before = [np.copy(value) for value in model.get_weights()]
    error = None
    try:
        recalibrate(model, SHARES[rank] if rank == 0 else X * np.nan, verbose=0)
    except (RuntimeError, ValueError) as raised:
        error = str(raised)
    np.savez(
        Path(folder, f"{rank}.npz"),
        moments=moments,
        samples=record.samples,
        batches=record.batches,
        error=error,
        before=before,
        after=model.get_weights(),
    )
    distributed.destroy_process_group()


def on_tensorflow():
    import tensorflow as tf

    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(devices) < 2:
        pytest.fail("The column's conftest makes two logical CPUs.")
    with tf.distribute.MirroredStrategy(devices[:2]).scope():
        _, inside = recalibrated(X)
    assert_of_all(inside)
    with tf.distribute.MirroredStrategy(devices[:2]).scope():
        from keras_bnx import BatchNormalization, recalibrate

        layer = BatchNormalization()
        model = keras.Sequential([keras.Input((8,)), layer])
    # As a callback of `fit` does it, outside of the strategy's scope.
    with recalibrate(model, X, verbose=0):
        for value in (layer.moving_mean.value, layer.moving_variance.value):
            first, second = (part.numpy() for part in value.values)
            np.testing.assert_array_equal(first, second)
        assert_of_all([layer.moving_mean.numpy(), layer.moving_variance.numpy()])
    np.testing.assert_array_equal(layer.moving_variance.numpy(), 1.0)


def on_jax():
    distribution = keras.distribution.DataParallel()
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(distribution)
    try:
        record, moments = recalibrated(X)
    finally:
        keras.distribution.set_distribution(before)
    assert_of_all(moments)
    assert record.samples == 100


def test_all_replicas_get_the_statistics_of_all():
    {"torch": on_torch, "tensorflow": on_tensorflow, "jax": on_jax}[
        keras.config.backend()
    ]()


if __name__ == "__main__":
    rank_on_torch(sys.argv[1], int(sys.argv[2]))
