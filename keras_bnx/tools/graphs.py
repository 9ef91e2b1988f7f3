"""Graphs of models, read call by call, and models made of them."""

import functools
from typing import Any, NamedTuple

import keras

from keras_bnx.tools.models import walk


class Call(NamedTuple):
    """A call of a layer, or of another operation, in a model's graph.

    Attributes:
        operation: the layer.
        args, kwargs: what it is called with; tensors are `keras.KerasTensor`.
        outputs: list of the tensors that come out.
    """

    operation: Any
    args: tuple
    kwargs: dict
    outputs: list

    @property
    def inputs(self):
        """List of all tensors that go in."""
        return _tensors((self.args, self.kwargs))

    @property
    def main_inputs(self):
        """The tensors of the first argument, as a list; `None` if others matter.

        A mask does not, nor what says that this is no training.
        """
        others = {k: v for k, v in self.kwargs.items() if k != "mask"}
        mains = self.args[0] if self.args else others.pop("inputs", None)
        # By identity: tensors compare to tensors.
        if len(self.args) > 1 or any(
            v is not None and v is not False for v in others.values()
        ):
            return None
        return _tensors(mains)


class Graph(NamedTuple):
    """The calls of a Sequential or Functional model, in the order of computation.

    Attributes:
        model: the model.
        calls: list of `Call`.
        inputs, outputs: the tensors, nested as the model's are.
    """

    model: Any
    calls: list
    inputs: Any
    outputs: Any


class _StandIn(keras.Operation):
    """Is called in an operation's place, so that the model's graph stays as it is."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def compute_output_spec(self, *args, **kwargs):
        return self.operation.compute_output_spec(*args, **kwargs)


def is_graph(layer):
    """Whether a layer is a model, built, that computes nothing but its graph."""
    for cls in (keras.Sequential, _functional()):
        if isinstance(layer, cls):
            return is_built(layer) and type(layer).call is cls.call
    return False


def users(graph):
    """Dictionary of the calls that use each tensor of a graph, by the tensor's id.

    `None` is among those of the tensors that the model puts out.
    """
    found = {id(tensor): [] for tensor in keras.tree.flatten(graph.inputs)}
    for call in graph.calls:
        for tensor in call.inputs:
            found[id(tensor)].append(call)
        for tensor in call.outputs:
            found[id(tensor)] = []
    for tensor in keras.tree.flatten(graph.outputs):
        found[id(tensor)].append(None)
    return found


def is_built(model):
    """Whether the inputs of a Sequential or Functional model are known."""
    try:
        return bool(model.built and model.inputs)
    except (AttributeError, ValueError):
        return False


@functools.cache
def _functional():
    # The class has no public name.
    x = keras.Input((1,))
    return type(keras.Model(x, x))


def read(model):
    """The `Graph` of a model for which `is_graph` holds."""
    calls = []

    def call(stand_in, *args, **kwargs):
        outputs = stand_in(*args, **kwargs)
        calls.append(
            Call(stand_in.operation, args, kwargs, keras.tree.flatten(outputs))
        )
        return outputs

    if isinstance(model, keras.Sequential):
        (like,) = model.inputs
        inputs = outputs = keras.Input(batch_shape=like.shape, dtype=like.dtype)
        for layer in model.layers:
            outputs = call(_StandIn(layer), outputs)
        return Graph(model, calls, inputs, outputs)
    found = keras.models.clone_model(
        keras.Model(model.input, model.output),
        clone_function=_StandIn,
        call_function=call,
    )
    return Graph(model, calls, found.input, found.output)


def copied_inputs(model):
    """Inputs like those of a Sequential or Functional model, nested as its own are.

    Keras's `clone_model` loses the names of unnamed ones, and `optional`.
    """
    if isinstance(model, keras.Sequential):
        # Its own list of layers leaves the input's out.
        model = keras.Model(*model.inputs, *model.outputs)
    copies = {
        id(layer.output): type(layer).from_config(layer.get_config()).output
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    return keras.tree.map_structure(lambda x: copies[id(x)], model.input)


def build(graph, layers_for):
    """Makes a model of a graph.

    Args:
        graph: a `Graph`.
        layers_for: function of a `Call` that returns a list: the layer to call in it,
            or `None` where what goes in comes out; and layers to call behind it.
    """
    model = graph.model
    inputs = copied_inputs(model)
    if isinstance(model, keras.Sequential):
        new = [layer for call in graph.calls for layer in layers_for(call)]
        new = [layer for layer in new if layer is not None]
        return keras.Sequential([inputs, *new], name=model.name)
    found = dict(zip(_ids(graph.inputs), keras.tree.flatten(inputs), strict=True))

    def filled(structure):
        return keras.tree.map_structure(lambda x: found.get(id(x), x), structure)

    for call in graph.calls:
        first, *more = layers_for(call)
        if first is None:
            outputs = filled(call.main_inputs)
        else:
            outputs = first(*filled(call.args), **filled(call.kwargs))
        for layer in more:
            outputs = layer(*keras.tree.flatten(outputs))
        found |= zip(_ids(call.outputs), keras.tree.flatten(outputs), strict=True)
    return keras.Model(inputs, filled(graph.outputs), name=model.name)


def _tensors(structure):
    flat = keras.tree.flatten(structure)
    return [x for x in flat if isinstance(x, keras.KerasTensor)]


def _ids(structure):
    return [id(x) for x in keras.tree.flatten(structure)]


class Flow:
    """What computes what in a model, its nested ones taken apart.

    Attributes:
        calls: list of `Call` of what isn't a nested model, in the order of computation.
    """

    def __init__(self, model):
        self.calls = []
        # By the ids of tensors, which the graphs hold.
        self._producers, self._users, self._same, self._graphs = {}, {}, {}, []
        outputs = self._add(read(model))
        self._outputs = {id(self.one(x)) for x in outputs}

    def _add(self, graph):
        self._graphs.append(graph)
        for call in graph.calls:
            if is_graph(call.operation):
                # Read anew for each call: the tensors inside are others then.
                nested = read(call.operation)
                starts = keras.tree.flatten(nested.inputs)
                self._same |= zip(map(id, starts), call.inputs, strict=False)
                ends = self._add(nested)
                self._same |= zip(map(id, call.outputs), ends, strict=False)
                continue
            self.calls.append(call)
            for tensor in call.outputs:
                self._producers[id(tensor)] = call
            for tensor in call.inputs:
                self._users.setdefault(id(self.one(tensor)), []).append(call)
        return keras.tree.flatten(graph.outputs)

    def one(self, tensor):
        """The tensor that one is, across the borders of nested models."""
        while id(tensor) in self._same:
            tensor = self._same[id(tensor)]
        return tensor

    def before(self, call):
        """List of the calls that a call's inputs come from."""
        found = [self._producers.get(id(self.one(x))) for x in call.inputs]
        return [producer for producer in found if producer is not None]

    def behind(self, call):
        """List of the calls that use what a call puts out."""
        return [user for x in call.outputs for user in self._users.get(id(x), [])]

    def is_output(self, call):
        """Whether the model puts out what a call does."""
        return any(id(x) in self._outputs for x in call.outputs)


def flows(model):
    """A `Flow` of the model; or of each model inside of it whose graph is known."""
    outside = walk(model, enter=lambda layer: not is_graph(layer))
    return [Flow(layer) for layer in outside if is_graph(layer)]
