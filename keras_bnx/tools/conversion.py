"""Copies of models with other batch normalization."""

from typing import Any

import keras

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.models import (
    batch_normalizations,
    copy_own,
    copy_weights,
    copying_failed,
)

KERAS = keras.layers.BatchNormalization
# These two themselves. What a subclass of either computes is its author's.
_CONVERTED = (KERAS, BatchNormalization)


def convert(model: keras.Model, **arguments: Any) -> keras.Model:
    """Copies a model with this package's layer for every batch normalization.

    Keras's layers become ours, ours take the new arguments, and all weights are kept:
    `convert(model, synchronized=True)` is the same model for several replicas, and
    `synchronized=False` leads back; `revert` leads back to Keras's layers. Model and
    copy share nothing, so that either can be trained. The copy is compiled where the
    model is, by the same configuration and with an optimizer that starts anew, as
    `keras.models.clone_model` does it.

    Layers in other layers are converted too: in wrappers (`TimeDistributed`,
    `Bidirectional`), nested models, and layers and models of a class of your own that
    make them in their constructor, or take them as arguments. What a constructor makes
    it makes again on loading a file: convert such a model anew after that.

    Only the two classes themselves are converted. Subclasses of either may compute
    something else: they are kept, as every other layer is, and copied by their
    `get_config` and `from_config`.

    Args:
        model: a model. One that isn't Sequential or Functional has to be of a class
            that Keras can copy by `get_config` and `from_config`.
        **arguments: arguments of `keras_bnx.BatchNormalization` to change in every
            layer. The others stay as each layer has them.

    Returns:
        A model of the same layers, names (those of its inputs, too) and weights. What
        is shared in the model is shared in the copy. What only an option keeps (the
        counts of an average, say) is kept where both have it, and otherwise starts as
        after loading a file without it.

    Raises:
        ValueError: where there is no batch normalization to convert, or one is made in
            a layer's `build` or hidden from Keras; for a layer or model that can't be
            copied, by name; for wrong arguments.

    Example:

    >>> import keras, keras_bnx
    >>> layers = [keras.Input((3,)), keras.layers.BatchNormalization()]
    >>> model = keras_bnx.convert(keras.Sequential(layers), synchronized=True)
    >>> model.layers[0].synchronized
    True
    """
    # Refused here, wrong arguments have a message of one line.
    BatchNormalization(**arguments)

    def convert_layer(layer):
        return BatchNormalization.from_config({**layer.get_config(), **arguments})

    return _copy(model, convert_layer)


def revert(model: keras.Model) -> keras.Model:
    """Copies a model with Keras's own layer for every batch normalization.

    `convert`'s way back: the copy and its files need this package no more. Names,
    weights and `trainable` are kept, as `convert` keeps them. Layers that are frozen
    as a whole become `trainable=False`, which computes the same; Keras forgets it at
    `model.trainable = True`.

    Args:
        model: a model, as for `convert`.

    Returns:
        A model of the same layers, names and weights.

    Raises:
        ValueError: if Keras's layer lacks an argument that one of the layers uses: all
            of them are listed, with their layers. `convert(model, momentum=0.99)`,
            say, decides beforehand what the model is to do without it. Also for
            subclasses of our layer, and wherever `convert` raises it.

    Example:

    >>> import keras, keras_bnx
    >>> model = keras.Sequential([keras.Input((3,)), keras_bnx.BatchNormalization()])
    >>> type(keras_bnx.revert(model).layers[0]) is keras.layers.BatchNormalization
    True
    """
    lacks = {}
    for layer in batch_normalizations(model):
        if isinstance(layer, BatchNormalization) and (found := _lacks(layer)):
            lacks[layer.name] = ", ".join(found)
    if lacks:
        raise ValueError(
            "keras.layers.BatchNormalization can't express every layer. Received: "
            + "; ".join(f"{name!r} with {found}" for name, found in lacks.items())
            + ". Set what Keras has instead by `convert(model, argument=value)`, "
            "`unfreeze`, or in the class, and revert then."
        )

    def revert_layer(layer):
        config = layer.get_config()
        config.pop("frozen", None)
        return KERAS.from_config(config)

    return _copy(model, revert_layer)


