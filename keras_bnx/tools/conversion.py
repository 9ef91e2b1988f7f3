"""Copies of models with other batch normalization."""

import keras
from keras import ops

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.models import batch_normalizations

# These two themselves. What a subclass of either computes is its author's.
_CONVERTED = (keras.layers.BatchNormalization, BatchNormalization)


def convert(model, **arguments):
    """Copies a model with this package's layer for every batch normalization.

    Keras's layers become ours, ours take the new arguments, and all weights are kept:
    `convert(model, synchronized=True)` is the same model for several replicas, and
    `synchronized=False` leads back. Model and copy share nothing, so that either can
    be trained. The copy is compiled where the model is, by the same configuration and
    with an optimizer that starts anew, as `keras.models.clone_model` does it.

    Only the two classes themselves are converted. Subclasses of either may compute
    something else: they are kept, as every other layer is, and copied by their
    `get_config` and `from_config`.

    Args:
        model: a Sequential or Functional model; nested ones are converted, too.
        **arguments: arguments of `keras_bnx.BatchNormalization` to change in every
            layer. The others stay as each layer has them.

    Returns:
        A model of the same layers, names (those of its inputs, too) and weights. What
        is shared in the model is shared in the copy. What only an option keeps (the
        counts of an average, say) is kept where both have it, and otherwise starts as
        after loading a file without it.

    Raises:
        ValueError: for a model that isn't made of layers known beforehand, or where a
            batch normalization is hidden in another layer, or there is none to
            convert; for a layer or nested model that can't be copied, by name; for
            wrong arguments.

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
    # Each layer and its copy, by the layer's id: what is shared is copied once.
    pairs = {}

    def clone(layer):
        if id(layer) not in pairs:
            # A layer's own layers come first.
            pairs[id(layer)] = (layer, _clone(layer, clone, arguments))
        return pairs[id(layer)][1]

    copy = clone(model)
    _raise_unless_converted(copy, [new for _, new in pairs.values()])
    # A model's `trainable` is passed on to its layers, so models come first.
    for old, new in reversed(pairs.values()):
        if isinstance(old, keras.Layer):
            if new.trainable != old.trainable:
                new.trainable = old.trainable
            if old.built and not _is_made_of_layers(old):
                _copy_weights(old, new)
    return copy


def _is_made_of_layers(model):
    # Functional models have a graph of operations.
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and hasattr(model, "operations")
    )


def _clone(layer, clone, arguments):
    if type(layer) in _CONVERTED:
        return BatchNormalization.from_config({**layer.get_config(), **arguments})
    if not _is_made_of_layers(layer):
        try:
            return type(layer).from_config(layer.get_config())
        except Exception as error:
            raise _refusal(layer, error) from error
    inputs = None
    if not isinstance(layer, keras.Sequential):
        # Those that Keras would make lose the names of unnamed inputs, and `optional`.
        copies = {
            id(old.output): type(old).from_config(old.get_config()).output
            for old in layer.layers
            if isinstance(old, keras.layers.InputLayer)
        }
        inputs = keras.tree.map_structure(lambda x: copies[id(x)], layer.input)
    copy = keras.models.clone_model(layer, inputs, clone_function=clone)
    if type(copy) is not type(layer):
        raise ValueError(
            "A model whose class has a constructor of its own can't be copied without "
            f"losing the class. Received: {layer.name!r} of {type(layer).__name__}. "
            "Pass `keras.Model(model.inputs, model.outputs)`, the same layers without "
            "the class."
        )
    return copy


def _raise_unless_converted(copy, copies):
    known = {id(layer) for layer in copies}
    found = batch_normalizations(copy)
    left = [layer for layer in found if type(layer) in _CONVERTED]
    for layer in left:
        if id(layer) not in known:
            raise ValueError(
                "A batch normalization inside of another layer can't be converted. "
                f"Received: {layer.name!r}. Write it into the model's own layers."
            )
    if not left:
        raise ValueError(
            "Only the classes BatchNormalization of Keras and keras_bnx are "
            "converted, and the model has none of them but subclasses. Received: "
            f"{found[0].name!r} of {type(found[0]).__name__}. Change the subclass."
        )


def _copy_weights(old, new):
    if isinstance(new, BatchNormalization) and type(old) in _CONVERTED:
        _copy_own(old, new)
        if getattr(old, "history", None) and new.history:
            _copy_own(old.history, new.history)
        return
    try:
        # First as a file does it: `Normalization`, say, computes something from them.
        _copy_own(old, new)
        for weight, value in zip(new.weights, old.weights, strict=True):
            weight.assign(ops.copy(value))
    except Exception as error:
        raise _refusal(old, error) from error


def _copy_own(old, new):
    if not old.built:
        return
    store = {}
    old.save_own_variables(store)
    # Copies: JAX would keep the arrays themselves, and Keras donates them.
    new.load_own_variables({key: ops.copy(value) for key, value in store.items()})


def _refusal(layer, error):
    return ValueError(
        "A layer can't be copied by its `get_config`, `from_config` and weights. "
        f"Received: {layer.name!r} of {type(layer).__name__}, which says: {error} "
        "Correct the layer's methods."
    )
