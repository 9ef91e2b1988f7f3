"""An affine map for each channel, and what Keras's layers do with one.

`y = scale * x + shift` is what a batch normalization computes at inference. A layer
that is linear takes such a map into its weights, behind it or before it (`taker`); a
layer without weights lets it through to its other side (`passed_back`, `passed_on`).
All arithmetic is NumPy's, in float64: whoever stores the results rounds them once.

The arrays of a map have the rank of one example, without the batch, and the size 1
along the axes on which nothing depends. So flattening is a reshape, and "constant over
the image" a look at the shape.
"""

import copy
import math
import string
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops

from keras_bnx.averages import MovingStatistics
from keras_bnx.backends.contract import Batch
from keras_bnx.batch_normalization import BatchNormalization

# These two themselves: what a subclass of either computes is its author's.
NORMALIZATIONS = (layers.BatchNormalization, BatchNormalization)


class Kept(Exception):
    """A map can't be taken or let through; its message is a sentence that says why."""


class Affine(NamedTuple):
    """`y = scale * x + shift`, float64 arrays that broadcast against an example."""

    scale: np.ndarray
    shift: np.ndarray

    def reshaped(self, function):
        """The map with the same change of shape for both arrays."""
        return Affine(function(self.scale), function(self.shift))

    def varies_along(self, axis):
        """Whether the map isn't the same all along an axis of the example."""
        return max(self.scale.shape[axis], self.shift.shape[axis]) > 1


def to_float64(variable):
    """The value of a variable as a float64 array of its own."""
    value = variable.value
    if variable.dtype not in ("float32", "float64"):
        # NumPy has no bfloat16; float32 has all of its numbers.
        value = ops.cast(value, "float32")
    return np.array(ops.convert_to_numpy(value), "float64")


def moving_statistics(layer):
    """Mean and variance that a batch normalization infers by, and their shape."""
    if not isinstance(layer, BatchNormalization):
        return to_float64(layer.moving_mean), to_float64(layer.moving_variance)
    # Arguments of ours, such as `debias_moving_statistics`, make them others than
    # those that are stored.
    batch = Batch(None, None, axes=(), dtype=layer.moving_mean.dtype)
    vectors = MovingStatistics(layer).for_inference(batch)
    return [
        np.array(ops.convert_to_numpy(v), "float64").reshape(layer.moving_mean.shape)
        for v in vectors
    ]


def _at(axis, rank):
    """The shape of a vector that lies along one of an example's axes."""
    return [-1 if i == axis else 1 for i in range(rank)]


# What lets a map through.


def _channels_first(layer):
    return getattr(layer, "data_format", None) == "channels_first"


def _space(layer, rank):
    """The axes of an example that aren't its channels'."""
    return range(1, rank) if _channels_first(layer) else range(rank - 1)


def _through(layer, affine, shapes):
    """Layers that keep the axes: they compute the same from each channel's values."""
    kind = type(layer)
    if kind is layers.Activation and layer.activation is not keras.activations.linear:
        raise Kept(f"{described(layer)} isn't linear.")
    if kind in _AS_THEY_ARE:
        return affine
    if any(affine.varies_along(axis) for axis in _space(layer, affine.scale.ndim)):
        raise Kept(f"Its channels aren't those of {described(layer)}.")
    if kind in _MAXIMA and (affine.scale < 0).any():
        raise Kept(f"{described(layer)} takes the largest, and a scale is negative.")
    if kind in _PADDINGS and affine.shift.any():
        raise Kept(f"{described(layer)} pads with zeros, which it would shift.")
    if kind in _UP_SAMPLINGS and layer.interpolation not in ("nearest", "bilinear"):
        raise Kept(f"{described(layer)} interpolates by weights that needn't sum to 1.")
    return affine


def _global(layer, affine, shapes, back):
    rank = len(shapes[0]) - 1 if back else affine.scale.ndim
    space = tuple(_space(layer, rank))
    if back:
        # One example is a vector of channels, or has axes of size 1 besides.
        shape = [1 if axis in space else -1 for axis in range(rank)]
        affine = affine.reshaped(lambda array: array.reshape(shape))
    _through(layer, affine, shapes)
    if back or layer.keepdims:
        return affine
    return affine.reshaped(lambda array: array.reshape(-1))


