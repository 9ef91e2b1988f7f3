"""Step 3: averages over time, and what they know of their past."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bnx.arguments import channel_axes
from keras_bnx.ops import virtual
from keras_bnx.ops.bounds import at_least, at_most
from keras_bnx.ops.conditions import both, select
from keras_bnx.ops.renorm import renorm_corrections
from keras_bnx.ops.statistics import unbiased_variance

# A step of this part of a float32 lands on its next neighbour.
_NEXT = 0.6 * 2.0**-23

_kept = False


@contextlib.contextmanager
def keep_moving_statistics() -> Iterator[None]:
    """Training passes inside of this `with` statement leave moving statistics alone.

    Layers still normalize by the batch, as for gradient penalties, adversarial
    passes, or a second stream through the same layer. The switch is read when a
    layer is called. So with `jax.jit`, `tf.function` and `torch.compile` it
    belongs inside the function that is compiled; around a call of what has been
    compiled before, it changes nothing on JAX and TensorFlow.

    Returns:
        A context manager.

    Example:

    >>> import keras, keras_bnx
    >>> layer, x = keras_bnx.BatchNormalization(), keras.ops.ones((4, 3))
    >>> with keras_bnx.keep_moving_statistics():
    ...     y = layer(x, training=True)
    >>> print(float(layer.moving_mean[0]))
    0.0
    """
    global _kept
    before, _kept = _kept, True
    try:
        yield
    finally:
        _kept = before


def are_kept():
    """Whether `keep_moving_statistics` is in force."""
    return _kept


class Average(NamedTuple):
    """A statistic that is stored, and how it follows the batches.

    Attributes:
        variable: where it is stored.
        statistic: what of a batch it averages, as `MovingStatistics.update` names it.
        momentum: the weight of the old value, or `None` for a cumulative average.
        debias: whether the initial value is divided out.
        start: a vector that takes the stored value's place, or `None`.
    """

    variable: keras.Variable
    statistic: str
    momentum: float
    debias: bool = False
    start: Any = None


class MovingStatistics:
    """What a layer stores of the batches: read, followed, and set anew.

    It refers to the layer's variables and owns nothing. It is made for one call: a
    layer that was copied, or put together again by NNX, must find its own variables.

    Args:
        layer: a `BatchNormalization` that is built.
        dtype: string, the dtype to compute in; by default that of the variables.
    """

    def __init__(self, layer, dtype=None):
        self.layer = layer
        stored = "float64" if layer.variable_dtype == "float64" else "float32"
        self.dtype = dtype or stored
        self.narrow_to = stored if stored != self.dtype else None
        self._shape = None
        if isinstance(layer.axis, tuple):
            # Weights of several channel axes have the inputs' rank.
            shape = layer.moving_mean.shape
            self._shape = [shape[i] for i in channel_axes(layer.axis, len(shape))]

    def read(self, variable):
        """The value of one of the layer's weights, as a vector."""
        value = variable.value
        if self.narrow_to is not None:
            value = ops.cast(value, self.dtype)
        return value if self._shape is None else ops.reshape(value, self._shape)

    def for_inference(self, batch):
        """Returns mean and variance to normalize a batch by, vectors."""
        return tuple(
            virtual.expand(vector, batch) for vector in self.inference_statistics()
        )

    def inference_statistics(self):
        """Returns mean and variance that inference takes, vectors of the channels."""
        layer, history = self.layer, self.layer.history
        mean, variance = self.read(layer.moving_mean), self.read(layer.moving_variance)
        # With a momentum of 1 no batch has any weight: there is nothing to divide.
        if not layer.debias_moving_statistics or layer.momentum == 1.0:
            return mean, variance
        scale = self.read(history.debiased_scale)
        if layer.renorm:
            scale = _variance_of(scale, layer.epsilon)
        return (
            ops.where(
                self.read(history.mean_updates) > 0,
                self.read(history.debiased_mean),
                mean,
            ),
            ops.where(self.read(history.scale_updates) > 0, scale, variance),
        )

    def renorm_corrections(self, batch, moments, usable):
        """Returns renorm's r and d, vectors; 1 and 0 where they can't be known."""
        layer, history = self.layer, self.layer.history
        mean, stddev = layer.renorm_mean, layer.renorm_stddev
        if layer.debias_moving_statistics and layer.renorm_momentum != 1.0:
            mean, stddev = history.debiased_renorm_mean, history.debiased_renorm_stddev
            has_history = virtual.expand(self.read(history.scale_updates) > 0, batch)
            usable = both(usable, has_history)
        limits = {
            k: limit(history.steps.value) if callable(limit) else limit
            for k, limit in layer.renorm_clipping.items()
        }
        r, d = renorm_corrections(
            moments,
            renorm_mean=virtual.expand(self.read(mean), batch),
            renorm_stddev=virtual.expand(self.read(stddev), batch),
            epsilon=layer.epsilon,
            **limits,
        )
        return (
            select(usable, r, ops.ones_like(r)),
            select(usable, d, ops.zeros_like(d)),
        )

    def averages(self):
        """The statistics that are stored, one row for each."""
        layer, history = self.layer, self.layer.history
        if not layer.renorm:
            yield Average(layer.moving_mean, "mean", layer.momentum)
            yield Average(layer.moving_variance, "variance", layer.momentum)
        else:
            start = consistent_stddev(
                self.read(layer.moving_stddev),
                self.read(layer.moving_variance),
                epsilon=layer.epsilon,
            )
            yield Average(layer.moving_mean, "mean", layer.momentum)
            yield Average(layer.moving_stddev, "stddev", layer.momentum, start=start)
            yield Average(layer.renorm_mean, "mean", layer.renorm_momentum)
            yield Average(layer.renorm_stddev, "batch_stddev", layer.renorm_momentum)
        if layer.debias_moving_statistics:
            scale = "stddev" if layer.renorm else "variance"
            yield Average(history.debiased_mean, "mean", layer.momentum, True)
            yield Average(history.debiased_scale, scale, layer.momentum, True)
        if layer.debias_moving_statistics and layer.renorm:
            mean, stddev = history.debiased_renorm_mean, history.debiased_renorm_stddev
            yield Average(mean, "mean", layer.renorm_momentum, True)
            yield Average(stddev, "batch_stddev", layer.renorm_momentum, True)

    def update(self, moments, usable):
        """Moves each statistic of each usable channel towards the batch's.

        Args:
            moments: `Moments` of what is followed, without gradient.
            usable: bool vector, or a bool: where it has statistics.
        """
        layer = self.layer
        # One element has a mean but no variance; 0 would be far from any truth.
        variance, has_variance = moments.variance, both(usable, moments.size > 1)
        if layer.unbiased_moving_variance:
            variance, exists = unbiased_variance(moments)
            has_variance = both(has_variance, exists)
        if layer.renorm:
            scales = {
                "stddev": ops.sqrt(variance + layer.epsilon),
                # r compares deviations with the divisor n.
                "batch_stddev": ops.sqrt(moments.variance + layer.epsilon),
            }
        else:
            scales = {"variance": variance}
        mean_updates = self._count("mean_updates", usable)
        scale_updates = self._count("scale_updates", has_variance)

        for average in self.averages():
            is_mean = average.statistic == "mean"
            where, updates = (
                (usable, mean_updates) if is_mean else (has_variance, scale_updates)
            )
            weight = update_weight(average.momentum, updates, debias=average.debias)
            stored = self.read(average.variable)
            old = stored if average.start is None else average.start
            if is_mean:
                new = update_mean(old, moments, weight)
            else:
                new = update_scale(old, scales[average.statistic], weight)
            self._write(average.variable, select(where, new, stored))
        if layer.renorm:
            # The deviation is what is averaged, as Keras's renorm has it.
            old, stddev = map(self.read, (layer.moving_variance, layer.moving_stddev))
            new = _variance_of(stddev, layer.epsilon)
            self._write(layer.moving_variance, select(has_variance, new, old))

    def count_step(self, trains):
        """Counts a training pass, for schedules."""
        history = self.layer.history
        if history is not None and history.counts_steps:
            history.steps.assign_add(ops.cast(trains, "int32"))

    def reset(self):
        """Sets all to the initial values, and all counts to 0."""
        layer = self.layer
        for variable, initializer in (
            (layer.moving_mean, layer.moving_mean_initializer),
            (layer.moving_variance, layer.moving_variance_initializer),
        ):
            variable.assign(initializer(variable.shape, dtype=variable.dtype))
        if layer.renorm:
            self.start_renorm(ops.sqrt(layer.moving_variance))
        if layer.history is not None:
            layer.history.reset()

    def set_to(self, mean, variance, updates):
        """Sets all averages to statistics that are known otherwise.

        Args:
            mean, variance: arrays that have the size of the moving statistics.
            updates: integer, how many batches they are of; a cumulative average goes
                on as one of that many.
        """
        layer = self.layer
        for variable, value in (
            (layer.moving_mean, mean),
            (layer.moving_variance, variance),
        ):
            variable.assign(value.reshape(variable.shape))
        if layer.renorm:
            self.start_renorm(ops.sqrt(layer.moving_variance + layer.epsilon))
        if layer.history is not None:
            known = updates if layer.momentum is None else math.inf
            layer.history.take(layer, known)

    def start_renorm(self, stddev):
        """Starts what only renorm stores from the moving statistics."""
        layer = self.layer
        layer.moving_stddev.assign(stddev)
        # Copies: JAX keeps the array it is given, and lets none be donated twice.
        layer.renorm_stddev.assign(ops.copy(stddev))
        layer.renorm_mean.assign(ops.copy(layer.moving_mean))

    def _count(self, name, where):
        """Counts a batch where it is one; the count, or `None` where none is kept."""
        history = self.layer.history
        if history is None or not history.counts:
            return None
        variable = getattr(history, name)
        old = self.read(variable)
        new = old + 1.0
        self._write(variable, select(where, new, old))
        return new

    def _write(self, variable, vector):
        if self._shape is not None:
            vector = ops.reshape(vector, variable.shape)
        variable.assign(vector)


