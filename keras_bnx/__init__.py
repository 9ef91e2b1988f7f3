"""Batch normalization for Keras 3, right on TensorFlow, JAX and PyTorch."""

from keras_bnx.batch_normalization import BatchNormalization

__version__ = "0.1.0"

__all__ = ["BatchNormalization", "__version__"]
