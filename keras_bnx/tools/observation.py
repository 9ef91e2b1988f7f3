"""What batch normalizations see while a model runs: the one mechanism of the tools.

Inside of `observe` a model is called on data as `predict` calls it: everything is in
inference but its batch normalizations, which normalize by the batch and hand over its
moments. Keras's data adapters, progress bar and distribution do the rest, for it is a
`predict` that runs them.

A layer's inputs depend on the layers before it. Here they come from layers that
normalize by their batches, as in training: one pass is enough for all layers, and the
error of a layer's own moving statistics doesn't hide behind that of another's. What
remains is the noise of the batches: large ones show what inference will see.
"""

import contextlib
import functools
import math
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from keras_bnx import arguments, backends
from keras_bnx.averages import MovingStatistics
from keras_bnx.backends.contract import Affine, Batch, Moments
from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.ops.replicas import rows_of
from keras_bnx.ops.statistics import choose, exist, vectors_of
from keras_bnx.ops.weights import mask_to_weights
from keras_bnx.tools.models import batch_normalizations, names


class Population:
    """The moments of all that a layer has seen, in float64.

    Attributes:
        count: vector, `n = sum(w)`.
        size: vector, the number of elements with a weight above zero.
        mean: vector, `sum(w * x) / n`.
        variance: vector, `sum(w * (x - mean)**2) / n`; the divisor is n.
    """

    def __init__(self, channels):
        self.count, self.size, self.mean, self.variance = np.zeros((4, channels))

    def add(self, count, size, mean, variance):
        """Merges the moments of more elements (Chan, Golub and LeVeque 1983).

        Channels without an element, or without finite moments, stay as they are.
        """
        new = (count > 0) & np.isfinite(variance)
        count, size, mean, variance = np.where(new, (count, size, mean, variance), 0.0)
        total = self.count + count
        fraction = count / np.where(total > 0, total, 1.0)
        difference = mean - self.mean
        self.variance += fraction * (variance - self.variance)
        self.variance += fraction * (1.0 - fraction) * np.square(difference)
        self.mean += fraction * difference
        self.count, self.size = total, self.size + size

    @property
    def unbiased_variance(self):
        """The variance with the divisor n - 1, where n is above 1."""
        n = self.count
        return self.variance * np.where(n > 1, n / np.where(n > 1, n - 1, 1.0), 1.0)


@dataclass
class Seen:
    """What one layer has seen.

    Attributes:
        population: `Population` of its inputs, over all replicas. The rest is of this
            one:
        calls: how many times it was called.
        updates: how many of these calls had statistics, and so would have moved the
            moving ones.
        sizes: the number of elements of each call, in the channel with most.
        not_finite: the numbers of the batches, from 0, in which a channel had no
            finite mean and variance.
        masked: whether it was given a mask.
        told_to_train: whether the model called it with `training=True`, in inference.
    """

    population: Population
    calls: int = 0
    updates: int = 0
    sizes: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    masked: bool = False
    told_to_train: bool = False

    def add(self, moments, batch, masked, training):
        """Adds a call's moments: rows of count, size, mean and variance."""
        count, size, _, variance = moments
        self.population.add(*moments)
        self.calls += 1
        self.updates += bool(((count > 0) & np.isfinite(variance)).any())
        self.sizes.append(int(size.max(initial=0)))
        if not np.isfinite(variance).all() and self.not_finite[-1:] != [batch]:
            self.not_finite.append(batch)
        self.masked |= masked
        self.told_to_train |= training is True


@dataclass
class Observation:
    """What the batch normalizations of a model have seen in a pass over data.

    Attributes:
        samples, batches: how many the model was called on, by all replicas.
        layers: dictionary of the layers, in the order in which the model calls them,
            to what each has `Seen`.
    """

    samples: int
    batches: int
    layers: dict[keras.Layer, Seen | None]


