"""Statistics over time, against closed forms in float64 over the batches seen."""

import keras
import numpy as np
import pytest
from frameworks import compiled, gradients, statistics, to_numpy, with_gradients
from keras import ops
from tolerance import assert_near

from keras_bnx import BatchNormalization, keep_moving_statistics
from keras_bnx.averages import (
    consistent_stddev,
    update_mean,
    update_scale,
    update_weight,
)
from keras_bnx.backends.contract import Moments

RNG = np.random.default_rng(0)
# Unequal batches whose statistics drift.
BATCHES = [
    RNG.normal(3.0 + i, 1.0 + i / 4, (n, 3)).astype("float32")
    for i, n in enumerate((4, 7, 16, 5, 9, 12, 3))
]
MEANS = np.array([x.mean(0, dtype="float64") for x in BATCHES])
VARIANCES = np.array([x.var(0, dtype="float64") for x in BATCHES])
COUNTS = np.array([len(x) for x in BATCHES])[:, None]


def built(**arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, 3))
    return layer


def trained(layer, batches=BATCHES):
    for x in batches:
        layer(x, training=True)
    return layer


def inference(layer):
    """Mean and variance that the layer normalizes by, read off its outputs."""
    zero, one = (to_numpy(layer(np.full((1, 3), v, "float32")))[0] for v in (0.0, 1.0))
    inverse = one.astype("float64") - zero
    return -zero / inverse, inverse**-2 - layer.epsilon


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_cumulative_average_weighs_all_batches_alike(unbiased):
    layer = built(momentum=None, unbiased_moving_variance=unbiased)
    factor = COUNTS / (COUNTS - 1) if unbiased else 1.0
    for seen in (len(BATCHES), 3):
        trained(layer, BATCHES[:seen])
        found = statistics(layer)
        assert_near(found["moving_mean"], MEANS[:seen].mean(0), scale=3.0)
        expected = (VARIANCES * factor)[:seen].mean(0)
        assert_near(found["moving_variance"], expected, scale=3.0)
        np.testing.assert_array_equal(found["mean_updates"], [seen] * 3)
        layer.reset_moving_statistics()
    np.testing.assert_array_equal(statistics(layer)["moving_variance"], [1.0] * 3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("random", [False, True])
def test_initial_values_are_divided_out(momentum, renorm, random):
    initializers = {}
    if random:
        initializers = {
            "moving_mean_initializer": keras.initializers.RandomNormal(9.0, seed=1),
            "moving_variance_initializer": keras.initializers.RandomUniform(
                5.0, 9.0, seed=1
            ),
        }
    layer = built(
        momentum=momentum,
        renorm=renorm,
        debias_moving_statistics=True,
        epsilon=1e-5,
        **initializers,
    )
    start = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
    for found, expected in zip(inference(layer), start, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    for seen in range(1, len(BATCHES) + 1):
        layer(BATCHES[seen - 1], training=True)
        weights = momentum ** np.arange(seen - 1, -1, -1.0)
        weights = weights / weights.sum()
        mean, variance = inference(layer)
        np.testing.assert_allclose(mean, weights @ MEANS[:seen], rtol=1e-3)
        if renorm:
            scale = weights @ np.sqrt(VARIANCES[:seen] + layer.epsilon)
            expected = scale**2 - layer.epsilon
        else:
            expected = weights @ VARIANCES[:seen]
        np.testing.assert_allclose(variance, expected, rtol=1e-3)
    # What is stored is what Keras stores.
    stored = start[0] * momentum**seen
    weights = (1 - momentum) * momentum ** np.arange(seen - 1, -1, -1.0)
    np.testing.assert_allclose(
        to_numpy(layer.moving_mean), stored + weights @ MEANS, rtol=1e-4
    )


@pytest.mark.parametrize("renorm", [False, True])
def test_a_momentum_of_one_never_sees_a_batch(renorm):
    """No batch has any weight. 0 / 0 is no reason to forget the initial values."""
    layer = built(
        momentum=1.0,
        renorm_momentum=1.0,
        renorm=renorm,
        debias_moving_statistics=True,
        moving_mean_initializer=keras.initializers.Constant(7.0),
        moving_variance_initializer=keras.initializers.Constant(4.0),
    )
    before = {k: v for k, v in statistics(layer).items() if "updates" not in k}
    trained(layer)

    mean, variance = inference(layer)
    np.testing.assert_allclose(mean, [7.0] * 3, rtol=1e-5)
    # Renorm's deviation starts without epsilon, as Keras's does, and is kept with it.
    near = {"rtol": 1e-3 if renorm else 1e-6}
    np.testing.assert_allclose(variance, [4.0] * 3, rtol=1e-3)
    for name, value in before.items():
        np.testing.assert_allclose(statistics(layer)[name], value, **near, err_msg=name)
    if renorm:
        # r and d lead to the initial statistics, as without debiasing.
        x = BATCHES[2]
        y = to_numpy(layer(x, training=True))
        np.testing.assert_allclose(y, (x - 7.0) / 2.0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize(
    "arguments", [{"momentum": None}, {"debias_moving_statistics": True}]
)
def test_nothing_is_left_of_the_initial_variance_after_one_batch(arguments, how):
    """6e-8 of it, a rounding of the batch's weight, is much beside 1e-6."""
    layer = built(**arguments)
    x = np.random.default_rng(1).normal(0.0, 1e-3, (64, 3)).astype("float32")
    run = with_gradients(layer, how=how)
    run(ops.convert_to_tensor(x), ops.ones((64, 3)))

    name = "moving_variance" if "momentum" in arguments else "debiased_scale"
    np.testing.assert_allclose(
        statistics(layer)[name], x.var(0, dtype="float64"), rtol=1e-5
    )


def test_renorm_starts_as_batch_normalization_and_not_as_the_identity():
    """Keras's r = deviation / 1 and d = mean undo the normalization."""
    x = np.random.default_rng(1).normal(30.0, 5.0, (64, 3)).astype("float32")
    keras_like, debiased = (
        built(renorm=True),
        built(renorm=True, debias_moving_statistics=True),
    )
    y = to_numpy(debiased(x, training=True))
    np.testing.assert_allclose(y.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1.0, atol=1e-3)
    np.testing.assert_allclose(
        to_numpy(keras_like(x, training=True)).mean(0), 30.0, atol=2.0
    )
    # From the second batch on it is normalized by the first one's statistics.
    second = to_numpy(debiased(x + 5, training=True))
    np.testing.assert_allclose(second.mean(0), 5 / x.std(0), rtol=1e-2)


# The sum is one for all backends; 700 eager calls take PyTorch the least.
@pytest.mark.full(except_on="torch")
@pytest.mark.parametrize("ratio", [1e4, 1e5, 1e6])
def test_the_moving_mean_arrives_where_the_mean_is_large(ratio):
    """float32 steps smaller than half a unit were lost: 3 deviations off at 1e6."""
    layer = built(momentum=0.99)
    x = np.random.default_rng(1).normal(ratio, 1.0, (512, 3)).astype("float32")
    layer.moving_mean.assign(np.full(3, ratio - 5.0))
    for _ in range(700):
        layer(x, training=True)
    expected = x.mean(0, dtype="float64") - 5.0 * 0.99**700
    off = np.abs(to_numpy(layer.moving_mean).astype("float64") - expected)
    assert off.max() < 0.1, off


@pytest.mark.full(except_on="torch")
def test_bfloat16_reaches_the_mean():
    layer = built(dtype="bfloat16")
    x = ops.cast(np.random.default_rng(1).normal(3.0, 0.5, (256, 3)), "bfloat16")
    for _ in range(700):
        layer(x, training=True)
    expected = to_numpy(x).mean(0) * (1 - 0.99**700)
    np.testing.assert_allclose(to_numpy(layer.moving_mean), expected, rtol=1e-4)


def test_passes_that_keep_the_statistics_differ_in_nothing_else():
    layer, same = built(), built()
    x = BATCHES[2]
    before = statistics(layer)
    with keep_moving_statistics():
        kept = to_numpy(layer(x, training=True))
    np.testing.assert_array_equal(kept, to_numpy(same(x, training=True)))
    for name, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[name])
    layer(x, training=True)
    assert not np.array_equal(statistics(layer)["moving_mean"], before["moving_mean"])


def test_the_switch_works_inside_of_what_is_compiled():
    layer = built(momentum=0.5)
    x = ops.convert_to_tensor(BATCHES[2])
    trainable = [v.value for v in layer.trainable_variables]

    def step(state, x):
        """A pass that keeps the statistics, as for a penalty, and one that doesn't."""
        with keep_moving_statistics():
            first, state = layer.stateless_call(trainable, state, x + 7, training=True)
        second, state = layer.stateless_call(trainable, state, x, training=True)
        return first, second, state

    if keras.config.backend() == "jax":
        run, _ = compiled(step)
        moved = run([v.value for v in layer.non_trainable_variables], x)[2][0]
    else:

        def stateful(x):
            with keep_moving_statistics():
                first = layer(x + 7, training=True)
            return first, layer(x, training=True)

        run, _ = compiled(stateful)
        run(x)
        moved = layer.moving_mean.value
    np.testing.assert_allclose(to_numpy(moved), BATCHES[2].mean(0) / 2, rtol=1e-5)


def test_accumulated_gradients_keep_the_time_constant_by_a_root():
    """k updates with momentum**(1/k) forget as much as one with momentum."""
    k, x = 4, BATCHES[2]
    accumulated, plain = built(momentum=0.9 ** (1 / k)), built(momentum=0.9)
    for _ in range(k):
        accumulated(x, training=True)
    plain(x, training=True)
    for name, value in statistics(plain).items():
        np.testing.assert_allclose(statistics(accumulated)[name], value, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 3), (6, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 2)])
