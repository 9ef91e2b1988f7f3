"""Which implementation runs can be asked and decided."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx import (
    BatchNormalization,
    backends,
    explain_implementation,
    force_implementation,
)

X = np.random.default_rng(0).normal(3.0, 2.0, (16, 3)).astype("float32")


def test_native_serves_plain_calls_and_generic_can_be_forced():
    layer = BatchNormalization()
    native = explain_implementation(layer, X)
    assert (native.implementation, native.reasons) == ("native", [])
    with force_implementation("generic"):
        generic = explain_implementation(layer, X)
        with force_implementation("native"):
            assert explain_implementation(layer, X) == native
        assert explain_implementation(layer, X) == generic
    assert generic.implementation == "generic"
    assert "forced" in str(generic)
    assert explain_implementation(layer, X) == native


@pytest.mark.parametrize("name", ["generic", "native"])
def test_what_is_forced_runs(name, monkeypatch):
    ran = []
    for kind in ("generic", "native"):
        implementation = getattr(backends.active(), kind)

        def moments(*args, kind=kind, implementation=implementation, **kwargs):
            ran.append(kind)
            return implementation.moments(*args, **kwargs)

        replacement = implementation._replace(moments=moments)
        monkeypatch.setattr(backends.active(), kind, replacement)
    with force_implementation(name):
        y = BatchNormalization()(X, training=True)

    assert ran[0] == name
    np.testing.assert_allclose(to_numpy(y).mean(0), 0.0, atol=1e-6)


def test_a_forced_native_that_cant_serve_raises_with_every_reason(monkeypatch):
    reasons = ["The first reason.", "The second one."]
    monkeypatch.setattr(backends.active(), "obstacles", lambda batch, **_: reasons)
    layer = BatchNormalization()
    assert explain_implementation(layer, X).implementation == "generic"
    assert explain_implementation(layer, X).reasons == reasons
    with force_implementation("native"):
        explained = explain_implementation(layer, X)
        assert explained.implementation == "none"
        assert all(reason in explained.reasons[0] for reason in reasons)
        with pytest.raises(ValueError, match=r"first reason.*second.*shape=\(16, 3\)"):
            layer(X, training=True)
    # Nothing was lost.
    np.testing.assert_array_equal(to_numpy(layer.moving_mean), 0.0)


def test_virtual_batches_are_asked_for_as_they_run(monkeypatch):
    asked = []

    def obstacles(batch, *, synchronized):
        asked.append((tuple(batch.x.shape), batch.axes))
        return []

    monkeypatch.setattr(backends.active(), "obstacles", obstacles)
    layer = BatchNormalization(virtual_batch_size=8)
    explain_implementation(layer, X)
    layer(X, training=True)
    assert asked == [((2, 8, 3), (0, 2))] * 2


def test_wrong_arguments_say_so():
    with pytest.raises(ValueError, match=r"one of 'auto'.*'fast'"):
        force_implementation("fast").__enter__()
    with pytest.raises(ValueError, match=r"keras_bnx\.BatchNormalization"):
        explain_implementation(keras.layers.BatchNormalization(), X)
    with pytest.raises(ValueError, match="real batch"):
        explain_implementation(BatchNormalization(), keras.Input((3,)))


@pytest.mark.full(except_on="jax")
@pytest.mark.parametrize("value", ["generic", "fast"])
def test_the_environment_variable_decides_for_a_process(value, monkeypatch):
    monkeypatch.setenv("KERAS_BNX_IMPLEMENTATION", value)
    code = (
        "import keras_bnx, numpy; print(keras_bnx.explain_implementation("
        "keras_bnx.BatchNormalization(), numpy.ones((2, 2), 'float32')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if value == "generic":
        assert ended.stdout == "generic (keras.ops). It is forced.\n", ended.stderr
    else:
        assert ended.returncode != 0
        assert "KERAS_BNX_IMPLEMENTATION='fast'" in ended.stderr


def test_models_hold_nothing_of_it():
    layer = BatchNormalization()
    with force_implementation("generic"):
        config = layer.get_config()
    assert config == layer.get_config()
    assert not any("implementation" in key for key in config)


def test_both_agree():
    x = ops.convert_to_tensor(X)
    outputs = []
    for name in ("generic", "native"):
        with force_implementation(name):
            outputs.append(to_numpy(BatchNormalization()(x, training=True)))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