class History(keras.layers.Layer):
    """What averages know of their past, beside the statistics that Keras stores.

    A layer of its own, so that the file of a `BatchNormalization` has the variables
    of Keras's, in their order, and either loads into the other.

    Attributes:
        mean_updates, scale_updates: how many batches each channel has seen; `inf`
            after loading a file that doesn't say.
        debiased_mean, debiased_scale: the averages of the mean, and of the variance
            (under renorm of the standard deviation, `sqrt(variance + epsilon)`).
        debiased_renorm_mean, debiased_renorm_stddev: those of renorm's statistics.
        steps: scalar integer, training passes, for schedules.
    """

    @classmethod
    def of(cls, layer):
        """The history that a layer's arguments need, or `None`."""
        averages = ()
        if layer.debias_moving_statistics:
            averages = ("debiased_mean", "debiased_scale")
            if layer.renorm:
                averages += ("debiased_renorm_mean", "debiased_renorm_stddev")
        counts = averages or layer.momentum is None
        steps = any(map(callable, (layer.renorm_clipping or {}).values()))
        return cls(averages, counts, steps, name="history") if counts or steps else None

    def __init__(self, averages, counts, steps, **kwargs):
        super().__init__(**kwargs)
        self.averages, self.counts, self.counts_steps = averages, counts, steps

    def build_for(self, shape, dtype):
        names = ("mean_updates", "scale_updates") if self.counts else ()
        for name in (*names, *self.averages):
            weight = self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            setattr(self, name, weight)
        if self.counts_steps:
            self.steps = self.add_weight(
                name="steps", dtype="int32", initializer="zeros", trainable=False
            )
        self.built = True

    def reset(self):
        for weight in self.weights:
            weight.assign(ops.zeros_like(weight.value))

    def continue_from(self, layer):
        """Takes moving statistics of unknown history for the average so far.

        A cumulative average, for which that says nothing, starts anew.
        """
        self.reset()
        if layer.momentum is not None:
            self.take(layer, math.inf)

    def take(self, layer, updates):
        """Takes moving statistics for the average of so many batches."""
        if self.averages:
            self._take_debiased(layer)
        if self.counts:
            for variable in (self.mean_updates, self.scale_updates):
                variable.assign(ops.full_like(variable.value, updates))

    def _take_debiased(self, layer):
        self.debiased_mean.assign(ops.copy(layer.moving_mean))
        scale = ops.copy(layer.moving_variance)
        self.debiased_scale.assign(
            ops.sqrt(scale + layer.epsilon) if layer.renorm else scale
        )
        if layer.renorm:
            self.debiased_renorm_mean.assign(ops.copy(layer.renorm_mean))
            self.debiased_renorm_stddev.assign(ops.copy(layer.renorm_stddev))

    def load_own_variables(self, store):
        if len(store.keys()):
            super().load_own_variables(store)