def _reshape(layer, affine, shapes, back):
    old, new = shapes if not back else shapes[::-1]
    if type(layer) is layers.Flatten and _channels_first(layer) and len(shapes[0]) > 2:
        # It moves the channels to the end before it flattens.
        def moved(shape):
            return (shape[0], *shape[2:], shape[1])

        if back:
            affine = _to_shape(layer, affine, old, moved(new))
            return affine.reshaped(lambda array: np.moveaxis(array, -1, 0))
        affine = affine.reshaped(lambda array: np.moveaxis(array, 0, -1))
        return _to_shape(layer, affine, moved(old), new)
    return _to_shape(layer, affine, old, new)


def _to_shape(layer, affine, old, new):
    old, new = old[1:], new[1:]
    inner = any(affine.varies_along(axis) for axis in range(len(old) - 1))
    if old and new and old[-1] == new[-1] and not inner:
        # Sizes that nobody knows don't matter then.
        return affine.reshaped(lambda a: a.reshape(_at(len(new) - 1, len(new))))
    if None in old or None in new:
        raise Kept(f"Its channels aren't those of {described(layer)}, of unknown size.")

    def change(array):
        array = np.broadcast_to(array, old).reshape(new)
        for axis in range(array.ndim):
            first = array.take([0], axis)
            if (array == first).all():
                array = first
        return array

    return affine.reshaped(change)


def _permute(layer, affine, shapes, back):
    order = [dim - 1 for dim in layer.dims]
    order = list(np.argsort(order)) if back else order
    return affine.reshaped(lambda array: array.transpose(order))


def _repeat(layer, affine, shapes, back):
    if not back:
        return affine.reshaped(lambda array: array[None])
    if affine.varies_along(0):
        raise Kept(f"Its channels aren't those of {described(layer)}.")
    return affine.reshaped(lambda array: array[0])


def _concatenate_back(layer, affine, shapes):
    """The maps of what is concatenated."""
    axis = layer.axis % len(shapes[0]) - 1
    if axis < 0:
        raise Kept(f"{described(layer)} joins batches.")
    sizes = [shape[axis + 1] for shape in shapes]
    if not affine.varies_along(axis):
        return [affine] * len(sizes)
    ends = np.cumsum(sizes)
    whole = affine.reshaped(
        lambda array: np.broadcast_to(
            array, [ends[-1] if i == axis else n for i, n in enumerate(array.shape)]
        )
    )
    return [
        whole.reshaped(lambda a, i=i: a.take(range(ends[i] - sizes[i], ends[i]), axis))
        for i in range(len(sizes))
    ]


def _concatenate_on(layer, affine, shapes, index):
    """The map of all, where one of what is concatenated has one."""
    axis = layer.axis % len(shapes[0]) - 1
    if axis < 0:
        raise Kept(f"{described(layer)} joins batches.")
    sizes = [shape[axis + 1] for shape in shapes]
    if None in sizes:
        raise Kept(f"{described(layer)} joins what has an unknown size.")

    def join(array, neutral):
        shape = list(array.shape)
        parts = []
        for i, shape[axis] in enumerate(sizes):
            parts.append(np.broadcast_to(array if i == index else neutral, shape))
        return np.concatenate(parts, axis)

    return Affine(join(affine.scale, 1.0), join(affine.shift, 0.0))


def _named(pattern, ranks=(1, 2, 3)):
    return [getattr(layers, pattern.format(rank)) for rank in ranks]


