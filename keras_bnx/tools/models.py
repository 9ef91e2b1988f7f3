"""What tools over models share."""

import contextlib
import os
import pathlib

import keras
from keras import ops


def walk(model, enter=lambda layer: True):
    """Yields a model or layer and every layer inside, each once.

    They come in the order in which models and layers hold them.

    Args:
        model: a model or layer.
        enter: function of a layer that says whether to look for others inside.
    """
    seen, waiting = {}, [model]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        parts = []
        if isinstance(item, keras.Layer):
            yield item
            if enter(item):
                # A model's layers, and those that are attributes.
                parts = [getattr(item, "layers", []), *vars(item).values()]
        elif isinstance(item, dict):
            parts = list(item.values())
        elif isinstance(item, (list, tuple, set)):
            parts = list(item)
        # The next to be looked at is the last of those that wait.
        waiting += reversed(parts)


def batch_normalizations(model):
    """Every batch normalization of a model or layer, Keras's and ours, in order.

    Raises:
        ValueError: if there is none.
    """
    kind = keras.layers.BatchNormalization
    found = [layer for layer in walk(model) if isinstance(layer, kind)]
    if not found:
        raise ValueError(
            "There is no batch normalization in the model. "
            f"Received: {model!r}. Build a model of layers first, if its layers are "
            "made in `build`."
        )
    return found


def copy_weights(old, new, leave_out=()):
    """Gives a layer the weights of another one, as a file would, and all others.

    Args:
        old, new: layers whose weights correspond.
        leave_out: ids of weights of either that have been copied.
    """
    # First as a file does it: `Normalization`, say, computes something from them.
    copy_own(old, new)
    weights, values = (
        [weight for weight in layer.weights if id(weight) not in leave_out]
        for layer in (new, old)
    )
    for weight, value in zip(weights, values, strict=True):
        weight.assign(ops.copy(value))


def copy_own(old, new):
    """Gives a layer what a file has of another one itself, without its layers'."""
    store = {}
    old.save_own_variables(store)
    # Copies: JAX would keep the arrays themselves, and Keras donates them.
    new.load_own_variables({key: ops.copy(value) for key, value in store.items()})


def activation_of(layer):
    """The activation that a layer has behind its own function, or `None`."""
    activation = getattr(layer, "activation", None)
    return None if activation is keras.activations.linear else activation


def activation_layer(layer, name):
    """A layer that computes the activation of another one by itself."""
    activation = layer.activation
    if isinstance(activation, keras.Layer):
        config = {**activation.get_config(), "name": name}
        try:
            return type(activation).from_config(config)
        except Exception as error:
            raise copying_failed(activation, error) from error
    return keras.layers.Activation(activation, name=name, dtype=layer.dtype_policy)


def copying_failed(layer, error):
    """The `ValueError` for a layer that isn't what its config and weights say."""
    return ValueError(
        "A layer can't be copied by its `get_config`, `from_config` and weights. "
        f"Received: {layer.name!r} of {type(layer).__name__}, which says: {error} "
        "Correct the layer's methods."
    )


def names(layers):
    """A name for each layer: its own, or its path where others have the same."""
    own = [layer.name for layer in layers]
    return {
        id(layer): layer.name if own.count(layer.name) == 1 else layer.path
        for layer in layers
    }


def table(header, rows):
    """Lines of text, one for each row, in columns.

    Args:
        header: list of strings. The columns of those that start with a space are
            aligned to the right, as numbers are.
        rows: lists of strings.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [name.startswith(" ") for name in header]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def written_whole(path):
    """Gives a path beside a file to write to, which then takes the file's place.

    Where writing fails, the file is as it was, and nothing is beside it.
    """
    path = pathlib.Path(path)
    # Of the same suffix: Keras and matplotlib choose a format by it.
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
