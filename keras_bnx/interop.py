"""Exchange with PyTorch and Flax, as a name of the package."""

from keras_bnx.tools.interop import from_flax, from_torch, to_flax, to_torch

__all__ = ["from_flax", "from_torch", "to_flax", "to_torch"]