# At inference they do nothing.
_AS_THEY_ARE = {
    layers.Activation,  # the linear one
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    *_named("SpatialDropout{}D"),
}
_MAXIMA = {
    *_named("MaxPooling{}D"),
    *_named("AdaptiveMaxPooling{}D"),
    *_named("GlobalMaxPooling{}D"),
}
_PADDINGS = set(_named("ZeroPadding{}D"))
# The others repeat.
_UP_SAMPLINGS = {layers.UpSampling2D}
_KEEP_AXES = {
    *_AS_THEY_ARE,
    *_MAXIMA,
    *_PADDINGS,
    *_named("AdaptiveAveragePooling{}D"),
    # Padding isn't counted by any of the frameworks: an average of equal numbers is
    # that number, at the borders too.
    *_named("AveragePooling{}D"),
    *_named("Cropping{}D"),
    *_named("UpSampling{}D"),
}
_CHANGE_AXES = {
    layers.Flatten: _reshape,
    layers.Permute: _permute,
    layers.RepeatVector: _repeat,
    layers.Reshape: _reshape,
    **dict.fromkeys(_named("GlobalAveragePooling{}D"), _global),
    **dict.fromkeys(_named("GlobalMaxPooling{}D"), _global),
}


def passed_back(layer, affine, shapes, output_shape):
    """The maps before a layer that do what one behind it does.

    Args:
        layer: a layer of Keras's.
        affine: the `Affine` of its outputs.
        shapes: list of the shapes of its inputs, with the batch.
        output_shape: that of its outputs.

    Returns:
        A list of one `Affine` for each input.
    """
    if type(layer) is layers.Concatenate:
        return _concatenate_back(layer, affine, shapes)
    if type(layer) in _CHANGE_AXES:
        both = (shapes[0], output_shape)
        return [_CHANGE_AXES[type(layer)](layer, affine, both, back=True)]
    if type(layer) in _KEEP_AXES:
        return [_through(layer, affine, shapes)]
    raise Kept(f"{described(layer)} isn't linear.")


def passed_on(layer, affine, index, shapes, output_shape):
    """The map behind a layer that does what one before it does.

    Args:
        layer: a layer of Keras's.
        affine: the `Affine` of one of its inputs.
        index: integer, which of the inputs.
        shapes: list of the shapes of its inputs, with the batch.
        output_shape: that of its outputs.
    """
    if type(layer) is layers.Concatenate:
        return _concatenate_on(layer, affine, shapes, index)
    if type(layer) in _CHANGE_AXES:
        both = (shapes[0], output_shape)
        return _CHANGE_AXES[type(layer)](layer, affine, both, back=False)
    if type(layer) in _KEEP_AXES:
        return _through(layer, affine, shapes)
    raise Kept(f"{described(layer)} isn't linear.")


def described(layer):
    """A layer as messages name it."""
    return f"{layer.name!r} ({type(layer).__name__})"


# What takes a map into its weights.


class Taker:
    """The weights of a linear layer in float64, and what maps make of them.

    `behind` and `before` return another taker; the layer stays as it is. A subclass
    says where its kernel has the channels that come in, and those that go out.

    Attributes:
        layer: the layer.
        weights: dictionary of arrays, by the names of the layer's attributes.
    """

    kernels: tuple[str, ...] = ("kernel",)
    bias = "bias"

    def __init__(self, layer):
        self.layer = layer
        variables = {name: getattr(layer, name) for name in (*self.kernels, self.bias)}
        self.weights = {
            name: to_float64(variable)
            for name, variable in variables.items()
            if variable is not None
        }

    def behind(self, affine):
        """The taker that computes `affine(layer(x))`."""
        scale, shift = self._vectors(affine, self._sizes()[1])
        name = self.kernels[-1]
        kernel = self.weights[name] * self._by_output(scale)
        return self._with(name, kernel, self._bias() * scale + shift)

    def before(self, affine, input_shape):
        """The taker that computes `layer(affine(x))`, for inputs of a shape."""
        scale, shift = self._vectors(affine, self._sizes()[0])
        name = self.kernels[0]
        bias = self._bias()
        if shift.any():
            if obstacle := self._mixes(input_shape):
                raise Kept(f"{described(self.layer)} {obstacle}.")
            bias = bias + self._of_constant(shift)
        return self._with(name, self.weights[name] * self._by_input(scale), bias)

    def config(self):
        """The arguments that a layer of these weights needs."""
        return {"use_bias": self.bias in self.weights}

    def store(self, layer):
        """Gives a layer the weights, rounded to its dtype."""
        for name, array in self.weights.items():
            getattr(layer, name).assign(array)

    def _bias(self):
        return self.weights.get(self.bias, 0.0)

    def _with(self, name, kernel, bias):
        new = copy.copy(self)
        new.weights = {**self.weights, name: kernel}
        if self.bias in self.weights or np.any(bias):
            new.weights[self.bias] = bias
        return new

    def _vectors(self, affine, size):
        """Scale and shift of each of `size` channels."""
        rank = affine.scale.ndim
        axis = self._channel_axis(rank)
        if any(affine.varies_along(i) for i in range(rank) if i != axis):
            raise Kept(f"Its channels aren't those of {described(self.layer)}.")
        return [np.broadcast_to(array.reshape(-1), [size]) for array in affine]

    def _channel_axis(self, rank):
        return 0 if _channels_first(self.layer) else rank - 1

    def _mixes(self, input_shape):
        """What it does to a constant besides multiplying it, or `None`."""
        return None


