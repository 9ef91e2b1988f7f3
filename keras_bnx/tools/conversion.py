"""Copies of models with other batch normalization."""

from collections import Counter
from typing import Any

import keras

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.ops.activations import recognize
from keras_bnx.tools import graphs
from keras_bnx.tools.models import (
    activation_layer,
    activation_of,
    batch_normalizations,
    copy_own,
    copy_weights,
    copying_failed,
    walk,
)

KERAS = keras.layers.BatchNormalization
# These two themselves. What a subclass of either computes is its author's.
_CONVERTED = (KERAS, BatchNormalization)


def convert(
    model: keras.Model, *, fuse_activations: bool = False, **arguments: Any
) -> keras.Model:
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
        fuse_activations: whether a normalization also takes the activation behind it
            (`ReLU`, `LeakyReLU`, `ELU`, or an `Activation` that the argument
            `activation` lists), if nothing else uses what is between the two, so that
            it keeps less for the backward pass. It does so in Sequential and
            Functional models, nested ones too; `revert` takes them apart again.
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

    def convert_layer(layer, activation=None):
        # A layer, not its function: it has a name to be reverted to.
        more = {} if activation is None else {"activation": activation}
        return BatchNormalization.from_config(
            {**layer.get_config(), **arguments, **more}
        )

    if fuse_activations:
        _raise_unless_known(model)
    return _copy(model, _Copier(convert_layer, fuses=fuse_activations))


