"""The oracle against numbers worked out by hand, and finite differences."""

import numpy as np
import pytest

from keras_bnx.reference import (
    Arguments,
    State,
    batch_normalization,
    gradients,
    moments,
)


def test_moments_of_one_two_three_six():
    count, size, mean, variance = moments([[1.0], [2.0], [3.0], [6.0]])

    # Deviations from 3: -2, -1, 0, 3; squares 4 + 1 + 0 + 9 = 14.
    assert (count[0], size[0], mean[0], variance[0]) == (4.0, 4, 3.0, 3.5)


def test_weighted_moments_by_hand():
    x = [[1.0], [2.0], [np.nan], [4.0]]
    count, size, mean, variance = moments(x, [[2.0], [1.0], [0.0], [1.0]])

    # (2*1 + 2 + 4) / 4 = 2; (2*1 + 0 + 4) / 4 = 1.5.
    assert (count[0], size[0], mean[0], variance[0]) == (4.0, 3, 2.0, 1.5)


def test_channels_first_moments_by_hand():
    x = np.array([[[0.0, 2.0], [10.0, 30.0]]])
    _, _, mean, variance = moments(x, axis=1)

    np.testing.assert_array_equal(mean, [1.0, 20.0])
    np.testing.assert_array_equal(variance, [1.0, 100.0])


def test_training_step_by_hand():
    arguments = Arguments(momentum=0.75, epsilon=1.0, gamma=[2.0], beta=[5.0])
    x = np.array([[1.0], [1.0], [5.0], [5.0]])
    # Mean 3, variance 4; with epsilon 1 the deviation is sqrt(5).
    step = batch_normalization(x, State([1.0], [8.0]), arguments)

    np.testing.assert_allclose(
        step.y[:, 0], 5 + 2 * np.array([-2, -2, 2, 2]) / np.sqrt(5)
    )
    assert step.state.moving_mean[0] == 0.75 * 1.0 + 0.25 * 3.0
    assert step.state.moving_variance[0] == 0.75 * 8.0 + 0.25 * 4.0


def test_inference_by_hand():
    arguments = Arguments(epsilon=1.0, gamma=[2.0], beta=[5.0])
    state = State([1.0], [8.0])
    step = batch_normalization([[4.0]], state, arguments, training=False)

    assert step.y[0, 0] == 5 + 2 * (4 - 1) / 3
    assert step.state is state


def test_renorm_by_hand():
    arguments = Arguments(epsilon=1.0, renorm=True, renorm_momentum=0.5, momentum=0.5)
    state = State([0.0], [9.0], moving_stddev=[3.0], renorm_mean=[1.0])
    state.renorm_stddev = np.array([4.0])
    # Mean 2, variance 3, sigma 2: r = 2/4, d = (2 - 1)/4.
    x = np.array([[2.0], [2.0 - np.sqrt(4.5)], [2.0 + np.sqrt(4.5)]])
    step = batch_normalization(x, state, arguments)

    # Unclipped, it is normalization by the moving statistics.
    np.testing.assert_allclose(step.y, (x - 1.0) / 4.0)
    np.testing.assert_allclose([step.r[0], step.d[0]], [0.5, 0.25])
    np.testing.assert_allclose(step.state.moving_stddev, [2.5])
    np.testing.assert_allclose(step.state.moving_variance, [2.5**2 - 1])
    np.testing.assert_allclose(step.state.renorm_mean, [1.5])
    np.testing.assert_allclose(step.state.renorm_stddev, [3.0])


def test_renorm_clips_by_hand():
    clipping = {"rmin": 0.75, "rmax": 2.0, "dmax": 0.125}
    arguments = Arguments(epsilon=1.0, renorm=True, renorm_clipping=clipping)
    state = State([0.0], [9.0], renorm_mean=[1.0], renorm_stddev=[4.0])
    x = np.array([[2.0], [2.0 - np.sqrt(4.5)], [2.0 + np.sqrt(4.5)]])
    step = batch_normalization(x, state, arguments)

    assert (step.r[0], step.d[0]) == (0.75, 0.125)


def test_single_elements_move_the_mean_alone():
    state = State([0.0], [4.0])
    step = batch_normalization([[8.0]], state, Arguments(momentum=0.5))

    assert step.y[0, 0] == 0.0
    assert step.state.moving_mean[0] == 4.0
    assert step.state.moving_variance[0] == 4.0


@pytest.mark.parametrize("renorm", [False, True])
def test_what_cannot_be_counted_changes_nothing(renorm):
    state = State([1.0, 1.0], [4.0, 4.0])
    x = np.array([[1.0, np.inf], [2.0, 3.0]])
    arguments = Arguments(renorm=renorm, epsilon=1e-12)
    step = batch_normalization(x, state, arguments, weights=[[0.0, 1.0], [0.0, 1.0]])

    for name, value in vars(step.state).items():
        np.testing.assert_array_equal(value, getattr(state, name), err_msg=name)
    # Neither channel has statistics of its own: moving ones serve the second, and the
    # first, which the mask leaves out, gives beta.
    np.testing.assert_allclose(step.y[:, 0], [0.0, 0.0])
    np.testing.assert_allclose(step.y[1, 1], 1.0)


def test_a_channel_of_padding_alone_gives_beta():
    weights = [[0.0, 1.0], [0.0, 1.0]]
    arguments = Arguments(beta=[3.0, 0.0], epsilon=1e-12)
    step = batch_normalization(
        [[1.0, 1.0], [2.0, 3.0]],
        State([1.0, 1.0], [4.0, 4.0]),
        arguments,
        weights=weights,
    )

    np.testing.assert_allclose(step.y, [[3.0, -1.0], [3.0, 1.0]])
    dx, dgamma, _ = gradients(step, np.ones((2, 2)), np.ones((2, 2)))
    np.testing.assert_allclose(dx[:, 0], 0.0)
    assert dgamma[0] == 0.0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_are_finite_differences(training, weighted, axis):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 4, 3, 2))
    weights = rng.uniform(size=(4, 3, 2)).round(1) if weighted else None
    channels = x.shape[axis]
    gamma, beta = rng.normal(size=(2, channels))
    state = State(rng.normal(size=channels), rng.uniform(0.5, 2, channels))

    def f(x, gamma, beta):
        arguments = Arguments(axis=axis, gamma=gamma, beta=beta)
        step = batch_normalization(
            x, state, arguments, weights=weights, training=training
        )
        return step, (dy * step.y).sum()

    step, _ = f(x, gamma, beta)
    found = gradients(step, dy, x)

    point = [x, gamma, beta]
    for i, gradient in enumerate(found):
        numeric = np.zeros_like(point[i])
        for index in np.ndindex(numeric.shape):
            values = []
            for h in (1e-5, -1e-5):
                moved = [p.copy() for p in point]
                moved[i][index] += h
                values.append(f(*moved)[1])
            numeric[index] = (values[0] - values[1]) / 2e-5
        # Central differences in float64: h**2 truncation, eps/h rounding.
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def test_renorm_gradient_treats_r_and_d_as_constants():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 6, 2))
    state = State([0.5, -0.5], [2.0, 0.5])
    plain = batch_normalization(x, state, Arguments())
    step = batch_normalization(x, state, Arguments(renorm=True))

    dx, dgamma, dbeta = gradients(step, dy, x)

    np.testing.assert_allclose(dx, step.r * gradients(plain, dy, x)[0])
    np.testing.assert_allclose(dgamma, (dy * step.y).sum(0))
    np.testing.assert_allclose(dbeta, dy.sum(0))
