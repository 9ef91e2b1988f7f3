"""What differs by framework, behind one contract.

Each module beside this one provides every name in `CONTRACT`. There are two
kinds of arithmetic for the same two steps. `generic` writes them in `keras.ops`:
it can be read once, runs everywhere, and gets its gradients from the framework's
own differentiation. `native` is the best that a framework has, by its kernels
and a gradient written by hand that keeps the inputs and vectors only. What native
can't serve, generic does. Only these modules import a framework, and each only
its own.
"""

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

CONTRACT = (
    "generic",  # `Arithmetic` in keras.ops
    "native",  # `Arithmetic` by the framework's kernels
    "obstacles",  # why native can't serve a call, a list of sentences
    "replicas",  # `Replicas` that run this call beside each other, or None
    "is_known_finite",  # whether native's vector is known to be finite without waiting
    "is_traced",  # whether a tensor has no value yet
    "is_recomputing",  # whether this forward pass repeats an earlier one
)

CHOICES = ("auto", "generic", "native")


class Moments(NamedTuple):
    """Statistics of a batch: tensors of the channel axes' shape, at least float32.

    Attributes:
        count: `n = sum(w)`, the sum of the weights. Without weights it is the
            number of elements, and may be a scalar or a Python number.
        size: the number of elements with a weight above zero; likewise.
        shift: a number near the mean, without gradient.
        mean: `sum(w * (x - shift)) / n`; the mean of the channel is
            `shift + mean`, and is kept in two parts because their rounded sum
            would lose the digits that a small deviation needs. The Python number
            0 where `shift` is the mean.
        variance: `sum(w * (x - shift - mean)**2) / n`, the divisor is n.
    """

    count: Any
    size: Any
    shift: Any
    mean: Any
    variance: Any


class Replicas(NamedTuple):
    """Those that train one model beside each other, by the framework's own engine.

    Attributes:
        count: how many there are, a Python integer.
        index: which one this is, from 0; an integer or a tensor.
        all_reduce_sum: differentiable function that sums a tensor over all of them.
        joins: whether layers that aren't synchronized join their moving statistics.
    """

    count: int
    index: Any
    all_reduce_sum: Callable
    joins: bool


class Arithmetic(NamedTuple):
    """The two steps over the data, by one implementation.

    The gradient of the outputs runs through the statistics too. Generic leaves
    that to the framework; a native `moments` has no gradient, and the gradient of
    a native `normalize` counts the statistics as what they are, functions of the
    inputs. So the two steps have to be taken from the same arithmetic.

    Attributes:
        name: `"generic"` or `"native"`.
        kernels: what runs, in words.
        moments: `(x, weights, *, axes) -> Moments`, with the tuple of the channel
            axes, ascending. Virtual batches are a channel axis in front.
        normalize: `(x, weights, *, axes, shift, mean, variance, epsilon, gamma,
            beta, share, sum_replicas) -> y`, of `x`'s shape and dtype. `share` is the
            weight of one unit of `weights` in the statistics, 1/n, and 0 in channels
            that are normalized by other numbers than the batch's; `None` where all
            are. `sum_replicas` sums over the replicas whose elements count, too;
            `None` where there is one.
    """

    name: str
    kernels: str
    moments: Callable
    normalize: Callable


def active():
    """Returns the contract's module for `keras.config.backend()`.

    A backend without a module of its own (NumPy, OpenVINO) gets `generic`.
    """
    return _active


def choose(x, *, axes, synchronized=False):
    """Returns the `Arithmetic` for a call: native where it serves, or as forced.

    Raises:
        ValueError: where native is forced and can't serve, with every reason.
    """
    if _choice == "generic":
        return _active.generic
    reasons = _active.obstacles(x, axes=axes, synchronized=synchronized)
    if not reasons:
        return _active.native
    if _choice == "native":
        raise ValueError(
            "The native implementation is forced and can't serve this call: "
            f"{' '.join(reasons)} Received: inputs.shape={tuple(x.shape)}, "
            f"inputs.dtype={keras.backend.standardize_dtype(x.dtype)}. "
            "Leave the choice 'auto', or force 'generic'."
        )
    return _active.generic


@contextlib.contextmanager
def force(choice):
    """Sets what `choose` chooses, inside of a `with` statement."""
    global _choice
    before, _choice = _choice, _validate(choice, "implementation")
    try:
        yield
    finally:
        _choice = before


def forced():
    """Returns the choice in force: `"auto"`, `"generic"` or `"native"`."""
    return _choice


def _validate(choice, name):
    if choice not in CHOICES:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, CHOICES))}. "
            f"Received: {name}={choice!r}. Correct the value."
        )
    return choice


def _load():
    name = keras.config.backend()
    if name not in ("jax", "tensorflow", "torch"):
        name = "generic"
    return importlib.import_module(f"keras_bnx.backends.{name}")


_choice = _validate(
    os.environ.get("KERAS_BNX_IMPLEMENTATION", "auto"), "KERAS_BNX_IMPLEMENTATION"
)
# Keras's backend can't change once Keras is imported, and compilers can't trace an
# import; Keras has imported the framework already.
_active = _load()