def update_weight(momentum, updates=None, *, debias=False):
    """Computes the weight of a batch in an average over batches.

    - `momentum` a number: `1 - momentum`, an exponential average.
    - `momentum=None`: `1 / updates`, the cumulative average.
    - `debias`: `(1 - momentum) / (1 - momentum**updates)`, which makes the average
      what the exponential one is when the share `momentum**updates` of its initial
      value is divided out (Kingma and Ba 2015, section 3).

    Where it depends on `updates`, the first batch has the weight 1 exactly: a root
    of rounding less would leave 6e-8 of the initial value, which is much beside a
    variance of 1e-6. (A compiled `1 / x` may be approximate on TensorFlow.)

    Args:
        momentum: float in [0, 1], or `None`.
        updates: tensor, the number of batches, this one included.
        debias: bool.
    """
    if momentum is None:
        return _exact_first(1.0 / updates, updates)
    if not debias or momentum in (0.0, 1.0):
        return 1.0 - momentum
    # By expm1 exact also where `momentum**updates` is near 1.
    gone = -ops.expm1(updates * math.log(momentum))
    return _exact_first((1.0 - momentum) / gone, updates)


def _exact_first(weight, updates):
    """The weight of a batch, which is 1 for the first one and never more."""
    return ops.where(updates > 1, at_most(weight, 1.0), ops.ones_like(weight))


