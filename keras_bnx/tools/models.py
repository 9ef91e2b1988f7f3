"""What tools over models share."""

import keras


def batch_normalizations(model):
    """Every batch normalization of a model or layer, Keras's and ours, in no order.

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
        elif isinstance(item, keras.Layer):
            # A model's layers, and those that are attributes, in containers or not.
            waiting += [getattr(item, "layers", []), *vars(item).values()]
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item
    if not found:
        raise ValueError(
            "There is no batch normalization in the model. "
            f"Received: {model!r}. Build a model of layers first, if its layers are "
            "made in `build`."
        )
    return found
