"""The report on a model's statistics, against NumPy."""

import math
import sys

import keras
import numpy as np
import pytest
from frameworks import to_numpy
from networks import BOTH, X, chain, inputs_of_normalizations

import keras_bnx
from keras_bnx import BatchNormalization, recalibrate, statistics_report
from keras_bnx.tools.models import table
from keras_bnx.tools.report import _draw, write_whole

BATCHES = [X[i : i + 32] for i in (0, 32, 64, 96)]


def rows_of(report):
    return {row.layer: row for row in report.rows}


@pytest.mark.parametrize("cls", BOTH)
def test_rows_compare_moving_statistics_with_the_datas(cls):
    model = chain(cls)
    recalibrate(model, X, verbose=0)
    first, second = model.get_layer("first"), model.get_layer("second")
    inputs = inputs_of_normalizations(model, BATCHES)
    deviation = np.sqrt(inputs[1].var(0) + second.epsilon)
    second.moving_mean.assign(inputs[1].mean(0) + 2.0 * deviation)
    report = statistics_report(model, X, verbose=0)

    assert [row.layer for row in report.rows] == ["second", "first"]
    assert [row.layer for row in report.in_order] == ["first", "second"]
    rows = rows_of(report)
    np.testing.assert_allclose(rows["second"].distance.mean, 2.0, rtol=1e-5)
    np.testing.assert_allclose(rows["second"].error, 2.0, rtol=1e-5)
    assert rows["first"].error < 1e-5 and first.epsilon
    np.testing.assert_allclose(
        rows["first"].mean_to_deviation,
        np.max(np.abs(inputs[0].mean(0)) / inputs[0].std(0)),
        rtol=1e-5,
    )
    assert (report.samples, report.batches) == (100, 4)


def test_channels_are_counted():
    layer = BatchNormalization(name="layer")
    model = keras.Sequential([keras.Input((8,)), layer])
    layer.gamma.assign([0.0, 5e-4, -5e-4, 2e-3, 1.0, 1.0, 1.0, 1.0])
    x = X * np.array([1, 1, 1, 1, 1, 1, 1e-3, 0.0], "float32")
    (row,) = statistics_report(model, x, verbose=0).rows

    assert (row.channels, row.dead, row.below_epsilon) == (8, 3, 2)
    assert row.never_updated and not row.frozen


@pytest.mark.parametrize("cls", BOTH)
def test_without_data_the_weights_speak(cls):
    model = chain(cls)
    model.get_layer("second").moving_variance.assign(np.full(5, 1e-6))
    model.get_layer("first").trainable = False
    report = statistics_report(model)
    first, second = (rows_of(report)[name] for name in ("first", "second"))

    assert [row.layer for row in report.rows] == ["first", "second"]
    # Without data, in the order of the model.
    assert [row.layer for row in report.in_order] == ["first", "second"]
    assert first.never_updated and not second.never_updated
    assert first.frozen and second.below_epsilon == 5
    assert math.isnan(first.error) and first.distance is None
    assert "never updated, frozen" in str(report) and "Without data" in str(report)
    assert "nan" not in str(report)


@pytest.mark.parametrize(
    "arguments",
    [
        {"moving_mean_initializer": "random_normal"},
        {"moving_mean_initializer": "ones"},
        {"momentum": None},
        {"debias_moving_statistics": True},
    ],
    ids=str,
)
def test_a_layer_is_never_updated_until_it_has_seen_a_batch(arguments):
    model = keras.Sequential([keras.Input((8,)), BatchNormalization(**arguments)])
    assert statistics_report(model).rows[0].never_updated
    model(X, training=True)
    assert not statistics_report(model).rows[0].never_updated


def test_what_is_not_finite_is_noted_and_left_out():
    x = X.copy()
    x[70, 1] = np.inf
    layer = BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), layer])
    report = statistics_report(model, x, verbose=0)

    assert "not finite" in str(report)
    assert np.isfinite(report.rows[0].error)


def test_a_layer_that_is_not_called_is_noted():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.left = BatchNormalization(), BatchNormalization(name="left")
            self.left.build((None, 8))

        def call(self, x):
            return self.used(x)

    model = Model()
    model(X)
    row = rows_of(statistics_report(model, X, verbose=0))["left"]
    assert row.distance is None and row.notes == "never updated, not called"


def test_layers_of_one_name_are_told_apart():
    models = [keras.Sequential([BatchNormalization(name="bn")]) for _ in range(2)]
    model = keras.Sequential([keras.Input((8,)), *models])

    found = {row.layer for row in statistics_report(model, X, verbose=0).rows}
    assert len(found) == 2 and all("/bn" in name for name in found)


def test_the_figure_is_written_whole_or_not_at_all(tmp_path):
    report = statistics_report(chain(BatchNormalization), X, verbose=0)
    path = tmp_path / "report.png"
    report.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]

    with pytest.raises(ValueError, match="nothing to draw"):
        statistics_report(chain(BatchNormalization)).plot(tmp_path / "other.png")
    with pytest.raises(OSError):
        report.plot(tmp_path / "no" / "folder.png")
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


@pytest.mark.parametrize(
    ("off", "colour"), [(0.01, "#0072B2"), (0.3, "#E69F00"), (2.0, "#D55E00")]
)
def test_the_figure_tells_how_far_outputs_are_off(off, colour):
    model = chain(BatchNormalization)
    recalibrate(model, X, verbose=0)
    layer = model.get_layer("first")
    stddev = np.sqrt(to_numpy(layer.moving_variance.value) + layer.epsilon)
    layer.moving_mean.assign_add(off * stddev)
    top, bottom = _draw(statistics_report(model, X, verbose=0).rows).axes
    assert top.lines[0].get_color() == bottom.lines[0].get_color() == colour


def test_without_matplotlib_the_figure_says_what_to_install(tmp_path, monkeypatch):
    report = statistics_report(chain(BatchNormalization), X, verbose=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.plot(tmp_path / "report.png")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_tables_align_numbers_to_the_right():
    text = table(["name", " n"], [["a", "1"], ["long", "123"]])
    assert text.splitlines() == ["name    n", "a       1", "long  123"]


def test_public_names():
    assert {"statistics_report", "recalibrate", "Recalibrate", "check"} <= {
        *keras_bnx.__all__
    }
