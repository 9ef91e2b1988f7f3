"""What TensorFlow users do with a layer beyond `fit`."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from frameworks import statistics
from tolerance import assert_near

from keras_bnx import BatchNormalization, reference
from keras_bnx.backends import tensorflow as backend

X = np.random.default_rng(0).normal(2.0, 1.0, (8, 3)).astype("float32")


def built(**arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, 3))
    return layer


@pytest.fixture(scope="module")
def two_replicas():
    """A strategy over conftest's two logical CPUs; two of them would collide."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_unknown_sizes_and_empty_batches_at_run_time(jit_compile, axis):
    layer = BatchNormalization(axis=axis)
    shape = [None, None, None]
    shape[axis] = 3
    layer.build(shape)

    @tf.function(
        input_signature=[tf.TensorSpec(shape, tf.float32)], jit_compile=jit_compile
    )
    def run(x):
        return layer(x, training=True)

    for rows in (4, 2, 0, 3):
        size = [rows, 5, 5]
        size[axis] = 3
        x = np.random.default_rng(rows).normal(size=size).astype("float32")
        before = statistics(layer)
        y = run(x).numpy()
        assert y.shape == x.shape and np.isfinite(y).all()
        changed = (statistics(layer)["moving_mean"] != before["moving_mean"]).all()
        assert changed == (rows > 0)


@pytest.mark.parametrize("shape", [(5000, 3), (70, 3, 80), (2, 3, 50, 50), (4097, 1)])
def test_sums_are_accurate_and_differentiable(shape):
    axis = shape.index(3) if 3 in shape else 1
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    axes = tuple(i for i in range(len(shape)) if i != axis)
    t = tf.constant(x)
    with tf.GradientTape() as outer:
        outer.watch(t)
        with tf.GradientTape() as inner:
            inner.watch(t)
            total = backend.reduce_sum(t, axis=axes, keepdims=True)
            cube = tf.reduce_sum(total**3)
        gradient = inner.gradient(cube, t)
    second = outer.gradient(gradient, t)
    expected = x.astype(float).sum(axes, keepdims=True)
    count = x.size / 3 if 3 in shape else x.size

    assert_near(total.numpy(), expected, scale=0.0)
    ones = np.ones_like(x, "float64")
    assert_near(gradient.numpy(), 3 * expected**2 * ones, scale=0.0, units=16)
    assert_near(second.numpy(), 6 * expected * count * ones, scale=0.0, units=64)


@pytest.mark.parametrize("wrap", [tf.function, lambda f: f], ids=["graph", "eager"])
def test_recomputing_is_seen(wrap):
    seen = []

    @tf.recompute_grad
    def f(x):
        seen.append(backend.is_recomputing())
        return tf.sin(x)

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(f(x))
        return tape.gradient(y, x)

    step(tf.constant(X))
    assert seen == [False, True]


def test_remat_updates_once_when_eager():
    layer, plain = built(momentum=0.5), built(momentum=0.5)
    call = keras.remat(lambda x: layer(x, training=True))
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(call(x) ** 3)
    tape.gradient(y, x)
    plain(X, training=True)

    for name, value in statistics(plain).items():
        np.testing.assert_allclose(statistics(layer)[name], value, rtol=1e-6)


def test_saved_model_keeps_the_numbers(tmp_path):
    model = keras.Sequential([keras.Input((3,)), BatchNormalization()])
    model(X, training=True)
    model.export(tmp_path / "model", verbose=False)
    archive = tf.saved_model.load(tmp_path / "model")
    served = archive.serve(X)

    np.testing.assert_allclose(served, model.predict(X, verbose=0), rtol=1e-6)


def test_a_replica_without_rows_poisons_nobody(two_replicas):
    with two_replicas.scope():
        model = keras.Sequential(
            [keras.Input((3,)), BatchNormalization(), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(17, 3)).astype("float32")
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0)

    assert all(np.isfinite(w.numpy()).all() for w in model.weights)
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize("training", [True, False])
def test_ragged_tensors_are_normalized_by_what_they_hold(training):
    lengths = [3, 0, 5]
    ragged = tf.RaggedTensor.from_row_lengths(X, lengths)
    layer, flat = built(), built()
    y = layer(ragged, training=training)

    assert isinstance(y, tf.RaggedTensor)
    np.testing.assert_array_equal(y.row_lengths(), lengths)
    np.testing.assert_allclose(
        y.flat_values, flat(X, training=training), rtol=1e-5, atol=1e-6
    )
    for name, value in statistics(flat).items():
        np.testing.assert_allclose(statistics(layer)[name], value, rtol=1e-6)
    with pytest.raises(ValueError, match="ragged_rank=1"):
        BatchNormalization(axis=0)(ragged, training=True)


