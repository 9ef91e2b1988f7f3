"""Which implementation runs: asking, and deciding it for tests and bug reports."""

from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import keras

from keras_bnx import backends
from keras_bnx.batch_normalization import BatchNormalization


class Explanation(NamedTuple):
    """What runs for a call, and why.

    Attributes:
        implementation: `"native"` or `"generic"`.
        kernels: what does the work, in words.
        reasons: list of sentences, why it isn't native; empty where it is.
    """

    implementation: str
    kernels: str
    reasons: list[str]

    def __str__(self) -> str:
        return " ".join([f"{self.implementation} ({self.kernels}).", *self.reasons])


def force_implementation(
    implementation: Literal["auto", "generic", "native"],
) -> AbstractContextManager[None]:
    """Decides which implementation layers use, inside of a `with` statement.

    `"native"` is a framework's own kernels with a gradient that keeps the inputs
    only, `"generic"` the same formulas in `keras.ops`. By default, `"auto"`, native
    runs where it can. Force one to compare results, or for a bug report; the
    environment variable `KERAS_BNX_IMPLEMENTATION` does it for a whole process.
    What is compiled (`jit`, `tf.function`, `fit`) keeps what it was traced with.

    Args:
        implementation: `"auto"`, `"generic"` or `"native"`.

    Returns:
        A context manager. Within it a call that a forced `"native"` can't serve
        raises a `ValueError` with every reason.

    Raises:
        ValueError: for any other value.

    Example:

    >>> import keras, keras_bnx
    >>> layer, x = keras_bnx.BatchNormalization(), keras.ops.ones((4, 3))
    >>> with keras_bnx.force_implementation("generic"):
    ...     print(keras_bnx.explain_implementation(layer, x))
    generic (keras.ops). It is forced.
    """
    return backends.force(implementation)


def explain_implementation(layer: BatchNormalization, inputs: Any) -> Explanation:
    """Says which implementation would run for a layer and its inputs, and why.

    Nothing is computed. With `virtual_batch_size` the answer is that of training.
    Inside of a function that is being compiled the answer
    may be another than outside, so ask where the layer is called.

    Args:
        layer: a `keras_bnx.BatchNormalization`.
        inputs: a batch, tensor or array.

    Returns:
        An `Explanation`; `print` it, or look at its `implementation` and `reasons`.

    Raises:
        ValueError: for another layer, or symbolic inputs.

    Example:

    >>> import keras, keras_bnx
    >>> layer, x = keras_bnx.BatchNormalization(), keras.ops.ones((4, 3))
    >>> keras_bnx.explain_implementation(layer, x).implementation
    'native'
    """
    if not isinstance(layer, BatchNormalization):
        raise ValueError(
            "Only a layer of keras_bnx has more than one implementation. "
            f"Received: layer={layer!r}. Pass a keras_bnx.BatchNormalization."
        )
    if keras.utils.is_keras_tensor(inputs):
        raise ValueError(
            "What runs depends on a real batch. "
            f"Received: inputs={inputs!r}. Pass a tensor or an array."
        )
    batch = layer._batch(keras.ops.convert_to_tensor(inputs), None)
    context = backends.active().replicas(layer.axis_name)
    (part, *_), reduction = layer._parts(batch, context)
    try:
        chosen, reasons = layer._choose(part, reduction)
    except ValueError as error:
        return Explanation("none", "this call raises an error", [str(error)])
    return Explanation(chosen.name, chosen.kernels, reasons)
