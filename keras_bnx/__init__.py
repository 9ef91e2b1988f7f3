"""Batch normalization for Keras 3, right on TensorFlow, JAX and PyTorch."""

from keras_bnx import interop  # noqa: F401 - a module, by this name
from keras_bnx.averages import keep_moving_statistics
from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.implementation import explain_implementation, force_implementation
from keras_bnx.schedules import Ramp, renorm_schedule
from keras_bnx.tools.checks import check
from keras_bnx.tools.conversion import convert, revert
from keras_bnx.tools.folding import fold
from keras_bnx.tools.freezing import freeze, unfreeze
from keras_bnx.tools.recalibration import Recalibrate, recalibrate
from keras_bnx.tools.report import statistics_report

__version__ = "0.1.0"

__all__ = [
    "BatchNormalization",
    "Ramp",
    "Recalibrate",
    "__version__",
    "check",
    "convert",
    "explain_implementation",
    "fold",
    "force_implementation",
    "freeze",
    "keep_moving_statistics",
    "recalibrate",
    "renorm_schedule",
    "revert",
    "statistics_report",
    "unfreeze",
]