def test_several_steps_are_those_of_torch_nn(shape):
    """PyTorch's layer by its documented formulas, in float64."""
    momentum, epsilon = 0.1, 1e-5  # PyTorch's, the weight of the new value
    layer = BatchNormalization(
        axis=1, momentum=1 - momentum, epsilon=epsilon, unbiased_moving_variance=True
    )
    layer.build(shape)
    rng = np.random.default_rng(1)
    gamma, beta = rng.uniform(0.5, 1.5, 3), rng.normal(size=3)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    running_mean, running_var = np.zeros(3), np.ones(3)
    axes = (0, *range(2, len(shape)))
    n = np.prod(shape) // 3

    def along(vector):
        return vector.reshape(1, 3, *[1] * (len(shape) - 2))

    for _ in range(4):
        x = rng.normal(2.0, 3.0, shape).astype("float32")
        dy = rng.normal(size=shape).astype("float32")
        mean, var = x.mean(axes, dtype="float64"), x.var(axes, dtype="float64")
        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var = (1 - momentum) * running_var + momentum * var * n / (n - 1)
        x_hat = (x - along(mean)) / np.sqrt(along(var) + epsilon)
        y = to_numpy(layer(x, training=True))
        np.testing.assert_allclose(
            y, x_hat * along(gamma) + along(beta), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(to_numpy(layer.moving_mean), running_mean, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), running_var, rtol=1e-5)

    def loss(x):
        with keep_moving_statistics():
            return ops.sum(layer(x, training=True) * ops.convert_to_tensor(dy))

    if keras.config.backend() != "jax":  # There a stateful call can't be traced.
        (dx,) = gradients(loss, x)
        inner = dy - along(dy.mean(axes)) - x_hat * along((dy * x_hat).mean(axes))
        expected = along(gamma) / np.sqrt(along(var) + epsilon) * inner
        np.testing.assert_allclose(dx, expected, rtol=1e-3, atol=1e-5)


