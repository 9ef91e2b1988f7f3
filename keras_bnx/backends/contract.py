"""What the layer and its backends hand to each other: a few small types.

Tensors of one number per channel, *vectors*, have the shape of the channel axes:
`(channels,)`, or `(virtual batches, channels)`. Only backends reshape them to the
inputs' rank.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras


class Batch(NamedTuple):
    """What is normalized.

    Attributes:
        x: floating-point tensor, `(batch, ..., channels, ...)`.
        weights: `None`, or a tensor of `dtype` and of `x`'s rank that broadcasts
            against `x`: how often each element counts. Those of weight 0 or less
            don't, and may be NaN.
        axes: tuple of the channel axes, ascending. An axis of virtual batches is one
            of them: each has statistics of its own, as each channel has.
        dtype: string, the dtype of statistics and weights, at least float32.
        virtual_axis: the one of `axes` that is of virtual batches, or `None`.
    """

    x: Any
    weights: Any
    axes: tuple
    dtype: str
    virtual_axis: Any = None

    @property
    def other_axes(self):
        """The axes that statistics are taken over."""
        return other_axes(self.x, self.axes)


class Moments(NamedTuple):
    """What is known of the elements of each channel, at least float32.

    Attributes:
        count: `n = sum(w)`, the sum of the weights. Without weights it is the
            number of elements, and may be a scalar or a Python number.
        size: the number of elements with a weight above zero; likewise.
        shift: vector, a number near the mean, without gradient.
        residual: `sum(w * (x - shift)) / n`; the mean of the channel is
            `shift + residual`, and is kept in two parts because their rounded sum
            would lose the digits that a small deviation needs. A vector, or the
            Python number 0 where `shift` is the mean.
        variance: vector, `sum(w * (x - mean)**2) / n`; the divisor is n.
        all_finite: whether all vectors are known to be finite, and constants: a kernel
            has looked, without waiting for a device. `False` where one has to look.
    """

    count: Any
    size: Any
    shift: Any
    residual: Any
    variance: Any
    all_finite: bool = False


class Statistics(NamedTuple):
    """What a batch is normalized by.

    Attributes:
        shift, residual, variance: as in `Moments`.
        inverse_count: `1 / n`, the weight of one element in the statistics, through
            which the gradient runs: a number or a vector, which has 0 in channels
            that are normalized by other numbers than the batch's. The Python number 0
            where all of them are constants, as at inference.
    """

    shift: Any
    residual: Any
    variance: Any
    inverse_count: Any = 0.0

    @property
    def are_constants(self):
        return isinstance(self.inverse_count, float) and self.inverse_count == 0.0


class Affine(NamedTuple):
    """What follows: vectors of the statistics' dtype, `x_hat * gamma + beta`.

    Those of the layer, ones and zeros where it has none, after renorm's corrections.
    """

    gamma: Any
    beta: Any


class Activation(NamedTuple):
    """An elementwise function, applied to what has been normalized.

    Attributes:
        name: its name in `keras.activations`.
        arguments: tuple of its arguments besides the tensor, pairs of name and value.
    """

    name: str
    arguments: tuple

    def __call__(self, x):
        return getattr(keras.activations, self.name)(x, **dict(self.arguments))

    @property
    def needs_inputs(self):
        """Whether its gradient can't be had from its outputs.

        What comes behind a normalization keeps those anyway, as its own inputs.
        """
        return self.name in _OF_INPUTS


# hard_silu and silu aren't monotonic, for example: two inputs have the same output.
_OF_INPUTS = {"gelu", "hard_silu", "mish", "silu", "softplus", "squareplus"}


class Replicas(NamedTuple):
    """Those that train one model beside each other, by the framework's own engine.

    Attributes:
        count: how many there are, a Python integer.
        index: which one this is, from 0; an integer or a tensor.
        all_reduce_sum: differentiable function that sums a tensor over all of them.
        merges_moving: whether layers that aren't synchronized merge what their
            moving statistics follow.
    """

    count: int  # type: ignore[assignment] # a field hides the method of tuples
    index: Any
    all_reduce_sum: Callable
    merges_moving: bool


class Implementation(NamedTuple):
    """The two steps over the data.

    The gradient of the outputs runs through the statistics too. `generic` leaves that
    to the framework; a native `moments` has no gradient, and the gradient of a native
    `normalize` counts the statistics as what they are, functions of the inputs. So
    the two steps have to be taken from the same implementation.

    Attributes:
        name: `"generic"` or `"native"`.
        kernels: what runs, in words.
        moments: `(batch) -> Moments`.
        normalize: `(batch, statistics, affine, *, epsilon, activation, sum_gradients)
            -> y`, of `x`'s shape and dtype. `activation` is an `Activation`, or
            `None`. `sum_gradients` sums over the replicas whose elements the
            statistics count, too; `None` where there is one.
    """

    name: str
    kernels: str
    moments: Callable
    normalize: Callable


def other_axes(x, axes):
    """The axes of a tensor that aren't among some."""
    return tuple(i for i in range(len(x.shape)) if i not in axes)
