"""Freezing over whole models."""

import warnings

import keras

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.models import batch_normalizations


def freeze(model: keras.Layer, statistics: bool = True, affine: bool = True) -> None:
    """Freezes every batch normalization of a model, nested ones too.

    Frozen statistics: the layer normalizes by its moving statistics, also in `fit`
    and whatever `training` says, and leaves them as they are. Frozen affine part:
    gamma and beta aren't trained. The other half goes on: gamma and beta adapt to
    new data on old statistics, or the statistics do while gamma and beta stay
    (AdaBN, Li et al. 2016, https://arxiv.org/abs/1603.04779). Survives `fit`,
    `model.trainable = True`, saving and loading, until `unfreeze`.

    What is frozen is compiled into training: after `compile`, call it again.

    Args:
        model: a model or layer.
        statistics: whether to freeze the moving statistics.
        affine: whether to freeze gamma and beta. Keras's own layers know only both
            together (`trainable=False`).

    Raises:
        ValueError: if a layer of Keras's is to be frozen by half, or there is no
            batch normalization at all. Nothing is frozen then.

    Example:

    >>> import keras, keras_bnx
    >>> model = keras.Sequential([keras.Input((3,)), keras_bnx.BatchNormalization()])
    >>> keras_bnx.freeze(model, statistics=True, affine=False)
    >>> len(model.trainable_weights)
    2
    """
    layers = batch_normalizations(model)
    if statistics and affine:
        kerass = []
    elif statistics or affine:
        kerass = [la for la in layers if not isinstance(la, BatchNormalization)]
    else:
        return
    if kerass:
        raise ValueError(
            "keras.layers.BatchNormalization can't be frozen by half. Received: "
            f"statistics={statistics}, affine={affine} and the layer "
            f"{kerass[0].name!r}. Freeze both, or use keras_bnx.BatchNormalization."
        )
    for layer in layers:
        if isinstance(layer, BatchNormalization):
            layer.freeze(statistics, affine)
        else:
            layer.trainable = False
    _warn_if_compiled(model, "freeze")


def unfreeze(model: keras.Layer) -> None:
    """Undoes `freeze`: every batch normalization trains and adapts again.

    Args:
        model: a model or layer.

    Raises:
        ValueError: if there is no batch normalization.

    Example:

    >>> import keras, keras_bnx
    >>> model = keras.Sequential([keras.Input((3,)), keras_bnx.BatchNormalization()])
    >>> keras_bnx.freeze(model)
    >>> keras_bnx.unfreeze(model)
    >>> len(model.trainable_weights)
    2
    """
    for layer in batch_normalizations(model):
        if isinstance(layer, BatchNormalization):
            layer.unfreeze()
        else:
            layer.trainable = True
    _warn_if_compiled(model, "unfreeze")


def _warn_if_compiled(model, name):
    if getattr(model, "compiled", False):
        warnings.warn(
            f"`{name}` after `compile`: what is trained is settled by then. Call "
            "`model.compile(...)` again, or JAX and TensorFlow go on as before, or "
            "fail.",
            stacklevel=3,
        )
