"""Copies of models with other batch normalization."""

import keras

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.models import batch_normalizations


def convert(model, **arguments):
    """Copies a model with this package's layer for every batch normalization.

    Keras's layers become ours, ours take the new arguments, and all weights are kept:
    `convert(model, synchronized=True)` is the same model for several replicas, and
    `synchronized=False` leads back. The copy isn't compiled, as `clone_model`'s.

    Args:
        model: a Sequential or Functional model; nested ones are converted, too.
        **arguments: arguments of `keras_bnx.BatchNormalization` to change in every
            layer. The others stay as each layer has them.

    Returns:
        A model of the same layers, names and weights. What only an option keeps (the
        counts of an average, say) is kept where both have it, and otherwise starts as
        after loading a file without it.

    Raises:
        ValueError: for a model that isn't made of layers known beforehand, or where a
            batch normalization is hidden in another layer; for wrong arguments.

    Example:

    >>> import keras, keras_bnx
    >>> layers = [keras.Input((3,)), keras.layers.BatchNormalization()]
    >>> model = keras_bnx.convert(keras.Sequential(layers), synchronized=True)
    >>> model.layers[0].synchronized
    True
    """
    if not _is_made_of_layers(model):
        raise ValueError(
            "Only a Sequential or Functional model can be converted. "
            f"Received: {model!r}. Write the layer into the model's code, and load its "
            "weights: their files are the same."
        )
    # Refused here, wrong arguments have a message of one line.
    BatchNormalization(**arguments)
    converted = []

    def clone(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            config = {**layer.get_config(), **arguments}
            converted.append(BatchNormalization.from_config(config))
            return converted[-1]
        if _is_made_of_layers(layer):
            return keras.models.clone_model(layer, clone_function=clone)
        return type(layer).from_config(layer.get_config())

    copy = clone(model)
    for layer in batch_normalizations(copy):
        if not any(layer is known for known in converted):
            raise ValueError(
                "A batch normalization inside of another layer can't be converted. "
                f"Received: {layer.name!r}. Write it into the model's own layers."
            )
    _copy_weights(model, copy)
    return copy


def _is_made_of_layers(model):
    # Functional models have a graph of operations.
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and hasattr(model, "operations")
    )


def _copy_weights(model, copy):
    for old, new in zip(model.layers, copy.layers, strict=True):
        if _is_made_of_layers(old):
            _copy_weights(old, new)
        elif isinstance(new, BatchNormalization):
            _copy_own(old, new)
            if getattr(old, "history", None) and new.history:
                _copy_own(old.history, new.history)
        elif old.built:
            new.set_weights(old.get_weights())


def _copy_own(old, new):
    if old.built:
        store = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