def revert(model: keras.Model) -> keras.Model:
    """Copies a model with Keras's own layer for every batch normalization.

    `convert`'s way back: the copy and its files need this package no more. Names,
    weights and `trainable` are kept, as `convert` keeps them. Layers that are frozen
    as a whole become `trainable=False`, which computes the same; Keras forgets it at
    `model.trainable = True`. An `activation` becomes a layer behind.

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
    lacks, in_graphs = {}, {id(call.operation) for call in _calls(model)}
    for layer in batch_normalizations(model):
        if isinstance(layer, BatchNormalization) and (
            found := _lacks(layer, id(layer) in in_graphs)
        ):
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
        for name in ("frozen", "activation"):
            config.pop(name, None)
        return KERAS.from_config(config)

    return _copy(model, _Copier(revert_layer, splits=True))


def _calls(model):
    """The calls in the graphs of a model and of those in it, each graph once."""
    models = [layer for layer in walk(model) if graphs.is_graph(layer)]
    read = [graphs.read(each).calls for each in models]
    # Once by what they call: a Sequential model also has its layers in another one.
    once = {tuple(id(call.operation) for call in calls): calls for calls in read}
    return [call for calls in once.values() for call in calls]


def _raise_unless_known(model):
    for layer in walk(model):
        if isinstance(layer, keras.Sequential) and not graphs.is_built(layer):
            raise ValueError(
                "Activations can be fused where a model's inputs are known. "
                f"Received: {layer!r}. Begin it with a `keras.Input`, or call it on "
                "data first."
            )


def _fused(graph, counts):
    """The calls of activations that normalizations can compute, by the latter's ids.

    Args:
        graph: a `Graph`.
        counts: dictionary of how often each layer is called, by its id.
    """
    users, found = graphs.users(graph), {}
    for call in graph.calls:
        layer = call.operation
        if type(layer) in _CONVERTED and counts[id(layer)] == 1:
            behind = users[id(call.outputs[0])]
            if len(behind) == 1 and _can_be_taken(behind[0], layer):
                found[id(layer)] = behind[0]
    return found


def _can_be_taken(call, layer):
    """Whether a call is of an activation that a normalization can compute."""
    if call is None or call.main_inputs is None or activation_of(layer) is not None:
        return False
    other = call.operation
    is_known = isinstance(other, keras.Layer) and recognize(other) is not None
    return is_known and other.compute_dtype == layer.compute_dtype


def _lacks(layer, is_in_graph):
    """What Keras's layer lacks of one of ours, as text.

    Args:
        layer: the layer.
        is_in_graph: whether another layer can be put behind it.
    """
    if type(layer) is not BatchNormalization:
        return [f"the class {type(layer).__name__}"]
    config = layer.get_config()
    # Layers that are frozen as a whole compute what `trainable=False` does.
    if len(layer.frozen) == 2:
        del config["frozen"]
    if is_in_graph:
        config.pop("activation", None)
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


def _copy(model, copier):
    """Copies a model, which stays as it is, by a `_Copier`."""
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
    copy = copier.copy_model(model)
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
        change: a function from one of the two classes' layers to what takes its place,
            with the same name, and not built.
            Where `fuses`, also of the layer of an activation, which it is to compute.
        fuses: whether normalizations take the activations behind them.
        splits: whether activations of normalizations become layers behind them.
        pairs: each layer and its copy, by the layer's id: what is shared is copied
            once. A layer's own layers come first.
    """

    def __init__(self, change, *, fuses=False, splits=False):
        self.change, self.fuses, self.splits, self.pairs = change, fuses, splits, {}
        # How often each layer is called, by its id.
        self.counts = Counter()
        # The layers that activations have become.
        self.activations = {}

    def copy_model(self, model):
        self.counts.update(id(call.operation) for call in _calls(model))
        return self.copy(model)

    def copy(self, layer):
        if id(layer) not in self.pairs:
            if type(layer) in _CONVERTED:
                copy = self.change(layer)
            elif _is_made_of_layers(layer):
                copy = self.copy_graph(layer)
            else:
                copy = _clone_by_config(layer)
                # Models also have operations, `ops.add` say, which aren't layers.
                if isinstance(layer, keras.Layer):
                    self.fill(layer, copy)
            self.pair(layer, copy)
        return self.pairs[id(layer)][1]

    def copy_graph(self, model):
        """Copies a Sequential or Functional model."""
        if not graphs.is_graph(model):
            return _clone_graph(model, self.copy)
        graph = graphs.read(model)
        fused = _fused(graph, self.counts) if self.fuses else {}
        left_out = {id(call) for call in fused.values()}
        split = [
            call.operation
            for call in graph.calls
            if self.splits
            and type(call.operation) is BatchNormalization
            and activation_of(call.operation) is not None
        ]
        if not (fused or split):
            return _clone_graph(model, self.copy)
        names = {call.operation.name for call in graph.calls}

        def layers_for(call):
            layer = call.operation
            if id(call) in left_out:
                return [None]
            if id(layer) in fused:
                activation = self.copy(fused[id(layer)].operation)
                self.pair(layer, self.change(layer, activation))
            copies = [self.copy(layer)]
            if layer in split:
                copies.append(self.copy_activation(layer, names))
            return copies

        return graphs.build(graph, layers_for)

    def copy_activation(self, layer, names):
        """A layer that computes the activation of a normalization, of a new name."""
        activation = layer.activation
        is_layer = isinstance(activation, keras.Layer)
        key = id(activation) if is_layer else id(layer)
        if key not in self.activations:
            name = getattr(activation, "name" if is_layer else "__name__", "activation")
            if not is_layer or name in names:
                name = f"{layer.name}_{name}"
            names.add(name)
            new = activation_layer(layer, name)
            if is_layer:
                self.pair(activation, new)
            self.activations[key] = new
        return self.activations[key]

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
        pairs = [pair for pair in self.pairs.values() if type(pair[0]) in _CONVERTED]
        layers = [layer for pair in pairs for layer in pair]
        converted = {id(weight) for layer in layers for weight in layer.weights}
        for layer in layers:
            # A layer as activation is copied as any other one.
            if isinstance(activation_of(layer), keras.Layer):
                converted -= {id(weight) for weight in layer.activation.weights}
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
    sequential = isinstance(model, keras.Sequential)
    inputs = None if sequential else graphs.copied_inputs(model)
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
        for name in ("history", "activation"):
            parts = [getattr(layer, name, None) for layer in (old, new)]
            if all(isinstance(part, keras.Layer) for part in parts):
                copy_own(*parts)
        return
    try:
        copy_weights(old, new, leave_out=converted)
    except Exception as error:
        raise copying_failed(old, error) from error
