"""Batch normalization for Keras 3, right on TensorFlow, JAX and PyTorch."""

from keras_bnx import interop  # noqa: F401 - a module, by this name
from keras_bnx.averages import keep_moving_statistics
from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.implementation import explain_implementation, force_implementation
from keras_bnx.schedules import Ramp, renorm_schedule
from keras_bnx.tools.conversion import convert, revert
from keras_bnx.tools.freezing import freeze, unfreeze

__version__ = "0.1.0"

__all__ = [
    "BatchNormalization",
    "Ramp",
    "__version__",
    "convert",
    "explain_implementation",
    "force_implementation",
    "freeze",
    "keep_moving_statistics",
    "renorm_schedule",
    "revert",
    "unfreeze",
]