def _lacks(layer):
    """What Keras's layer lacks of one of ours, as text."""
    if type(layer) is not BatchNormalization:
        return [f"the class {type(layer).__name__}"]
    config = layer.get_config()
    # Layers that are frozen as a whole compute what `trainable=False` does.
    if len(layer.frozen) == 2:
        del config["frozen"]
    # Our config has more only where it is used. `axes` repeats an axis of several.
    more = set(config) - set(KERAS().get_config()) - {"axes"}
    if isinstance(layer.axis, tuple):
        more.add("axis")
    if layer.momentum is None:
        more.add("momentum")
    # Keras synchronizes on TensorFlow only, and always all replicas.
    everywhere = layer.synchronized is True and keras.config.backend() == "tensorflow"
    if layer.synchronized and not everywhere:
        more.add("synchronized")
    if any(map(callable, (layer.renorm_clipping or {}).values())):
        more.add("renorm_clipping")
    # Where our weights are float32, Keras would round them.
    if layer.variable_dtype in ("float16", "bfloat16"):
        return [f"dtype={layer.variable_dtype!r}", *_arguments(layer, more)]
    return _arguments(layer, more)


def _arguments(layer, names):
    return [f"{name}={getattr(layer, name)!r}" for name in sorted(names)]


def _copy(model, change):
    """Copies a model, with other layers for its batch normalizations.

    Args:
        model: the model, which stays as it is.
        change: a function from one of the two classes' layers to what takes its place,
            with the same name, and not built.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Only a model can be converted. "
            f"Received: {model!r}. Put the layer into a Sequential model."
        )
    found = batch_normalizations(model)
    if not any(type(layer) in _CONVERTED for layer in found):
        raise ValueError(
            "Only the classes BatchNormalization of Keras and keras_bnx are "
            "converted, and the model has none of them but subclasses. Received: "
            f"{found[0].name!r} of {type(found[0]).__name__}. Change the subclass."
        )
    copier = _Copier(change)
    copy = copier.copy(model)
    if model.built and not copy.built:
        _build_by_config(model, copy)
    copier.finish(copy)
    if model.compiled and not copy.compiled:
        copy.compile_from_config(model.get_compile_config())
    return copy


def _build_by_config(model, copy):
    try:
        # Weights are named by the scope, which calls open.
        with keras.name_scope(copy.name):
            copy.build_from_config(model.get_build_config())
    except Exception as error:
        raise copying_failed(model, error) from error
    # Keras says so only after the first call.
    copy.built = True


class _Copier:
    """Copies layers with all that is in them, each once.

    Attributes:
        pairs: each layer and its copy, by the layer's id: what is shared is copied
            once. A layer's own layers come first.
    """

    def __init__(self, change):
        self.change, self.pairs = change, {}

    def copy(self, layer):
        if id(layer) not in self.pairs:
            if type(layer) in _CONVERTED:
                copy = self.change(layer)
            elif _is_made_of_layers(layer):
                copy = _clone_graph(layer, self.copy)
            else:
                copy = _clone_by_config(layer)
                # Models also have operations, `ops.add` say, which aren't layers.
                if isinstance(layer, keras.Layer):
                    self.fill(layer, copy)
            self.pair(layer, copy)
        return self.pairs[id(layer)][1]

    def pair(self, old, new):
        self.pairs.pop(id(old), None)
        self.pairs[id(old)] = (old, new)

    def fill(self, old, new):
        """Gives a copy by config the copies of the layers that are in the original.

        Args:
            old: a layer that isn't made of layers as Keras's models are.
            new: its copy, which has made layers of its own, not built yet.
        """
        # A layer in a layer may refer to it.
        self.pair(old, new)
        tracker = _tracker(new)
        for name, value in list(vars(new).items()):
            filled = self._filled(vars(old).get(name), value, tracker)
            if filled is not value:
                setattr(new, name, filled)
        self.pair(old, new)

    def _filled(self, old, new, tracker):
        """What takes the place of an attribute of a copy, containers included."""
        if isinstance(new, keras.Layer):
            # A constructor makes the same anew, whatever took its place since.
            both = {type(old), type(new)}
            fits = len(both) == 1 or both == set(_CONVERTED)
            return self._layer(old, new, tracker) if fits else new
        keys = ()
        if isinstance(new, dict) and isinstance(old, dict):
            keys = [key for key in new if key in old]
        elif isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)):
            keys = range(min(len(old), len(new)))
        changed = {}
        for key in keys:
            filled = self._filled(old[key], new[key], tracker)
            if filled is not new[key]:
                changed[key] = filled
        if isinstance(new, tuple) and changed:
            values = [changed.get(i, value) for i, value in enumerate(new)]
            return type(new)(*values) if hasattr(new, "_fields") else type(new)(values)
        for key, filled in changed.items():
            new[key] = filled
        return new

    def _layer(self, old, new, tracker):
        if id(old) not in self.pairs:
            if type(old) in _CONVERTED or _is_made_of_layers(old):
                self.copy(old)
            elif old.name != new.name:
                # Named by Keras, which counts on. Where it can't be copied by itself,
                # the one that the constructor made serves as well.
                try:
                    self.copy(old)
                except ValueError:
                    self.fill(old, new)
            else:
                self.fill(old, new)
        layer = self.pairs[id(old)][1]
        if layer is not new and tracker.is_in_store("layers", new):
            if tracker.is_in_store("layers", layer):
                tracker.untrack(new)
            else:
                tracker.replace_tracked_value("layers", new, layer)
        return layer

    def finish(self, copy):
        """Checks that all is converted, then copies `trainable` and weights."""
        known = {id(new) for _, new in self.pairs.values()}
        for layer in batch_normalizations(copy):
            if type(layer) in _CONVERTED and id(layer) not in known:
                raise ValueError(
                    "A batch normalization that a layer makes in its `build`, or keeps "
                    "where Keras doesn't see it, can't be converted. "
                    f"Received: {layer.name!r}. Make it in the constructor, as an "
                    "attribute."
                )
        converted = {
            id(weight)
            for pair in self.pairs.values()
            if type(pair[0]) in _CONVERTED
            for layer in pair
            for weight in layer.weights
        }
        # A layer's `trainable` is passed on to its layers, so outer ones come first.
        for old, new in reversed(self.pairs.values()):
            if isinstance(old, keras.Layer):
                trains = _trains(old, new)
                if new.trainable != trains:
                    new.trainable = trains
                if old.built and not _is_made_of_layers(old):
                    _copy_weights(old, new, converted)


def _is_made_of_layers(model):
    # Functional models have a graph of operations.
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and hasattr(model, "operations")
    )


def _clone_by_config(layer):
    try:
        return type(layer).from_config(_not_built(layer.get_config()))
    except Exception as error:
        raise copying_failed(layer, error) from error


def _not_built(config):
    """A config of layers that are built later, when those in them are replaced."""
    if isinstance(config, dict):
        keys = [k for k in config if k != "build_config" or "class_name" not in config]
        return {key: _not_built(config[key]) for key in keys}
    if type(config) in (list, tuple):
        return type(config)(map(_not_built, config))
    return config


def _clone_graph(model, clone):
    inputs = None
    if not isinstance(model, keras.Sequential):
        # Those that Keras would make lose the names of unnamed inputs, and `optional`.
        copies = {
            id(old.output): type(old).from_config(old.get_config()).output
            for old in model.layers
            if isinstance(old, keras.layers.InputLayer)
        }
        inputs = keras.tree.map_structure(lambda x: copies[id(x)], model.input)
    copy = keras.models.clone_model(model, inputs, clone_function=clone)
    if type(copy) is not type(model):
        raise ValueError(
            "A model whose class has a constructor of its own can't be copied without "
            f"losing the class. Received: {model.name!r} of {type(model).__name__}. "
            "Pass `keras.Model(model.inputs, model.outputs)`, the same layers without "
            "the class."
        )
    return copy


def _tracker(layer):
    """What knows the weights and layers among a layer's attributes."""
    # Replaced in it, a layer keeps its place among the others, and the weights their
    # order; setting the attribute anew would add one and forget none.
    values = vars(layer).values()
    return next(v for v in values if hasattr(type(v), "replace_tracked_value"))


def _trains(old, new):
    """Whether a copy trains. Keras's layer has one switch for both halves of ours."""
    of_keras = isinstance(old, BatchNormalization) and type(new) is KERAS
    return old.trainable and not (of_keras and len(old.frozen) == 2)


def _copy_weights(old, new, converted):
    """Copies a layer's weights, but those of the converted layers in it."""
    if type(old) in _CONVERTED:
        copy_own(old, new)
        if getattr(old, "history", None) and getattr(new, "history", None):
            copy_own(old.history, new.history)
        return
    try:
        copy_weights(old, new, leave_out=converted)
    except Exception as error:
        raise copying_failed(old, error) from error