def update_mean(moving, moments, weight):
    """Computes `moving + weight * (mean - moving)`.

    Adding a share of the difference leaves `moving` in place once it is right;
    two products don't sum to it in floating point. Where the mean is so large that
    the share is lost in rounding, and `moving` would stand still up to three
    deviations off, it takes the smallest step there is, to the neighbouring number.

    Args:
        moving: tensor of one number per channel.
        moments: `Moments` of the batch.
        weight: the weight of the batch, a number or a tensor.
    """
    if isinstance(weight, float) and weight == 0.0:
        return moving
    difference = moments.shift - moving
    if isinstance(moments.residual, float):
        # The mean is one number, of less than 10 deviations: nothing is lost.
        return moving + weight * difference
    difference = difference + moments.residual
    step = weight * difference
    new = moving + step
    smallest = _NEXT * ops.abs(moving)
    stands = ops.logical_and(new == moving, ops.abs(difference) > smallest)
    if not isinstance(weight, float):
        stands = ops.logical_and(stands, step != 0.0)
    return ops.where(stands, moving + ops.sign(difference) * smallest, new)


def update_scale(moving, new, weight):
    """Computes `moving * (1 - weight) + new * weight`.

    For variances and standard deviations: a sum of products that aren't
    negative keeps small values' digits next to large ones, and the sign.
    """
    return moving * (1.0 - weight) + new * weight


def consistent_stddev(moving_stddev, moving_variance, *, epsilon):
    """Takes the moving deviation that renorm keeps from the moving variance.

    Keras's renorm keeps `moving_stddev` beside `moving_variance`: the root of
    the variance when both are initialized, the root of variance + epsilon after
    an update. Outside of these bounds the variance was set by somebody else (an
    import, `assign`) and decides; otherwise the next update would overwrite it.
    """
    lower = ops.sqrt(moving_variance)
    upper = ops.sqrt(moving_variance + epsilon)
    return at_most(at_least(moving_stddev, lower), upper)


def _variance_of(stddev, epsilon):
    return at_least(ops.square(stddev) - epsilon, 0.0)