def moments(shift, residual):
    return Moments(None, None, ops.array([shift]), ops.array([residual]), None)


def test_update_mean_by_hand():
    found = update_mean(ops.array([4.0]), moments(7.0, 1.0), 0.25)

    np.testing.assert_array_equal(to_numpy(found), [5.0])


def test_update_mean_rests_at_the_mean():
    """The plain form's two products would drift: 0.99 + 0.01 isn't 1 in float32."""
    moving = ops.array([100003.0])
    for _ in range(50):
        moving = update_mean(moving, moments(100003.0, 0.0), 0.01)

    np.testing.assert_array_equal(to_numpy(moving), [100003.0])


def test_update_scale_keeps_small_values_beside_large_ones():
    found = update_scale(ops.array([1e8]), ops.array([1e-8]), 1.0)

    np.testing.assert_allclose(to_numpy(found), [1e-8])


def test_the_deviation_is_kept_unless_the_variance_says_otherwise():
    stddev = ops.array([2.0, 2.2, 1.0, 9.0])
    variance = ops.array([4.0, 4.0, 4.0, 4.0])
    found = consistent_stddev(stddev, variance, epsilon=1.0)

    # sqrt(4) to sqrt(5) is what renorm's own updates leave.
    np.testing.assert_allclose(to_numpy(found), [2.0, 2.2, 2.0, 5**0.5])


def test_the_mean_comes_near_where_its_steps_are_lost_in_rounding():
    """Half a unit of a million is 3 of these steps."""
    moving = ops.array([1e6 - 2.5])
    for _ in range(100):
        moving = update_mean(moving, moments(1e6, 0.02), 0.01)
    assert abs(float(moving[0]) - 1e6) <= 0.0625

    # A weight of 0 is no step.
    kept = update_mean(ops.array([1e6 - 2.5]), moments(1e6, 0.02), 0.0)
    np.testing.assert_array_equal(to_numpy(kept), [1e6 - 2.5])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.9999, 1.0])
def test_the_weight_of_the_newest_divides_the_initial_value_out(momentum):
    """Against the definition: the average, less the share of what it started from."""
    rng, average, debiased = np.random.default_rng(0), 7.0, 0.0
    for updates in range(1, 50):
        value = rng.normal()
        average = average * momentum + value * (1 - momentum)
        weight = update_weight(momentum, ops.array([float(updates)]), debias=True)
        debiased += float(ops.sum(weight)) * (value - debiased)
        if updates == 1 and momentum < 1:
            assert abs(float(ops.sum(weight)) - 1.0) <= 2.0**-23
        left = momentum**updates
        expected = (average - left * 7.0) / (1 - left) if momentum < 1 else 0.0
        np.testing.assert_allclose(debiased, expected, rtol=1e-4, atol=1e-5)


def test_the_cumulative_average_weighs_all_alike():
    weights = update_weight(None, ops.array([1.0, 4.0]))
    np.testing.assert_array_equal(to_numpy(weights), [1.0, 0.25])
    assert update_weight(0.75) == 0.25


def test_a_mean_that_is_the_nearest_number_stays():
    """The next number is 0.0078 away, and would be worse."""
    found = update_mean(ops.array([100003.0]), moments(100003.0, 0.001), 0.01)

    np.testing.assert_array_equal(to_numpy(found), [100003.0])