class _Dense(Taker):
    def _sizes(self):
        return self.weights["kernel"].shape

    def _by_output(self, vector):
        return vector

    def _by_input(self, vector):
        return vector[:, None]

    def _of_constant(self, vector):
        return vector @ self.weights["kernel"]


class _Padded(Taker):
    def _mixes(self, input_shape):
        layer = self.layer
        first = 2 if _channels_first(layer) else 1
        sizes = input_shape[first : first + len(layer.kernel_size)]
        shape = zip(
            sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
        )
        pads = layer.padding != "valid" and any(_is_padded(*axis) for axis in shape)
        # By numbers for each channel it would take as long as the normalization.
        return "pads with zeros, which the normalization would shift" if pads else None


def _is_padded(size, kernel, stride, dilation):
    reach = (kernel - 1) * dilation + 1
    if size is None or reach == 1:
        return reach > 1
    return (math.ceil(size / stride) - 1) * stride + reach > size


class _Convolution(_Padded):
    # The kernel is (..., inputs of a group, outputs), one group after the other.
    def _sizes(self):
        *_, inputs, outputs = self.weights["kernel"].shape
        return inputs * self.layer.groups, outputs

    def _by_output(self, vector):
        return vector

    def _by_input(self, vector):
        groups = vector.reshape(self.layer.groups, -1)
        return np.repeat(groups, self._sizes()[1] // len(groups), axis=0).T

    def _of_constant(self, vector):
        kernel = self.weights["kernel"] * self._by_input(vector)
        return kernel.reshape(-1, kernel.shape[-1]).sum(0)


class _Depthwise(_Padded):
    # The kernel is (..., inputs, multiplier); an input's outputs are neighbours.
    def _sizes(self):
        *_, inputs, multiplier = self.weights["kernel"].shape
        return inputs, inputs * multiplier

    def _by_output(self, vector):
        return vector.reshape(self.weights["kernel"].shape[-2:])

    def _by_input(self, vector):
        return vector[:, None]

    def _of_constant(self, vector):
        kernel = self.weights["kernel"] * self._by_input(vector)
        return kernel.reshape(-1, self._sizes()[1]).sum(0)


class _Separable(_Padded):
    kernels = ("depthwise_kernel", "pointwise_kernel")

    def _sizes(self):
        depthwise, pointwise = (self.weights[name] for name in self.kernels)
        return depthwise.shape[-2], pointwise.shape[-1]

    def _by_output(self, vector):
        return vector

    def _by_input(self, vector):
        return vector[:, None]

    def _of_constant(self, vector):
        depthwise, pointwise = (self.weights[name] for name in self.kernels)
        pointwise = pointwise.reshape(pointwise.shape[-2:])
        depthwise = depthwise * self._by_input(vector)
        return depthwise.reshape(-1, len(pointwise)).sum(0) @ pointwise


class _Transposed(Taker):
    # The kernel is (..., outputs, inputs).
    def _sizes(self):
        *_, outputs, inputs = self.weights["kernel"].shape
        return inputs, outputs

    def _by_output(self, vector):
        return vector[:, None]

    def _by_input(self, vector):
        return vector

    def _of_constant(self, vector):
        kernel = self.weights["kernel"]
        return kernel.reshape(kernel.shape[-2:]) @ vector

    def _mixes(self, input_shape):
        layer = self.layer
        if max(*layer.kernel_size, *layer.strides) > 1:
            return "makes outputs of different numbers of inputs, so that no shift fits"
        return None


class Normalization(Taker):
    """A batch normalization: a map itself, and one that takes the maps behind it."""

    kernels, bias = ("gamma",), "beta"

    def __init__(self, layer):
        super().__init__(layer)
        self.mean, variance = moving_statistics(layer)
        self.inverse = 1.0 / np.sqrt(variance + layer.epsilon)
        self.weights.setdefault("gamma", np.ones_like(self.mean))

    def affine(self, rank):
        """The map, for inputs of a number of axes, the batch's among them."""
        scale = self.weights["gamma"] * self.inverse
        shift = self._bias() - self.mean * scale
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Kept("Its weights or statistics aren't finite.")
        several = isinstance(self.layer.axis, (list, tuple))
        axes = self.layer.axis if several else [self.layer.axis]
        if 0 in [axis % rank for axis in axes]:
            raise Kept("Its channels are the examples of the batch.")
        # Weights of several channel axes have the inputs' rank as they are.
        shape = scale.shape[1:] if several else _at(axes[0] % rank - 1, rank - 1)
        return Affine(scale, shift).reshaped(lambda array: array.reshape(shape))

    @property
    def deviations(self):
        """The largest mean, in standard deviations."""
        return np.abs(self.mean * self.inverse).max(initial=0.0)

    def before(self, affine, input_shape):
        raise Kept(f"{described(self.layer)} is kept, too.")

    def config(self):
        return {"scale": True, "center": self.bias in self.weights}

    def store(self, layer):
        super().store(layer)
        own = ((la, id(la.gamma), id(la.beta)) for la in (layer, self.layer))
        new, old = ([w for w in la.weights if id(w) not in ids] for la, *ids in own)
        for weight, value in zip(new, old, strict=True):
            weight.assign(ops.copy(value))

    def _sizes(self):
        return 2 * self.weights["gamma"].shape

    def _by_output(self, vector):
        return vector

    def _channel_axis(self, rank):
        if isinstance(self.layer.axis, (list, tuple)):
            raise Kept(f"{described(self.layer)} has several axes of channels.")
        return self.layer.axis % (rank + 1) - 1


class _Einsum(Taker):
    """An `EinsumDense`, whose equation names the axes.

    A map may vary along each axis of the kernel. The bias is kept with the rank of an
    example, of size 1 along the axes on which it doesn't depend.
    """

    def __init__(self, layer):
        super().__init__(layer)
        self.bias_axes = layer.bias_axes or ""

    def behind(self, affine):
        _, kernel, outputs = self._letters(affine.scale.ndim + 1, of_outputs=True)
        scale = self._aligned(affine, outputs, kernel)
        bias = self._bias(outputs) * affine.scale + affine.shift
        return self._with(self.weights["kernel"] * scale, bias, outputs)

    def before(self, affine, input_shape):
        inputs, kernel, outputs = self._letters(len(input_shape))
        scale = self._aligned(affine, inputs, kernel)
        bias = self._bias(outputs)
        if affine.shift.any():
            sizes = dict(zip(kernel, self.weights["kernel"].shape, strict=True))
            shape = []
            for letter, size in zip(inputs[1:], input_shape[1:], strict=True):
                # An axis that the kernel lacks is one of the outputs, or summed.
                shape.append(sizes.get(letter, 1 if letter in outputs else size))
            if None in shape:
                raise Kept(f"{described(self.layer)} sums an axis of unknown size.")
            shift = np.broadcast_to(affine.shift, shape)[None]
            equation = f"{inputs},{kernel}->{outputs}"
            bias = bias + np.einsum(equation, shift, self.weights["kernel"])[0]
        return self._with(self.weights["kernel"] * scale, bias, outputs)

    def config(self):
        return {"bias_axes": self.bias_axes or None}

    def store(self, layer):
        layer.kernel.assign(self.weights["kernel"])
        if layer.bias is not None:
            shape, bias = layer.bias.shape, self.weights["bias"]
            bias = bias.reshape(bias.shape[bias.ndim - len(shape) :])
            layer.bias.assign(np.broadcast_to(bias, shape))

    def _letters(self, rank, of_outputs=False):
        """The letters of inputs, kernel and outputs, an ellipsis spelled out."""
        equation = self.layer.equation.replace(" ", "")
        inputs, kernel, outputs = equation.replace("->", ",").split(",")
        known = outputs if of_outputs else inputs
        if "..." in known:
            unused = [c for c in string.ascii_letters if c not in equation]
            more = "".join(unused[: rank - len(known) + len("...")])
            inputs, outputs = (s.replace("...", more) for s in (inputs, outputs))
        if inputs[0] != outputs[0] or inputs[0] in kernel:
            raise Kept(f"{described(self.layer)} moves the axis of the batch.")
        return inputs, kernel, outputs

    def _aligned(self, affine, letters, kernel):
        """The scale with the axes of the kernel, for one with those of `letters`."""
        absent = [i for i, letter in enumerate(letters[1:]) if letter not in kernel]
        if any(affine.varies_along(axis) for axis in absent):
            raise Kept(f"Its channels aren't those of {described(self.layer)}.")
        present = [letter for letter in letters[1:] if letter in kernel]
        scale = affine.scale.squeeze(tuple(absent))
        scale = scale.transpose([present.index(c) for c in kernel if c in present])
        sizes = iter(scale.shape)
        return scale.reshape([next(sizes) if c in present else 1 for c in kernel])

    def _bias(self, outputs):
        bias = self.weights.get("bias", np.zeros(()))
        return bias.reshape((1,) * (len(outputs) - 1 - bias.ndim) + bias.shape)

    def _with(self, kernel, bias, outputs):
        new = copy.copy(self)
        new.weights = {**self.weights, "kernel": kernel}
        if self.bias_axes or bias.any():
            new.weights["bias"] = bias
            new.bias_axes = "".join(
                letter
                for letter, size in zip(outputs[1:], bias.shape, strict=True)
                if size > 1 or letter in self.bias_axes
            )
            # A bias of one number takes any axis.
            new.bias_axes = new.bias_axes or outputs[-1]
        if any(letter not in self.layer.equation for letter in new.bias_axes):
            raise Kept(f"Its channels aren't those of {described(self.layer)}.")
        return new


_TAKERS = {
    layers.Dense: _Dense,
    layers.EinsumDense: _Einsum,
    **dict.fromkeys(_named("Conv{}D"), _Convolution),
    **dict.fromkeys(_named("DepthwiseConv{}D", (1, 2)), _Depthwise),
    **dict.fromkeys(_named("SeparableConv{}D", (1, 2)), _Separable),
    **dict.fromkeys(_named("Conv{}DTranspose"), _Transposed),
    **dict.fromkeys(NORMALIZATIONS, Normalization),
}


def taker(layer):
    """The `Taker` of a layer that is linear; `None` for any other.

    Raises:
        Kept: for a layer whose weights aren't to be changed.
    """
    if type(layer) not in _TAKERS:
        return None
    if layer.quantization_mode is not None:
        raise Kept(f"{described(layer)} is quantized ({layer.quantization_mode}).")
    if getattr(layer, "lora_enabled", False):
        raise Kept(f"{described(layer)} has LoRA's weights beside its kernel.")
    for name in ("kernel", "depthwise", "pointwise", "gamma", "bias", "beta"):
        if getattr(layer, f"{name}_constraint", None) is not None:
            raise Kept(
                f"{described(layer)} has a {name}_constraint, which the folded weights "
                "needn't meet."
            )
    return _TAKERS[type(layer)](layer)