def observe(model, x, *, batch_size=None, steps=None, verbose="auto", finite=False):
    """Calls a model on data, its batch normalizations in batch mode.

    Frozen ones are in inference, as in training. The model stays as it is, whatever
    happens. The processes of `torch.distributed` each call it on data of their own;
    what they have seen is joined at the end, so that the numbers of their batches may
    differ.

    Args:
        model: a built model or layer.
        x: inputs, as `predict` takes them; targets and sample weights are ignored.
        batch_size, steps, verbose: as in `predict`.
        finite: whether to stop, by an error, where inputs aren't finite.

    Returns:
        `Observation`.

    Raises:
        ValueError: for a model without batch normalization or one that isn't built,
            for no data, for data that ends before `steps`, for inputs that aren't
            finite. What calling the model raises is passed on.
    """
    layers = batch_normalizations(model)
    raise_unless_built(model, layers)
    _validate(x, batch_size, steps)
    seen = {}
    run = _Run(model)
    named = names(layers)

    def hand_over(layer, moments, masked, training):
        if layer not in seen:
            seen[layer] = _nothing(layer)
        seen[layer].add(moments, run.batches, masked, training)

    def raise_unless_finite():
        for layer, what in seen.items() if finite else ():
            if what.not_finite:
                raise ValueError(
                    "The inputs of a batch normalization aren't finite, or their "
                    "variance isn't. Received: such values at the layer "
                    f"{named[id(layer)]!r} in batch {what.not_finite[0]}, counted "
                    "from 0. Clean the data, or mask them."
                )

    context = backends.active().replicas(None)
    try:
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_batch_mode(layer, hand_over))
            run.predict_all(x, batch_size, steps, verbose, raise_unless_finite)
    except Exception:
        if context is not None:
            # The others wait for this replica's numbers.
            _join(context, layers, seen, run, failed=True)
        raise
    seen |= {layer: _nothing(layer) for layer in layers if layer not in seen}
    if context is not None:
        _join(context, layers, seen, run)
    return Observation(run.samples, run.batches, seen)


def raise_unless_built(model, layers):
    """Raises a `ValueError` for a model whose layers have no weights yet."""
    unbuilt = [layer for layer in layers if not layer.built]
    if unbuilt or not model.built:
        raise ValueError(
            "The model isn't built: its layers have no weights yet. Received: "
            f"{(unbuilt or [model])[0].name!r} of {model.name!r}. Call the model on "
            "data once, or give it a `keras.Input`."
        )


def _validate(x, batch_size, steps):
    if x is None:
        raise ValueError("There is no data. Received: x=None. Pass at least one batch.")
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        # Keras would take 0 for the default.
        if value is not None and value < 1:
            raise ValueError(
                f"`{name}` has to be at least 1. Received: {name}={value}. Leave it "
                "None for the default."
            )


def _nothing(layer):
    return Seen(Population(math.prod(layer.moving_mean.shape)))


def _join(context, layers, seen, run, failed=False):
    """Merges what all replicas have seen, by one sum over them."""
    populations = [seen.get(layer, _nothing(layer)).population for layer in layers]
    mine = [np.array([failed, run.samples, run.batches], "float64")]
    for p in populations:
        mine += [p.count, p.size, p.mean, p.variance]
    mine = ops.convert_to_tensor(np.concatenate(mine), "float64")
    rows = ops.convert_to_numpy(rows_of(mine, context))
    if failed:
        return
    if rows[:, 0].any():
        raise RuntimeError(
            "Calling the model failed in another process. Received: errors of the "
            f"ranks {np.flatnonzero(rows[:, 0]).tolist()}. Look at what they raise; "
            "the model is as it was, on all."
        )
    run.samples, run.batches = map(int, rows[:, 1:3].sum(axis=0))
    start = 3
    for layer in layers:
        joined = _nothing(layer)
        stop = start + 4 * len(joined.population.count)
        for row in rows[:, start:stop]:
            joined.population.add(*row.reshape(4, -1))
        seen[layer].population, start = joined.population, stop


class _Run(keras.Model):
    """A model of no weights that calls another, so that `predict` runs over data.

    It holds a function, not the model: JAX's `predict` takes a model's weights away
    while it runs, and an error would lose them.
    """

    def __init__(self, model):
        super().__init__(name="observation", autocast=False)
        self.run = functools.partial(model, training=False)
        self.samples = self.batches = 0
        self.built = True
        # Compiled, moments couldn't be handed over.
        self.compile(run_eagerly=True)

    def call(self, x):
        self.run(x)
        rows = ops.shape(keras.tree.flatten(x)[0])[0]
        self.samples += int(rows)
        self.batches += 1
        # What `predict` keeps of each batch.
        return ops.zeros((1,))

    def predict_all(self, x, batch_size, steps, verbose, after_batch):
        ended = []
        callback = _Callback(after_batch, functools.partial(ended.append, True))
        try:
            self.predict(x, batch_size, verbose, steps, [callback])
        except Exception as error:
            # Keras fails where it joins the outputs of no batch.
            if not (ended and self.batches == 0):
                raise
            cause = error
        else:
            cause = None
        if self.batches == 0:
            raise ValueError(
                f"There is no data. Received: x={_short(x)}. Pass at least one batch."
            ) from cause
        if steps is not None and self.batches < steps:
            raise ValueError(
                "The data ended before all steps were made. Received: "
                f"steps={steps} and data for {self.batches}. Choose fewer steps, or "
                "data that repeats."
            )


