"""Copies of models for inference, without the normalizations that others can do."""

from collections import Counter
from typing import NamedTuple

import keras
import numpy as np

from keras_bnx.tools import graphs
from keras_bnx.tools.affine import (
    NORMALIZATIONS,
    Kept,
    Normalization,
    described,
    passed_back,
    passed_on,
    taker,
)
from keras_bnx.tools.models import (
    activation_layer,
    activation_of,
    batch_normalizations,
    copy_weights,
    copying_failed,
    table,
)

# How far a mean may be from 0, in deviations of its channel times eps of the dtype: the
# layer behind would sum products that large, which cancel only after they were rounded.
# In float32 it is 840 deviations, and the error 1e-4 of one.
_FARTHEST_MEAN = 1e-4


class Folding(NamedTuple):
    """What has become of a batch normalization.

    Attributes:
        layer: string, its name.
        into: the name of the layer that took it, or several of what is concatenated;
            `None` where it was kept.
        reason: a sentence that says why it was kept; otherwise `None`.
    """

    layer: str
    into: str | None
    reason: str | None


class FoldingReport(list[Folding]):
    """A list of `Folding`, one of each batch normalization; prints as a table."""

    @property
    def folded(self) -> list[Folding]:
        """Those that were folded."""
        return [record for record in self if record.into is not None]

    def __repr__(self) -> str:
        rows = [[cell or "" for cell in row] for row in self]
        text = table(["layer", "into", "reason"], rows)
        return f"{text}\n{len(self.folded)} of {len(self)} folded"


def fold(model: keras.Model) -> tuple[keras.Model, FoldingReport]:
    """Copies a model for inference, its batch normalizations folded into other layers.

    At inference a batch normalization is an affine map of each channel, `y = s * x + t`
    with `s = gamma / sqrt(moving_variance + epsilon)` and `t = beta - moving_mean * s`.
    The layer before it takes it where that is linear: its kernel times `s`, its bias
    `b * s + t`, which a padding doesn't matter to. Otherwise the layer behind it does,
    where that is linear and doesn't pad with zeros, which `t` isn't. Layers without
    weights may be in between: pooling by averages (and by maxima, where `s >= 0`),
    flattening, reshaping, cropping, repeating, dropout, concatenation.

    Dense, EinsumDense, Conv, DepthwiseConv, SeparableConv and ConvTranspose layers of
    any rank, groups, strides, dilation and `data_format` take normalizations; so does a
    normalization that is kept, in front of another one. Whatever takes one has to be
    called once, and nothing else may use what is between the two. What has a
    constraint, is quantized, or computes in another dtype is left as it is.

    The weights are computed in float64, and rounded once.

    Args:
        model: a Sequential or Functional model, built; nested ones are folded, too,
            each by itself. It stays as it is.

    Returns:
        A tuple of the copy and a report. The copy has the same inputs, outputs and
        names of layers, without those that were folded; it is compiled where the model
        is, and for inference: training it would not be training the model. The report
        is a list of records with `layer`, `into` and `reason`, one of each
        normalization, and prints as a table.

    Raises:
        ValueError: for a model whose graph isn't known, that isn't built, that has no
            batch normalization, or a layer that can't be copied, by name.

    Example:

    >>> import keras, keras_bnx
    >>> dense = keras.layers.Dense(4, use_bias=False, name="dense")
    >>> norm = keras_bnx.BatchNormalization(beta_initializer="ones", name="norm")
    >>> layers = [keras.Input((3,)), dense, norm, keras.layers.ReLU()]
    >>> model, report = keras_bnx.fold(keras.Sequential(layers))
    >>> len(model.layers), model.layers[0].use_bias
    (2, True)
    >>> report
    layer  into   reason
    norm   dense
    1 of 1 folded

    Reference:

    - Jacob et al., 2018, [Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877), section 3.2.
    """
    if not graphs.is_graph(model):
        raise _not_foldable(model)
    found = batch_normalizations(model)
    plan = _Plan(model)
    plan.fold()
    return plan.copy(), plan.report(found)


def _not_foldable(model):
    if isinstance(model, keras.Sequential) and not graphs.is_built(model):
        return ValueError(
            f"The model's inputs aren't known. Received: {model!r}. Begin it with a "
            "`keras.Input`, or call it on data first."
        )
    return ValueError(
        "Only a Sequential or Functional model whose `call` is Keras's can be folded. "
        f"Received: {model!r}. Fold the Functional models inside of it, or write it as "
        "one."
    )


