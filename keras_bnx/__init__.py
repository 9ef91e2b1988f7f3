"""Batch normalization for Keras 3, right on TensorFlow, JAX and PyTorch."""

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.implementation import explain_implementation, force_implementation

__version__ = "0.1.0"

__all__ = [
    "BatchNormalization",
    "__version__",
    "explain_implementation",
    "force_implementation",
]
