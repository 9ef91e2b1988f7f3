"""Files: whatever Keras can save and load, with Keras's layer on the other side."""

import copy
import json
import pickle
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy

from keras_bnx import BatchNormalization, renorm_schedule

KERAS = keras.layers.BatchNormalization
X = np.random.default_rng(0).normal(2.0, 3.0, (32, 3)).astype("float32")


def trained(cls=BatchNormalization, momentum=0.5, **arguments):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            cls(momentum=momentum, name="bn", **arguments),
            keras.layers.Dense(2, name="dense"),
        ]
    )
    model.compile("sgd", keras.losses.MeanSquaredError())
    model.fit(X, np.zeros((32, 2)), batch_size=16, verbose=0)
    return model


def assert_same(model, other, cls=BatchNormalization):
    assert type(other.get_layer("bn")) is cls
    np.testing.assert_allclose(
        other.predict(X, verbose=0),
        model.predict(X, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


def weights(model):
    return [to_numpy(w.value) for w in model.weights]


RENORM = {"renorm": True, "renorm_clipping": {"rmax": 3.0, "dmax": 5.0}}
SCHEDULED = {
    "renorm": True,
    "renorm_clipping": renorm_schedule(start=1, rmax_end=9, dmax_end=5),
    "debias_moving_statistics": True,
    "unbiased_moving_variance": True,
    "virtual_batch_size": 4,
    "synchronized": 2,
    "axis_name": "replicas",
}
OPTIONS = pytest.mark.parametrize(
    "arguments", [{}, RENORM, SCHEDULED], ids=["plain", "renorm", "all"]
)


@OPTIONS
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_models_are_saved_and_loaded(arguments, suffix, tmp_path):
    model = trained(**arguments)
    model.save(tmp_path / f"model.{suffix}")
    # The state of optimizers in .h5 files isn't restored for any layer.
    other = keras.models.load_model(
        tmp_path / f"model.{suffix}", compile=suffix == "keras"
    )

    assert_same(model, other)
    for ours, theirs in zip(weights(model), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if suffix == "h5":
        other.compile("sgd", keras.losses.MeanSquaredError())
    other.fit(X, np.zeros((32, 2)), verbose=0)


@pytest.mark.parametrize("arguments", [{}, RENORM], ids=["plain", "renorm"])
@pytest.mark.parametrize("first", [KERAS, BatchNormalization])
def test_weights_files_are_exchanged_with_keras(arguments, first, tmp_path):
    second = BatchNormalization if first is KERAS else KERAS
    model, other = trained(first, **arguments), trained(second, **arguments)
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")

    assert_same(model, other, cls=second)
    for ours, theirs in zip(weights(model), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_plain_weights_load_into_renorm(tmp_path):
    model, other = trained(), trained(**RENORM)
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")

    assert_same(model, other)
    found = statistics(other.get_layer("bn"))
    np.testing.assert_array_equal(found["renorm_mean"], found["moving_mean"])
    deviation = np.sqrt(found["moving_variance"] + 1e-3)
    np.testing.assert_allclose(found["renorm_stddev"], deviation, rtol=1e-6)
    np.testing.assert_allclose(found["moving_stddev"], deviation, rtol=1e-6)
    # Unclipped, renorm trains on what inference computes.
    z = to_numpy(other.get_layer("bn")(X, training=False))
    y = to_numpy(other.get_layer("bn")(X, training=True))
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)
    # JAX can't donate one array to two variables.
    other.fit(X, np.zeros((32, 2)), verbose=0)


def test_renorm_weights_load_into_plain(tmp_path):
    model, other = trained(**RENORM), trained()
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")

    assert_same(model, other)


def test_weights_of_another_width_are_refused_and_nothing_is_lost(tmp_path):
    layer = BatchNormalization()
    wide = keras.Sequential([keras.Input((4,)), BatchNormalization(name="bn")])
    wide.save_weights(tmp_path / "a.weights.h5")
    model = keras.Sequential([keras.Input((3,)), layer])
    before = weights(model)

    with pytest.raises(ValueError, match="shape"):
        model.load_weights(tmp_path / "a.weights.h5")
    for now, then in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_keras_h5_models_load_into_this_layer(tmp_path):
    model = trained(KERAS)
    model.save(tmp_path / "model.h5")
    other = keras.models.load_model(
        tmp_path / "model.h5", custom_objects={"BatchNormalization": BatchNormalization}
    )

    assert_same(model, other)


@pytest.mark.full(except_on="jax")
def test_this_layers_models_load_where_it_is_not_installed(tmp_path):
    model = trained()
    model.save(tmp_path / "model.keras")
    code = f"""
import keras, numpy, sys
keras_layer = keras.layers.BatchNormalization
model = keras.models.load_model(
    "model.keras", custom_objects={{"keras_bnx>BatchNormalization": keras_layer}}
)
assert type(model.get_layer("bn")) is keras_layer
assert "keras_bnx" not in sys.modules
x = numpy.array({X.tolist()}, "float32")
numpy.save("y.npy", model.predict(x, verbose=0))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    expected = model.predict(X, verbose=0)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("arguments", [{}, RENORM], ids=["plain", "renorm"])
def test_keras_models_are_cloned_into_this_layer(arguments):
    """The way for `.keras` files, where Keras looks up its own names first."""
    model = trained(KERAS, **arguments)

    def clone(layer):
        cls = BatchNormalization if type(layer) is KERAS else type(layer)
        return cls.from_config(layer.get_config())

    other = keras.models.clone_model(model, clone_function=clone)
    other.set_weights(model.get_weights())

    assert_same(model, other)


@pytest.mark.parametrize("axis", [[1], 1, -1])
def test_keras_2_h5_models_load(axis, tmp_path):
    model = trained()
    path = tmp_path / "model.h5"
    model.save(path)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        (layer,) = [x for x in config["config"]["layers"] if "bn" in str(x["config"])]
        layer["class_name"] = "BatchNormalization"
        layer.pop("module", None)
        layer.pop("registered_name", None)
        layer["config"].update(axis=axis, fused=True, virtual_batch_size=None)
        for name in ("renorm", "renorm_clipping", "renorm_momentum", "synchronized"):
            layer["config"].pop(name)
        file.attrs["model_config"] = json.dumps(config)
    other = keras.models.load_model(
        path, custom_objects={"BatchNormalization": BatchNormalization}
    )

    assert_same(model, other)
    assert other.get_layer("bn").axis in (1, -1)


@pytest.mark.parametrize("suffix", ["keras", "h5", "weights.h5"])
def test_several_axes_are_stored(suffix, tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 3)), BatchNormalization(axis=[1, 2], name="bn")]
    )
    model(np.random.default_rng(0).normal(2.0, 3.0, (8, 4, 3)), training=True)
    path = tmp_path / f"model.{suffix}"
    if suffix == "weights.h5":
        # Keras 2's config and its shape of such weights, the rank of the inputs.
        config = {"axis": [1, 2], "fused": False, "virtual_batch_size": None}
        layer = BatchNormalization.from_config(config)
        assert [tuple(w.shape) for w in model.weights] == [(1, 4, 3)] * 4
        model.save_weights(path)
        other = keras.Sequential([keras.Input((4, 3)), layer])
        other.load_weights(path)
    else:
        model.save(path)
        other = keras.models.load_model(path)

    x = np.ones((2, 4, 3), "float32")
    np.testing.assert_array_equal(
        to_numpy(other(x, training=False)), to_numpy(model(x, training=False))
    )
    assert other.layers[0].get_config()["axis"] == [1, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"momentum": None},
        {"debias_moving_statistics": True},
        {"debias_moving_statistics": True, "renorm": True},
        {"renorm": True, "renorm_clipping": renorm_schedule()},
    ],
    ids=["cumulative", "debiased", "debiased renorm", "schedule"],
)
def test_what_averages_know_of_their_past_keeps_files_as_keras_has_them(
    arguments, tmp_path
):
    renorm = {"renorm": arguments.get("renorm", False)}
    model, kerass = trained(**arguments), trained(KERAS, **renorm)
    model.save_weights(tmp_path / "a.weights.h5")
    kerass.load_weights(tmp_path / "a.weights.h5")
    layer, theirs = model.get_layer("bn"), kerass.get_layer("bn")
    np.testing.assert_array_equal(to_numpy(layer.moving_mean), theirs.moving_mean)

    # The way back, where the past is unknown.
    kerass.save_weights(tmp_path / "b.weights.h5")
    model.load_weights(tmp_path / "b.weights.h5")
    assert_same(model, kerass, cls=KERAS)
    before, momentum = to_numpy(layer.moving_mean), layer.momentum
    batch = np.random.default_rng(1).normal(9.0, 1.0, (8, 3)).astype("float32")
    layer(batch, training=True)
    share = 1.0 if momentum is None else 1 - momentum
    expected = before + share * (batch.mean(0) - before)
    np.testing.assert_allclose(to_numpy(layer.moving_mean), expected, rtol=1e-5)
    if arguments.get("debias_moving_statistics"):
        found = to_numpy(layer.history.debiased_mean)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["statistics", "affine"])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_frozen_survives_files(kind, suffix, tmp_path):
    model = trained()
    model.get_layer("bn").freeze(kind == "statistics", kind == "affine")
    model.save(tmp_path / f"model.{suffix}")
    other = keras.models.load_model(tmp_path / f"model.{suffix}", compile=False)

    assert other.get_layer("bn").frozen == (kind,)
    other.compile("sgd", keras.losses.MeanSquaredError())
    before = [to_numpy(w) for w in other.get_layer("bn").weights]
    other.fit(X, np.zeros((32, 2)), verbose=0)
    moved = [
        not np.array_equal(a, to_numpy(b))
        for a, b in zip(before, other.get_layer("bn").weights, strict=True)
    ]
    affine = kind == "statistics"
    assert moved == [affine, affine, not affine, not affine]


def test_what_keras_2_could_and_this_layer_cannot_is_named():
    config = {**BatchNormalization().get_config(), "adjustment": 4}

    with pytest.raises(ValueError, match="adjustment"):
        BatchNormalization.from_config(config)
    assert config["adjustment"] == 4


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, "pickle", "clone_model"])
@OPTIONS
def test_copies_are_equal(way, arguments):
    model = trained(**arguments)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "clone_model":
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
    else:
        other = way(model)

    assert_same(model, other)


def test_a_layer_is_copied_and_pickled():
    layer = trained().get_layer("bn")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(
            to_numpy(other(X)), to_numpy(layer(X)), err_msg=str(other)
        )
        for name, value in statistics(layer).items():
            np.testing.assert_array_equal(statistics(other)[name], value)
