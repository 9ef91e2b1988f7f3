"""The command, as it is typed."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_bnx
from keras_bnx.__main__ import main

KERAS = keras.layers.BatchNormalization
X = np.random.default_rng(0).normal(3.0, 2.0, (64, 8)).astype("float32")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model of Keras's own layers, and data."""
    monkeypatch.chdir(tmp_path)
    layers = [
        keras.layers.Dense(4, use_bias=False, name="dense"),
        KERAS(name="norm"),
        keras.layers.ReLU(),
        keras.layers.Dense(2, name="last"),
    ]
    model = keras.Sequential([keras.Input((8,), name="inputs"), *layers])
    model.get_layer("norm").moving_mean.assign(np.ones(4))
    model.save("model.keras")
    np.savez("data.npz", x=X, y=np.zeros(64))
    np.savez("one.npz", X)
    np.savez("other.npz", a=X, b=X)
    (tmp_path / "text.keras").write_text("no model")
    return tmp_path


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_report_prints_and_draws(folder, capsys):
    assert main(["report", "model.keras"]) == 0
    assert "Without data" in capsys.readouterr().out
    arguments = ["--data", "one.npz", "--output", "figure.png", "--quiet"]
    assert main(["report", "model.keras", *arguments]) == 0

    out = capsys.readouterr().out
    assert "norm" in out and "64 samples in 2 batches" in out and "step" not in out
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_check_fails_on_errors_only(folder, capsys):
    assert main(["check", "model.keras"]) == 0
    arguments = ["--data", "data.npz", "--batch-size", "9", "--quiet"]
    # 64 rows leave a last batch of one.
    assert main(["check", "model.keras", *arguments]) == 1
    assert "error: one-value [norm]" in capsys.readouterr().out


def test_recalibrate_writes_a_model_of_the_datas_statistics(folder):
    arguments = ["--data", "data.npz", "--output", "new.keras", "--quiet"]
    assert main(["recalibrate", "model.keras", *arguments]) == 0

    model = keras.models.load_model("new.keras")
    assert type(model.get_layer("norm")) is KERAS
    kernel = np.asarray(model.get_layer("dense").get_weights()[0], "float64")
    mean = model.get_layer("norm").get_weights()[2]
    np.testing.assert_allclose(mean, (X @ kernel).mean(0), rtol=1e-5, atol=1e-5)


def test_convert_revert_and_fold_are_each_others_outputs(folder):
    x = X[:4]
    expected = keras.models.load_model("model.keras").predict(x, verbose=0)
    for command in (
        ["convert", "model.keras", "--output", "ours.keras", "--set", "momentum=0.75"],
        ["revert", "ours.keras", "--output", "kerass.keras"],
        ["fold", "ours.keras", "--output", "folded.keras"],
    ):
        assert main(command) == 0
        found = keras.models.load_model(command[3])
        np.testing.assert_allclose(found.predict(x, verbose=0), expected, 1e-5, 1e-5)

    layer = keras.models.load_model("ours.keras").get_layer("norm")
    assert type(layer) is keras_bnx.BatchNormalization and layer.momentum == 0.75
    assert type(keras.models.load_model("kerass.keras").get_layer("norm")) is KERAS
    assert len(found.layers) == 3


def test_words_are_values_of_arguments_too(folder):
    change = ["--set", "axis_name=devices"]
    assert main(["convert", "model.keras", "--output", "ours.keras", *change]) == 0
    layer = keras.models.load_model("ours.keras").get_layer("norm")
    assert layer.axis_name == "devices"


def test_data_of_several_inputs_have_their_names(folder, capsys):
    inputs = {name: keras.Input((8,), name=name) for name in "ab"}
    x = keras.layers.Concatenate()([inputs["b"], inputs["a"]])
    layer = KERAS(name="norm")
    keras.Model(inputs, keras.layers.Dense(2)(layer(x))).save("two.keras")
    np.savez("two.npz", a=X, b=10 * X)
    arguments = ["--data", "two.npz", "--output", "new.keras", "--quiet"]
    assert main(["recalibrate", "two.keras", *arguments]) == 0

    mean = keras.models.load_model("new.keras").get_layer("norm").get_weights()[2]
    np.testing.assert_allclose(mean, np.append(10 * X.mean(0), X.mean(0)), rtol=1e-5)


OUTPUT = ["--output", "new.keras"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fold", "no.keras", *OUTPUT], "There is no such file. Received: no.keras"),
        (["fold", "text.keras", *OUTPUT], "text.keras"),
        (["convert", "model.keras", *OUTPUT, "--set", "momentum=3"], "momentum=3"),
        (["convert", "model.keras", *OUTPUT, "--set", "momentum"], "NAME=VALUE"),
        (["convert", "model.keras", "--output", "text.keras"], "--overwrite"),
        (["convert", "model.keras", "--output", "new.h5"], "ends in .keras"),
        (["convert", "model.keras", "--output", "no/new.keras"], "folder"),
        (["check", "model.keras", "--data", "other.npz"], "a, b in other.npz"),
        (["check", "model.keras", "--data", "text.keras"], "numpy.savez"),
        (["check", "model.keras", "--data", "no.npz"], "no.npz"),
        (["check", "model.keras", "--import", "no_such_module"], "no_such_module"),
        (["report", "model.keras", "--output", "figure.png"], "nothing to draw"),
    ],
    ids=lambda value: "-".join(value[:1] + value[-1:]) if len(value) < 9 else "",
)
def test_what_cannot_be_done_says_so_and_writes_nothing(
    arguments, words, folder, capsys
):
    before = files(folder)
    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error
    assert files(folder) == before
    assert (folder / "text.keras").read_text() == "no model"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(error, folder, monkeypatch):
    def fail(*arguments):
        raise error

    before = files(folder)
    monkeypatch.setattr("os.replace", fail)
    arguments = ["--output", "text.keras", "--overwrite"]
    status = main(["convert", "model.keras", *arguments])

    assert status == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert files(folder) == before
    assert (folder / "text.keras").read_text() == "no model"


def test_it_is_a_command_with_help(folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-m", "keras_bnx", "fold", "--help"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert run.returncode == 0 and "For example: python -m keras_bnx fold" in run.stdout


def test_layers_of_ones_own_are_imported(folder):
    (folder / "own_layers.py").write_text(
        "import keras\n\n\n"
        "@keras.saving.register_keras_serializable('own')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    make = (
        "import sys; sys.path.insert(0, '.'); import keras, own_layers;"
        "layers = [keras.Input((8,)), own_layers.Twice(),"
        "keras.layers.BatchNormalization()];"
        "keras.Sequential(layers).save('own.keras')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", make], env=environment, check=True)
    assert main(["check", "own.keras"]) == 2
    assert main(["check", "own.keras", "--import", "own_layers"]) == 0
