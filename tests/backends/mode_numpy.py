"""Keras's NumPy backend, which trains no model but runs every layer.

Run by `test_jax_modes.py`, in a process of its own.
"""

import keras
import numpy as np
import pytest
import test_behaviours as matrix
from cases import CASES
from frameworks import statistics, to_numpy
from keras import ops
from tolerance import assert_near, kappa

from keras_bnx import BatchNormalization, convert, explain_implementation
from keras_bnx.backends import generic
from keras_bnx.reference import Arguments, State, batch_normalization

SAME = "axis momentum epsilon renorm renorm_momentum virtual_batch_size".split()
SAME += ["unbiased_moving_variance", "debias_moving_statistics"]


# Keras computes in float32 there, and rounds float64 tensors when it makes them.
RUN = [case for case in CASES if case.dtype != "float64"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_outputs_and_statistics_are_the_oracles(case, training):
    x = case.inputs()
    mask, weights = case.weights()
    layer = BatchNormalization(axis=case.axis, dtype=case.policy, **case.arguments)
    y = layer(ops.convert_to_tensor(x, case.dtype), training=training, mask=mask)
    channels = np.squeeze(to_numpy(layer.moving_mean)).shape or (1,)
    step = batch_normalization(
        x,
        State(np.zeros(channels), np.ones(channels)),
        Arguments(
            **{name: getattr(layer, name) for name in SAME},
            renorm_clipping=dict(layer.renorm_clipping or {}),
        ),
        weights=weights,
        training=training,
    )

    assert isinstance(y, np.ndarray)
    if layer.virtual_batch_size:
        scale = np.abs(x).max() / case.std
    else:
        scale = kappa(x, axis=case.axis, epsilon=layer.epsilon, weights=weights)
    if not training:
        scale = np.abs(x)
    # NumPy adds the rows one by one: 7 units were seen, and 35 over 100,000 rows.
    units = 16.0 if x.size < 10_000 else 64.0
    assert_near(
        to_numpy(y), step.y, scale=scale, dtype=layer.compute_dtype, units=units
    )
    expected = vars(step.state) | {
        f"debiased_{name}": value for name, value in step.state.debiased.items()
    }
    for name, value in statistics(layer).items():
        wanted = expected.get(name, np.zeros(channels))
        assert_near(value.reshape(wanted.shape), wanted, scale=0.0, units=units)


@pytest.mark.parametrize("arguments", [{}, {"renorm": True, "momentum": None}])
def test_files_and_copies_predict_the_same(arguments, tmp_path):
    x = np.random.default_rng(0).normal(3.0, 2.0, (16, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), BatchNormalization(**arguments)])
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    y = model.predict(x, verbose=0)

    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), y)
    np.testing.assert_array_equal(convert(model).predict(x, verbose=0), y)


def test_what_runs_is_said():
    explained = str(explain_implementation(BatchNormalization(), np.ones((2, 3))))
    assert "generic" in explained and "'numpy'" in explained


def a_case_of_the_matrix():
    """Runs one that needs gradients after its outputs were compared."""
    row, example = matrix.EXAMPLES[0]
    assert example.name == "dense"
    matrix.test_behaviour(row, example, "here", lambda name, value: None, None)


def test_what_the_backend_lacks_skips_a_case_of_the_matrix():
    with pytest.raises(pytest.skip.Exception, match="gradients, which NumPy doesn't"):
        a_case_of_the_matrix()


def off_by_a_percent(vector, batch, per_element=generic.per_element):
    return per_element(vector, batch) * 1.01


def not_implemented(vector, batch):
    raise NotImplementedError("a fault, not what the backend lacks")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (off_by_a_percent, AssertionError, "outputs: got .* times what is allowed"),
        (not_implemented, NotImplementedError, "a fault"),
    ],
)
def test_a_fault_of_the_layer_fails_it(fault, error, message, monkeypatch):
    monkeypatch.setattr(generic, "per_element", fault)
    with pytest.raises(error, match=message):
        a_case_of_the_matrix()


def test_the_backend_lacks_what_is_said_of_it():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(NotImplementedError, match="fit"):
        model.fit(np.ones((2, 3)), np.ones((2, 1)))
    assert ops.sqrt(ops.ones(2, "float64")).dtype == "float32"
    assert generic.replicas(None) is None
