"""What tools over models share."""

import keras


def batch_normalizations(model):
    """Every batch normalization of a model or layer, Keras's and ours.

    They come in the order in which models and layers hold them.

    Raises:
        ValueError: if there is none.
    """
    found, seen, waiting = [], {}, [model]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, keras.layers.BatchNormalization):
            found.append(item)
        else:
            # The next to be looked at is the last of those that wait.
            waiting += reversed(parts(item))
    if not found:
        raise ValueError(
            "There is no batch normalization in the model. "
            f"Received: {model!r}. Build a model of layers first, if its layers are "
            "made in `build`."
        )
    return found


def parts(item):
    """What a layer or container holds: layers, and other things that may hold some."""
    if isinstance(item, keras.Layer):
        # A model's layers, and those that are attributes, in containers or not.
        return [getattr(item, "layers", []), *vars(item).values()]
    if isinstance(item, dict):
        return list(item.values())
    return list(item) if isinstance(item, (list, tuple, set)) else []


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
