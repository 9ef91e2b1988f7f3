"""The limits of renorm over training."""

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy, with_gradients
from keras import ops

from keras_bnx import BatchNormalization, Ramp, renorm_schedule


def test_the_papers_numbers_are_the_defaults():
    limits = renorm_schedule()
    steps = (0, 5000, 15000, 22500, 25000, 40000, 160000)
    found = {k: [float(limit(step)) for step in steps] for k, limit in limits.items()}

    np.testing.assert_allclose(found["dmax"], [0, 0, 2.5, 4.375, 5, 5, 5])
    rmax = np.array([1, 1, 1 + 4 / 7, 2, 1 + 8 / 7, 3, 3])
    np.testing.assert_allclose(found["rmax"], rmax, rtol=1e-6)
    np.testing.assert_allclose(found["rmin"], 1 / rmax, rtol=1e-6)


def test_limits_relax_with_the_layers_steps():
    limits = renorm_schedule(start=2, rmax_end=4, dmax_end=6)
    layer = BatchNormalization(renorm=True, renorm_clipping=limits)
    x = np.random.default_rng(0).normal(30.0, 5.0, (64, 3)).astype("float32")
    outputs = [to_numpy(layer(x, training=True)) for _ in range(8)]
    means, deviations = np.mean(outputs, (1, 2)), np.std(outputs, 1).mean(1)

    # d is dmax, as the mean is 30 deviations from the moving one's start; r is rmax.
    np.testing.assert_allclose(means[:3], 0.0, atol=1e-5)
    np.testing.assert_allclose(means[3:7], [1.25, 2.5, 3.75, 5.0], rtol=1e-5)
    np.testing.assert_allclose(deviations[:5], [1, 1, 1, 2, 3], rtol=1e-3)
    np.testing.assert_array_equal(statistics(layer)["steps"], 8)


def test_inference_and_kept_statistics_are_no_steps():
    layer = BatchNormalization(renorm=True, renorm_clipping=renorm_schedule())
    layer(np.zeros((4, 3), "float32"))
    np.testing.assert_array_equal(statistics(layer)["steps"], 0)


@pytest.mark.parametrize("value", [True, False])
def test_a_traced_training_decides_about_the_step(value):
    layer = BatchNormalization(renorm=True, renorm_clipping=renorm_schedule())
    layer.build((4, 3))
    run = with_gradients(layer, training=f"traced {value}", how="compiled")
    run(ops.ones((4, 3)), ops.ones((4, 3)))
    np.testing.assert_array_equal(statistics(layer)["steps"], int(value))


def test_a_ramp_is_restored():
    ramp = Ramp(2.0, 4.0, start=1, end=3, reciprocal=True)
    config = keras.saving.serialize_keras_object(ramp)
    again = keras.saving.deserialize_keras_object(config)
    assert [float(again(step)) for step in (0, 1, 3, 4)] == [0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(float(again(2)), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rmax": 0.5}, r"rmax=0\.5"),
        ({"dmax": -1}, "dmax=-1"),
        ({"start": 9, "dmax_end": 5}, "start=9, end=5"),
        ({"start": -1}, "start=-1"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        renorm_schedule(**arguments)