class _Plan:
    """What goes where in a model and its nested ones.

    Attributes:
        graphs: dictionary of `Graph`, by the model's id.
        takers: dictionary of the `Taker` of each layer that takes something, by its id.
        folded: dictionary, by the id of each folded normalization the layers that
            take it.
        reasons: dictionary, by the id of each other one why it is kept.
    """

    def __init__(self, model):
        self.model = model
        self.graphs, self.takers, self.folded, self.reasons = {}, {}, {}, {}
        self._counts = Counter()
        # By the ids of tensors, which the calls hold.
        self._producers, self._users, self._same = {}, {}, {}
        self._read(model)

    def _read(self, model):
        graph = self.graphs[id(model)] = graphs.read(model)
        self._users |= graphs.users(graph)
        for call in graph.calls:
            layer = call.operation
            self._counts[id(layer)] += 1
            for tensor in call.outputs:
                self._producers[id(tensor)] = call
            if graphs.is_graph(layer) and id(layer) not in self.graphs:
                self._read(layer)

    def fold(self):
        """Folds what can be, backwards first: a padding matters only behind."""
        calls = [
            call
            for graph in self.graphs.values()
            for call in graph.calls
            if isinstance(call.operation, keras.layers.BatchNormalization)
        ]
        left = []
        for call in calls:
            layer = call.operation
            try:
                self._check(call)
            except Kept as reason:
                self.reasons[id(layer)] = str(reason)
                continue
            try:
                self._fold(
                    call, self._back(call.main_inputs[0], self._affine(call), layer)
                )
            except Kept as reason:
                self.reasons[id(layer)] = f"Before it: {reason}"
                left.append(call)
        # The last first: of several in a row, each finds the others gone.
        for call in reversed(left):
            layer = call.operation
            try:
                self._fold(call, self._on(call.outputs[0], self._affine(call), layer))
            except Kept as reason:
                self.reasons[id(layer)] += f" Behind it: {reason}"
            else:
                del self.reasons[id(layer)]

    def _check(self, call):
        layer = call.operation
        if type(layer) not in NORMALIZATIONS:
            raise Kept(
                f"Its class, {type(layer).__name__}, may compute something else."
            )
        if (count := self._counts[id(layer)]) > 1:
            raise Kept(f"It is called {count} times.")
        if call.main_inputs is None:
            raise Kept("It is called with `training`, or other arguments.")
        self._affine(call)

    def _normalization(self, layer):
        return self.takers.get(id(layer)) or Normalization(layer)

    def _affine(self, call):
        normalization = self._normalization(call.operation)
        return normalization.affine(len(call.outputs[0].shape))

    def _fold(self, call, takers):
        """Takes a normalization out of the graph, and gives it to others."""
        layer = call.operation
        self.takers |= takers
        self.takers.pop(id(layer), None)
        self.folded[id(layer)] = [taker.layer for taker in takers.values()]
        if activation_of(layer) is None:
            before, behind = self._resolve(call.main_inputs[0]), call.outputs[0]
            users = [user for user in self._users[id(before)] if user is not call]
            self._users[id(before)] = users + self._users[id(behind)]
            self._same[id(behind)] = before

    def _resolve(self, tensor):
        """The tensor that one is now, where normalizations are gone."""
        while id(tensor) in self._same:
            tensor = self._same[id(tensor)]
        return tensor

    def _back(self, tensor, affine, normalization):
        """Takers of a map of a tensor, among what it is made of."""
        tensor = self._resolve(tensor)
        call = self._producers.get(id(tensor))
        if call is None:
            raise Kept("The inputs of the model.")
        layer = call.operation
        if len(self._users[id(tensor)]) > 1:
            raise Kept(f"Others use the outputs of {described(layer)}, too.")
        found = self._taker(call, normalization)
        if found is not None:
            if activation_of(layer) is not None:
                raise Kept(f"{described(layer)} has an activation.")
            return self._taken(found.behind(affine))
        inputs = self._inputs(call)
        affines = passed_back(layer, affine, [x.shape for x in inputs], tensor.shape)
        takers = {}
        for x, each in zip(inputs, affines, strict=True):
            takers |= self._back(x, each, normalization)
        return takers

    def _on(self, tensor, affine, normalization):
        """The taker of a map of a tensor, among what is made of it."""
        if activation_of(normalization) is not None:
            raise Kept("Its activation comes first.")
        call, *more = self._users[id(tensor)]
        if call is None or more:
            raise Kept(
                "Several use its outputs." if more else "The outputs of the model."
            )
        layer, inputs = call.operation, self._inputs(call)
        found = self._taker(call, normalization)
        if found is not None:
            dtype = "float64" if layer.compute_dtype == "float64" else "float32"
            far = self._normalization(normalization).deviations
            if far * np.finfo(dtype).eps > _FARTHEST_MEAN:
                raise Kept(
                    f"Means of {far:.0f} standard deviations would cost "
                    f"{described(layer)} digits."
                )
            return self._taken(found.before(affine, inputs[0].shape))
        index = [x is tensor for x in inputs].index(True)
        shapes, (output,) = [x.shape for x in inputs], call.outputs
        affine = passed_on(layer, affine, index, shapes, output.shape)
        return self._on(output, affine, normalization)

    def _inputs(self, call):
        """The tensors that a call computes from, if nothing else matters to it."""
        if call.main_inputs is None or len(call.outputs) != 1:
            raise Kept(f"{described(call.operation)} isn't linear.")
        return [self._resolve(tensor) for tensor in call.main_inputs]

    def _taker(self, call, normalization):
        layer = call.operation
        found = self.takers.get(id(layer)) or taker(layer)
        if found is None:
            return None
        if (count := self._counts[id(layer)]) > 1:
            raise Kept(f"{described(layer)} is called {count} times.")
        self._inputs(call)
        if layer.compute_dtype != normalization.compute_dtype:
            raise Kept(
                f"{described(layer)} computes in {layer.compute_dtype}, and it in "
                f"{normalization.compute_dtype}."
            )
        return found

    def _taken(self, found):
        """A taker by its layer's id, if its dtype has such numbers."""
        layer = found.layer
        half = "float16" in (layer.compute_dtype, layer.variable_dtype)
        largest = np.finfo("float16" if half else "float32").max
        if layer.compute_dtype != "float64" and any(
            np.abs(array).max(initial=0.0) > largest for array in found.weights.values()
        ):
            raise Kept(f"The weights of {described(layer)} would overflow.")
        return {id(layer): found}

    def copy(self):
        """The model that is planned."""
        # Each layer and its copy, by the layer's id: what is shared is copied once.
        pairs = {}

        def layers_for(call):
            layer = call.operation
            if id(layer) not in self.folded:
                return [copied(layer)]
            if activation_of(layer) is None:
                return [None]
            if isinstance(layer.activation, keras.Layer):
                return [None, copied(layer.activation)]
            return [None, activation_layer(layer, layer.name)]

        def copied(layer):
            if id(layer) not in pairs:
                pairs[id(layer)] = (layer, self._copy(layer, layers_for))
            return pairs[id(layer)][1]

        copy = copied(self.model)
        for old, new in pairs.values():
            if id(old) in self.takers:
                self.takers[id(old)].store(new)
            elif isinstance(old, keras.Layer) and id(old) not in self.graphs:
                _or_refuse(old, lambda old=old, new=new: copy_weights(old, new))
        if self.model.compiled:
            copy.compile_from_config(self.model.get_compile_config())
        return copy

    def _copy(self, layer, layers_for):
        if id(layer) in self.graphs:
            return graphs.build(self.graphs[id(layer)], layers_for)
        changes = self.takers[id(layer)].config() if id(layer) in self.takers else {}
        return _or_refuse(
            layer, lambda: type(layer).from_config({**layer.get_config(), **changes})
        )

    def report(self, found):
        """The `FoldingReport` of normalizations, in the order of the graphs."""
        order = list(self._counts)
        found = sorted(
            found, key=lambda la: order.index(id(la)) if id(la) in order else len(order)
        )
        return FoldingReport(self._record(layer) for layer in found)

    def _record(self, layer):
        if id(layer) in self.folded:
            names = [other.name for other in self._final_takers(layer)]
            return Folding(layer.name, ", ".join(names), None)
        reason = self.reasons.get(id(layer), "It is inside of another layer.")
        return Folding(layer.name, None, reason)

    def _final_takers(self, layer):
        for other in self.folded[id(layer)]:
            if id(other) in self.folded:
                yield from self._final_takers(other)
            else:
                yield other


def _or_refuse(layer, function):
    try:
        return function()
    except Exception as error:
        raise copying_failed(layer, error) from error
