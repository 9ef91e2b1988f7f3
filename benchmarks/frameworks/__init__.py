"""What the benchmarks have to say differently on each framework, and nothing else.

Every module provides the names in CONTRACT:

- `PACKAGES`: the modules whose versions belong to a result.
- `accelerator()`: the name of the device, or `None` for the processor.
- `synchronize()`: waits until the device has finished.
- `copy_step(x)`: a function that reads `x` once and writes as much once.
- `keras_layer(layer, shape)` and `native_layer(shape, axis, dtype)`: a *subject*, a
  layer with weights, that the functions below take. It has a `moving_mean`.
- `training_step(subject, x, dy)`: a function that takes one step: the output, the
  gradients of x, gamma and beta for the upstream gradient dy, and the update of the
  moving statistics. It returns `(y, dx)`.
- `inference_step(subject, x)`: a function that returns `y`.
- `bytes_kept(subject, x)`: the bytes that stay in memory from a forward pass to its
  backward pass, the input included where the backward pass reads it.
- `model_bytes(model, x)`: the bytes of a model's training step that grow with the
  batch; `None` where the framework doesn't say.
- `allocated_peak(function)`: the most bytes that are allocated on the accelerator
  during a call that was made before already; `None` on a processor.
"""

import importlib

import keras

CONTRACT = (
    "PACKAGES",
    "accelerator",
    "synchronize",
    "copy_step",
    "keras_layer",
    "native_layer",
    "training_step",
    "inference_step",
    "bytes_kept",
    "model_bytes",
    "allocated_peak",
)

MOMENTUM = 0.99  # the weight of the old value
EPSILON = 1e-3


def active():
    """The module of Keras's backend."""
    return importlib.import_module(f"{__name__}.{keras.config.backend()}")
