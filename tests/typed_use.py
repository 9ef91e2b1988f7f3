"""What a type checker knows of the package in a user's code; mypy reads it only.

An `ignore` that is needless is an error: each of them is a mistake that is found.
"""

from typing import Any, assert_type

import keras

import keras_bnx
from keras_bnx import interop
from keras_bnx.implementation import Explanation
from keras_bnx.tools.checks import Finding
from keras_bnx.tools.distance import Distance
from keras_bnx.tools.folding import FoldingReport
from keras_bnx.tools.recalibration import Recalibration
from keras_bnx.tools.report import LayerStatistics, StatisticsReport


def tools(model: keras.Model, x: Any) -> None:
    report = keras_bnx.statistics_report(model, x, batch_size=32)
    assert_type(report, StatisticsReport)
    assert_type(report.rows, list[LayerStatistics])
    assert_type(report.rows[0].distance, Distance | None)
    assert_type(report.rows[0].error, float)
    assert_type(keras_bnx.check(model, report).errors, list[Finding])
    with keras_bnx.recalibrate(model, x) as record:
        assert_type(record, Recalibration)
    assert_type(record.not_called, list[str])
    what = keras_bnx.fold(model)[1]
    assert_type(what, FoldingReport)
    assert_type([record.reason for record in what], list[str | None])
    keras_bnx.Recalibrate(x, every=1)


def layers(module: Any, model: keras.Model, x: Any) -> None:
    layer = interop.from_torch(module, axis=1)
    assert_type(layer, keras_bnx.BatchNormalization)
    assert_type(interop.from_flax(module), keras_bnx.BatchNormalization)
    with keras_bnx.force_implementation("generic"), keras_bnx.keep_moving_statistics():
        assert_type(keras_bnx.explain_implementation(layer, x), Explanation)
    keras_bnx.BatchNormalization([1, 2], momentum=None, renorm_clipping={"rmax": 3.0})
    assert_type(layer.frozen, tuple[str, ...])
    assert_type(layer.momentum, float | None)
    assert_type(layer.get_config(), dict[str, Any])
    assert_type(keras_bnx.renorm_schedule(), dict[str, keras_bnx.Ramp])


def mistakes(model: keras.Model) -> None:
    keras_bnx.Ramp("1", 3.0, start=0, end=9)  # type: ignore[arg-type]
    keras_bnx.Ramp(1.0, 3.0, 0, 9)  # type: ignore[call-arg]
    keras_bnx.force_implementation("fast")  # type: ignore[arg-type]
    keras_bnx.BatchNormalization(momentum="0.9")  # type: ignore[arg-type]
    keras_bnx.BatchNormalization(axis=1.5)  # type: ignore[arg-type]
    keras_bnx.recalibrate(model)  # type: ignore[call-arg]
    keras_bnx.statistics_report(model).plot(3)  # type: ignore[arg-type]
    keras_bnx.freeze(model, statistic=True)  # type: ignore[call-arg]
    print(keras_bnx.check(model).error)  # type: ignore[attr-defined]
    interop.to_torch(model, kind="pickle")  # type: ignore[arg-type]
