"""What differs by framework, behind one contract.

Each module beside this one provides every name in `CONTRACT`. There are two
implementations of the same two steps. `generic` writes them in `keras.ops`: it can be
read once, runs everywhere, and gets its gradients from the framework's own
differentiation. `native` is the best that a framework has, by its kernels and a
gradient written by hand that keeps the inputs and vectors only. What native can't
serve, generic does. Only these modules import a framework, and each only its own.
"""

import contextlib
import importlib
import os

import keras

CONTRACT = (
    "generic",  # `Implementation` in keras.ops
    "native",  # `Implementation` by the framework's kernels
    "obstacles",  # why native can't serve a batch, a list of sentences
    "replicas",  # `Replicas` that run this call beside each other, or None
    "is_traced",  # whether a tensor has no value yet
    "is_recomputing",  # whether this forward pass repeats an earlier one
)

CHOICES = ("auto", "generic", "native")


def active():
    """Returns the contract's module for `keras.config.backend()`.

    A backend without a module of its own (NumPy, OpenVINO) gets `generic`.
    """
    return _active


def choose(batch, *, synchronized=False):
    """Returns the `Implementation` for a batch: native where it serves, or as forced.

    Args:
        batch: `Batch`.
        synchronized: whether its statistics are taken over several replicas.

    Returns:
        The implementation; a list of sentences, why it isn't native.

    Raises:
        ValueError: where native is forced and can't serve, with every reason.
    """
    if _choice == "generic":
        return _active.generic, ["It is forced."]
    reasons = _active.obstacles(batch, synchronized=synchronized)
    if not reasons:
        return _active.native, reasons
    if _choice == "native":
        raise ValueError(
            "The native implementation is forced and can't serve this call: "
            f"{' '.join(reasons)} Received: inputs.shape={tuple(batch.x.shape)}, "
            f"inputs.dtype={keras.backend.standardize_dtype(batch.x.dtype)}. "
            "Leave the choice 'auto', or force 'generic'."
        )
    return _active.generic, reasons


@contextlib.contextmanager
def force(choice):
    """Sets what `choose` chooses, inside of a `with` statement."""
    global _choice
    before, _choice = _choice, _validate(choice, "implementation")
    try:
        yield
    finally:
        _choice = before


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