class _Callback(keras.callbacks.Callback):
    def __init__(self, after_batch, at_end):
        super().__init__()
        self.after_batch, self.at_end = after_batch, at_end

    def on_predict_batch_end(self, batch, logs=None):
        self.after_batch()

    def on_predict_end(self, logs=None):
        self.at_end()


def _short(x):
    shape = getattr(x, "shape", None)
    return f"an array of shape {tuple(shape)}" if shape is not None else repr(x)


@contextlib.contextmanager
def _batch_mode(layer, hand_over):
    """Inside, a layer normalizes by the batch and hands over its moments.

    An attribute of the object stands before the method of its class, which other
    layers of it keep.
    """
    attributes = vars(layer)
    before = attributes.get("call")
    original = layer.call

    def call(inputs, training=None, mask=None):
        batch = _batch(layer, inputs, mask)
        if backends.active().is_traced(batch.x):
            raise ValueError(
                "A batch normalization that runs inside of a compiled loop or "
                "function can't be observed. Received: "
                f"{layer.name!r}. Take it out of the loop, of `keras.remat` or of the "
                "compiled function while its statistics are taken."
            )
        implementation, _ = backends.choose(batch)
        moments = implementation.moments(batch)
        hand_over(layer, _to_numpy(moments), mask is not None, training)
        if not is_trained(layer):
            return original(inputs, training=False, mask=mask)
        statistics = choose(exist(moments), moments, lambda: _constants(layer, batch))
        gamma, beta = (_vector(weight, batch) for weight in (layer.gamma, layer.beta))
        affine = Affine(
            ops.ones_like(moments.variance) if gamma is None else gamma,
            ops.zeros_like(moments.variance) if beta is None else beta,
        )
        outputs = implementation.normalize(
            batch, statistics, affine, epsilon=layer.epsilon
        )
        return ops.cast(outputs, layer.compute_dtype)

    attributes["call"] = call
    try:
        yield
    finally:
        if before is None:
            del attributes["call"]
        else:
            attributes["call"] = before


def is_trained(layer):
    """Whether the moving statistics of a layer follow the batches in training."""
    return layer.trainable and "statistics" not in getattr(layer, "frozen", ())


def _batch(layer, inputs, mask):
    axes = arguments.channel_axes(layer.axis, len(inputs.shape))
    given = keras.backend.standardize_dtype(inputs.dtype)
    dtypes = (given, layer.compute_dtype, layer.variable_dtype)
    dtype = "float64" if "float64" in dtypes else "float32"
    x = ops.cast(inputs, dtype)
    weights = None if mask is None else mask_to_weights(mask, x, dtype, axes=axes)
    return Batch(x, weights, axes, dtype)


def _vector(weight, batch):
    if weight is None:
        return None
    # Weights of several channel axes have the rank of the inputs.
    shape = [batch.x.shape[axis] for axis in batch.axes]
    return ops.reshape(ops.cast(weight.value, batch.dtype), shape)


def _constants(layer, batch):
    mean, variance = moving_statistics(layer)
    shape = [batch.x.shape[axis] for axis in batch.axes]
    return tuple(
        ops.cast(ops.convert_to_tensor(value.reshape(shape)), batch.dtype)
        for value in (mean, variance)
    )


def _to_numpy(moments):
    """Rows of count, size, mean and variance, in float64, by one transfer."""
    rows = ops.convert_to_numpy(ops.stack(vectors_of(moments))).astype("float64")
    values = Moments(*rows.reshape(5, -1))
    mean = values.shift + values.residual
    return values.count, values.size, mean, values.variance


def moving_statistics(layer):
    """What a layer normalizes by at inference: mean and variance, float64 vectors."""
    if isinstance(layer, BatchNormalization):
        values = MovingStatistics(layer).inference_statistics()
    else:
        values = layer.moving_mean.value, layer.moving_variance.value
    return tuple(
        np.asarray(ops.convert_to_numpy(value), "float64").reshape(-1)
        for value in values
    )
