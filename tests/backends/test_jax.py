"""What JAX users do with a layer beyond `fit`."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from keras_bnx import BatchNormalization, force_implementation
from keras_bnx.backends import jax as backend
from keras_bnx.reference import Arguments, State, batch_normalization

X = np.random.default_rng(0).normal(2.0, 1.0, (8, 3)).astype("float32")


def function(training=True, **arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, 3))
    state = [v.value for v in layer.non_trainable_variables]

    def f(gamma, beta, x):
        return layer.stateless_call([gamma, beta], state, x, training=training)

    return f


G, B = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("renorm", [True, False])
def test_forward_mode_is_reverse_mode(training, renorm):
    f = function(training, renorm=renorm)
    tangents = jax.tree.map(lambda v: jnp.cos(7 * v + 1), (G, B, jnp.array(X)))
    dy = jnp.sin(5 * X)

    def g(*args):
        return jnp.sum(f(*args)[0] * dy)

    _, forward = jax.jvp(g, (G, B, X), tangents)
    reverse = jax.grad(g, (0, 1, 2))(G, B, jnp.array(X))
    expected = sum(jnp.sum(a * b) for a, b in zip(reverse, tangents, strict=True))
    np.testing.assert_allclose(forward, expected, rtol=1e-4)


def test_hessians_are_symmetric_and_finite():
    f = function()
    x = jnp.array(X[:4])

    def loss(x):
        return jnp.sum(f(G, B, x)[0] ** 3)

    hessian = jax.hessian(loss)(x).reshape(12, 12)
    assert np.isfinite(hessian).all() and np.abs(hessian).max() > 0.1
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-5, atol=1e-4)
    # Adding a constant to a channel changes nothing.
    ones = np.tile(np.eye(3), (4, 1))
    np.testing.assert_allclose(hessian @ ones, 0, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_inputs_gives_each_its_own_statistics(training):
    f = function(training, momentum=0.0)
    xs = np.stack([X, 2 * X + 1])
    y, state = jax.vmap(lambda x: f(G, B, x))(xs)

    for i, x in enumerate(xs):
        step = batch_normalization(
            x,
            State(np.zeros(3), np.ones(3)),
            Arguments(gamma=np.array(G), momentum=0.0),
            training=training,
        )
        np.testing.assert_allclose(y[i], step.y, rtol=1e-5, atol=1e-5)
        mean = np.broadcast_to(state[0], (2, 3))[i]
        np.testing.assert_allclose(mean, step.state.moving_mean, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_gamma_and_beta(training):
    f = function(training)
    gammas, betas = jnp.stack([G, 2 * G]), jnp.stack([B, B + 1])
    ys = jax.vmap(lambda g, b: f(g, b, X)[0])(gammas, betas)

    for y, g, b in zip(ys, gammas, betas, strict=True):
        np.testing.assert_allclose(y, f(g, b, X)[0], rtol=1e-5, atol=1e-5)


def test_remat_keeps_gradients_and_one_update():
    f = function(momentum=0.5)

    def loss(f, x):
        y, state = f(G, B, x)
        return jnp.sum(y**3), state

    results = [
        jax.grad(lambda x, f=f: loss(f, x), has_aux=True)(jnp.array(X))
        for f in (f, jax.checkpoint(f))
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["native", "generic"])
@pytest.mark.parametrize(
    "kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]
)
def test_sharded_arrays_are_one_batch(kind, implementation):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    sharding = jax.NamedSharding(mesh, jax.P("batch"))
    f = jax.jit(function())
    with force_implementation(implementation):
        y, state = f(G, B, jax.device_put(X, sharding))
    expected, expected_state = function()(G, B, X)

    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state[0], expected_state[0], rtol=1e-5)


def test_traced_values_are_known():
    seen = []
    jax.jit(lambda v: seen.append(backend.is_traced(v)))(True)

    assert seen == [True]
    assert not backend.is_traced(jnp.array(True)) and not backend.is_traced(True)


@pytest.mark.parametrize("synchronized", [True, False])
def test_data_parallel_statistics_are_global_by_nature(synchronized):
    """`keras.distribution`: sums of sharded arrays are those of all devices."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    x[4:] += 100.0  # the second device's
    devices = keras.distribution.list_devices("cpu")[:2]
    assert len(devices) == 2
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    try:
        layer = BatchNormalization(synchronized=synchronized, momentum=0.0)
        model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0)
    finally:
        keras.distribution.set_distribution(None)

    np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.var(0), rtol=1e-5)


@pytest.mark.parametrize("mapped", [jax.vmap, jax.pmap])
def test_a_named_axis_is_that_of_the_replicas(mapped):
    layer = BatchNormalization(synchronized=True, axis_name="i", momentum=0.0)
    layer.build((None, 3))
    trainable = [v.value for v in layer.trainable_variables]
    state = [v.value for v in layer.non_trainable_variables]
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    x[1] += 100.0

    def step(x):
        return layer.stateless_call(trainable, state, x, training=True)

    y, (mean, variance) = mapped(step, axis_name="i")(x)
    rows = x.reshape(8, 3)
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3)
    np.testing.assert_allclose(np.reshape(y, (8, 3)), expected, rtol=0, atol=1e-5)
    for replica in range(2):
        np.testing.assert_allclose(mean[replica], rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(variance[replica], rows.var(0), rtol=1e-5)
