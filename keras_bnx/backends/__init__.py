"""What differs by framework, behind one contract.

Each module beside this one provides every name in `CONTRACT`. `generic` writes
the arithmetic in `keras.ops`, so that it can be read once and runs everywhere;
a framework's module takes from `generic` whatever the framework has no better
way to do. Only these modules import a framework, and each only its own.
"""

import importlib
from typing import Any, NamedTuple

import keras

CONTRACT = (
    "moments",  # the statistics of a batch
    "normalize",  # center, scale and offset, with weights of zero harmless
    "all_reduce_sum",  # sums over the replicas, None where there is no such sum
    "is_traced",  # whether a tensor has no value yet
    "is_recomputing",  # whether this forward pass repeats an earlier one
)


class Moments(NamedTuple):
    """Statistics of a batch: tensors of shape `(channels,)`, at least float32.

    Attributes:
        count: `n = sum(w)`, the sum of the weights; without weights the number
            of elements.
        size: the number of elements with a weight above zero.
        shift: a number near the mean, without gradient.
        mean: `sum(w * (x - shift)) / n`; the mean of the channel is
            `shift + mean`, and is kept in two parts because their rounded sum
            would lose the digits that a small deviation needs.
        variance: `sum(w * (x - shift - mean)**2) / n`, the divisor is n.
    """

    count: Any
    size: Any
    shift: Any
    mean: Any
    variance: Any


def active():
    """Returns the contract's module for `keras.config.backend()`.

    A backend without a module of its own (NumPy, OpenVINO) gets `generic`.
    """
    return _active


def _load():
    name = keras.config.backend()
    if name not in ("jax", "tensorflow", "torch"):
        name = "generic"
    return importlib.import_module(f"keras_bnx.backends.{name}")


# Keras's backend can't change once Keras is imported, and compilers can't trace an
# import; Keras has imported the framework already.
_active = _load()