@pytest.mark.parametrize("rows", [2**21, None])
def test_two_million_rows_keep_their_digits(rows):
    """One chain of additions would leave the mean 3e-3 deviations off."""
    x = np.random.default_rng(0).standard_normal((2**21, 1), dtype="float32") + 0.5
    layer = BatchNormalization(momentum=0.0)
    layer.build(x.shape)
    spec = tf.TensorSpec((rows, 1), tf.float32)
    tf.function(
        lambda x: layer(x, training=True), input_signature=[spec], autograph=False
    )(x)

    mean, variance = x.mean(dtype="float64"), x.var(dtype="float64")
    np.testing.assert_allclose(layer.moving_mean, [mean], atol=2e-6)
    np.testing.assert_allclose(layer.moving_variance, [variance], rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("axis", "shape"), [(-1, (None, 3)), (1, (None, 3, 5))])
def test_one_trace_splits_batches_of_any_size(axis, shape, jit_compile):
    """As in `fit`: whole virtual batches only, with a rest, and a rest only."""
    arguments = {"axis": axis, "momentum": 0.5, "virtual_batch_size": 4}
    layer = BatchNormalization(**arguments)
    layer.build(shape)

    @tf.function(
        input_signature=[tf.TensorSpec(shape)] * 2,
        jit_compile=jit_compile,
        autograph=False,
    )
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x, dy)

    arguments = reference.Arguments(**arguments)
    for rows in (8, 10, 3, 4, 1):
        x, dy = np.random.default_rng(rows).normal(2.0, 3.0, (2, rows, *shape[1:]))
        x, dy = x.astype("float32"), dy.astype("float32")
        moving = {
            name: value.astype(float) for name, value in statistics(layer).items()
        }
        expected = reference.batch_normalization(
            x, reference.State(**moving), arguments
        )
        y, dx = step(x, dy)
        np.testing.assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
        wanted = reference.gradients(expected, dy, x)[0]
        np.testing.assert_allclose(dx, wanted, rtol=1e-4, atol=1e-5)
        for name, value in statistics(layer).items():
            np.testing.assert_allclose(
                value, getattr(expected.state, name), rtol=1e-5, atol=1e-6
            )


WORKER = """
import json, os, sys
import numpy as np
import keras, tensorflow as tf
from keras_bnx import BatchNormalization

strategy = tf.distribute.MultiWorkerMirroredStrategy()
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
with strategy.scope():
    layer = BatchNormalization(synchronized=True, momentum=0.0)
    layer.build((None, 3))
x = np.random.default_rng(rank).normal(1e3 * rank, 1.0, (4 + rank, 3))
run = tf.function(lambda x: strategy.run(lambda x: layer(x, training=True), (x,)))
y = run(tf.constant(x, "float32"))
np.savez(sys.argv[1] + f"/{rank}.npz", x=x, y=y, mean=layer.moving_mean)
"""


def test_workers_are_one_batch(tmp_path):
    """`MultiWorkerMirroredStrategy`: a process each, which talk over sockets."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    started = []
    for rank in range(2):
        task = {
            "cluster": {"worker": workers},
            "task": {"type": "worker", "index": rank},
        }
        path = os.pathsep.join(sys.path)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tmp_path)],
                env=os.environ | {"TF_CONFIG": json.dumps(task), "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert not any(process.returncode for process in started), outputs

    found = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    x = np.concatenate([f["x"].astype("float32") for f in found]).astype("float64")
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    y = np.concatenate([f["y"] for f in found])
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    for f in found:
        np.testing.assert_allclose(f["mean"], x.mean(0), rtol=1e-6)


@pytest.mark.parametrize("synchronized", [True, False])
def test_replicas_end_with_the_same_statistics_in_fit(two_replicas, synchronized):
    with two_replicas.scope():
        layer = BatchNormalization(synchronized=synchronized, momentum=0.0)
        model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    x[4:] += 100.0  # the second replica's
    model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0)

    for value, expected in (
        (layer.moving_mean, x.mean(0)),
        (layer.moving_variance, x.var(0)),
    ):
        for copy in two_replicas.experimental_local_results(value.value):
            np.testing.assert_allclose(copy, expected, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [100, None])
@pytest.mark.parametrize(("axis", "rank"), [(-1, 2), (-1, 4), (1, 3)])
def test_compiled_outputs_keep_their_digits(axis, rank, rows, training, jit_compile):
    """XLA takes the fused op for `x * a + b`, which is 3e-3 off here."""
    shape = [100, *[5] * (rank - 1)]
    x = np.random.default_rng(0).normal(1e5, 1.0, shape).astype("float32")
    arguments = reference.Arguments(axis=axis)
    layer = BatchNormalization(axis=axis)
    layer.build(shape)
    layer.moving_mean.assign(np.linspace(99999.0, 100001.0, 5))
    moving = {name: value.astype(float) for name, value in statistics(layer).items()}
    expected = reference.batch_normalization(
        x, reference.State(**moving), arguments, training=training
    )
    y = tf.function(
        lambda x: layer(x, training=training),
        input_signature=[tf.TensorSpec([rows, *shape[1:]])],
        jit_compile=jit_compile,
        autograph=False,
    )(x)

    np.testing.assert_allclose(y, expected.y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e25])
@pytest.mark.parametrize("run", ["eager", "graph", "xla"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_channel_without_statistics_has_the_gradient_of_inference(
    axis, masked, run, value
):
    """1e25 is finite, and its square isn't: the channel has no variance."""
    x = np.random.default_rng(0).normal(size=(6, 3, 3)).astype("float32")
    dy = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    channel = np.moveaxis(x, axis, -1)[..., 1]
    channel[2, 1] = value
    mask = np.ones((6, 3), bool) if masked else None
    layer = BatchNormalization(axis=axis)
    layer.build(x.shape)
    layer.moving_variance.assign([4.0, 4.0, 4.0])

    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return tape.gradient(y, [x, layer.beta.value, layer.gamma.value], dy)

    if run != "eager":
        step = tf.function(step, jit_compile=run == "xla", autograph=False)
    dx, dbeta, dgamma = step(tf.constant(x), tf.constant(dy))
    dx = np.moveaxis(dx.numpy(), axis, -1)[..., 1]
    expected = np.moveaxis(dy, axis, -1)[..., 1] / np.sqrt(4.0 + 1e-3)

    finite = np.isfinite(channel)
    np.testing.assert_allclose(dx[finite], expected[finite], rtol=1e-6)
    np.testing.assert_allclose(
        dbeta, np.moveaxis(dy, axis, -1).sum((0, 1)), rtol=1e-5, atol=1e-6
    )
    # So that the optimizer of a scaled loss leaves the step out.
    assert np.isfinite(dgamma[1]) == finite.all()


@pytest.mark.parametrize("known", ["inputs", "mask", "neither"])
@pytest.mark.parametrize("rows", [8, 1])
def test_virtual_batches_meet_masks_where_one_of_the_sizes_is_known(known, rows):
    layer, eager = (
        BatchNormalization(virtual_batch_size=3, momentum=0.0) for _ in range(2)
    )
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(8, 4, 3)).astype("float32"))
    mask = tf.constant(rng.uniform(size=(rows, 4)) > 0.3)
    sizes = (8, 4, 3) if known == "inputs" else (None, None, 3)
    mask_sizes = (rows, 4) if known == "mask" else (None, None)

    @tf.function(
        input_signature=[
            tf.TensorSpec(sizes, tf.float32),
            tf.TensorSpec(mask_sizes, tf.bool),
        ]
    )
    def run(x, mask):
        return layer(x, training=True, mask=mask)

    y, expected = run(x, mask), eager(x, training=True, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for name, value in statistics(eager).items():
        np.testing.assert_allclose(statistics(layer)[name], value, rtol=1e-5)
