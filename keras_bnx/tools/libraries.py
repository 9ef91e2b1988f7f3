"""PyTorch's and Flax's layers: their weights by names, and what they are beside these.

`interop` carries weights between Keras and any `Library`; what differs by library is
here. Each is reached by its objects' own methods, and imported only where one of its
objects is made, checked or written to: `import keras_bnx` loads no other framework.
"""

import importlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_bnx.tools.models import activation_of

_KERNELS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def is_norm(layer):
    return isinstance(layer, keras.layers.BatchNormalization)


class Settings(NamedTuple):
    """What a batch normalization does, beside its weights.

    Attributes:
        epsilon: what is added to the variance.
        momentum: the weight of the old value, or `None` for a cumulative average.
        unbiased: whether the moving variance has the divisor n - 1.
    """

    epsilon: float
    momentum: float
    unbiased: bool

    @classmethod
    def of(cls, layer):
        """Those of one of Keras's layers or ours."""
        unbiased = getattr(layer, "unbiased_moving_variance", False)
        return cls(layer.epsilon, layer.momentum, unbiased)

    def differences(self, other):
        """What differs, as text: this and the other."""
        found = []
        for name, a, b in zip(self._fields, self, other, strict=True):
            # PyTorch's momentum is 1 minus ours, which rounds.
            numbers = None not in (a, b)
            if not (math.isclose(a, b, abs_tol=1e-12) if numbers else a == b):
                found.append(f"{name} {a} and {b}")
        return found


class Part(NamedTuple):
    """A weight of a Keras layer, and where it is in a library.

    Attributes:
        leaf: its name there.
        variable: the Keras variable.
        leave: a function from Keras's array to the library's.
        enter: the function back.
    """

    leaf: str
    variable: Any
    leave: Any = np.asarray
    enter: Any = np.asarray


class Library:
    """Weights on another library's side, by the names of modules.

    Attributes:
        library: its name.
        unbiased: whether its moving variances have the divisor n - 1.
        defaults: epsilon and momentum of its batch normalization, as Keras has them.
        gamma, beta, mean, variance, kernel: its names of these weights.
        count: its name of the number of batches, if it counts them.
        module: the module that has the weights; `None` where there are only arrays.
        given: epsilon and momentum where no module says them.

    Methods that each library has of its own:
        leaves(name): a new dictionary of the weights of a module, empty without any.
        joined(leaves): the way back, from a dictionary of such by modules.
        reach(name): the module.
        kinds(layer): classes of modules like a layer, or (`None`) any normalization.
        said(module): epsilon and momentum, as Keras has them.
        arguments(): those of a new layer, beside its settings, and the inputs' rank.
        kernels(layer): functions from Keras's kernel to the library's, and back.
        made(layer): a new module for a batch normalization, before its weights are set.
        write(weight, value): sets a weight to an array.
    """

    count: str | None = None

    def __init__(self, module, given):
        if given and module is not None:
            raise ValueError(
                "The source says its epsilon and momentum itself. Received: "
                f"{', '.join(f'{k}={v}' for k, v in given.items())}. Leave them out."
            )
        self.module = module
        self.given = {**self.defaults, **given}

    def read(self, weight):
        """An array; of 16 bits as float32, which holds them exactly."""
        value = np.asarray(weight)
        return value.astype("float32") if value.dtype.itemsize == 2 else value

    def settings(self, name):
        said = self.given if self.module is None else self.said(self.reach(name))
        return Settings(**said, unbiased=self.unbiased)

    def check(self, name, layer):
        """Raises where a module, if there is one, is of another kind than a layer."""
        if self.module is None:
            return
        module, kinds = self.reach(name), self.kinds(layer)
        if not isinstance(module, kinds):
            raise ValueError(
                f"{self.library}'s module is of another kind than Keras's layer. "
                f"Received: {name!r} of {type(module).__name__}. It has to be of "
                f"{' or '.join(kind.__name__ for kind in kinds)}."
            )

    @classmethod
    def parts(cls, layer):
        """The weights of a Keras layer that have a place in the library."""
        if not layer.built:
            raise ValueError(
                "A layer has no weights before it is built. "
                f"Received: {layer.name!r}. Call the model, or build it, first."
            )
        if is_norm(layer):
            leaves = {
                cls.gamma: layer.gamma,
                cls.beta: layer.beta,
                cls.mean: layer.moving_mean,
                cls.variance: layer.moving_variance,
            }
            return [Part(leaf, v) for leaf, v in leaves.items() if v is not None]
        grouped = isinstance(layer, _TRANSPOSED) and getattr(layer, "groups", 1) != 1
        if grouped or not isinstance(layer, (*_KERNELS, *_DEPTHWISE, *_TRANSPOSED)):
            raise cls._unsupported(layer)
        parts = [Part(cls.kernel, layer.kernel, *cls.kernels(layer))]
        if layer.bias is not None:
            parts.append(Part("bias", layer.bias))
        return parts

    @classmethod
    def _unsupported(cls, layer):
        return ValueError(
            f"Weights of this layer can't be exchanged with {cls.library}. Received: "
            f"{layer.name!r} of {type(layer).__name__}. Leave it out of `names`, "
            "and set its weights by `layer.set_weights`."
        )

    @classmethod
    def raise_if_it_lacks(cls, layer):
        """Raises where a batch normalization has what the library's can't express."""
        if lacks := cls._lacks(layer):
            raise ValueError(
                f"{cls.library}'s batch normalization can't express the layer. "
                f"Received: {layer.name!r} with {', '.join(lacks)}. Change it by "
                "`keras_bnx.convert(model, argument=value)` first; "
                f"{cls.library}'s has unbiased_moving_variance={cls.unbiased}."
            )

    @classmethod
    def _lacks(cls, layer):
        on = {
            name: getattr(layer, name, None)
            for name in ("renorm", "virtual_batch_size", "debias_moving_statistics")
        }
        found = [f"{name}={value}" for name, value in on.items() if value]
        unbiased = Settings.of(layer).unbiased
        if unbiased != cls.unbiased:
            found.append(f"unbiased_moving_variance={unbiased}")
        if not isinstance(layer.axis, int):
            found.append(f"axis={layer.axis}")
        # True is an integer, too.
        if layer.synchronized not in (False, True):
            found.append(f"synchronized={layer.synchronized}")
        if getattr(layer, "frozen", ()):
            found.append(f"frozen={layer.frozen}")
        if activation_of(layer) is not None:
            found.append(f"activation={layer.get_config()['activation']}")
        return found


class Torch(Library):
    """Modules, and state dictionaries of tensors or arrays."""

    library, unbiased = "PyTorch", True
    defaults = MappingProxyType({"epsilon": 1e-5, "momentum": 0.9})
    gamma, beta, mean, variance = "weight", "bias", "running_mean", "running_var"
    kernel, count = "weight", "num_batches_tracked"

    def __init__(self, source, given):
        is_module = hasattr(source, "get_submodule")
        # On PyTorch, Keras's layers are modules, too.
        if isinstance(source, keras.Layer) or not (
            is_module or isinstance(source, Mapping)
        ):
            raise ValueError(
                "PyTorch's side has to be a torch.nn.Module, or a state dictionary. "
                f"Received: {source!r}. Pass Keras's side as the other argument."
            )
        super().__init__(source if is_module else None, given)
        self.tensors = dict(source.state_dict() if is_module else source)

    @staticmethod
    def joined(leaves):
        """A state dictionary, of each module's weights by its name."""
        return {
            f"{name}.{leaf}" if name else leaf: value
            for name, values in leaves.items()
            for leaf, value in values.items()
        }

    def leaves(self, name):
        prefix = f"{name}." if name else ""
        return {
            key.removeprefix(prefix): value
            for key, value in self.tensors.items()
            if key.startswith(prefix) and "." not in key.removeprefix(prefix)
        }

    def reach(self, name):
        return self.module.get_submodule(name)

    @staticmethod
    def kinds(layer):
        nn = _imported("torch", "torch").nn
        if layer is None or is_norm(layer):
            return nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
        if isinstance(layer, layers.Dense):
            return (nn.Linear,)
        kind = "ConvTranspose" if isinstance(layer, _TRANSPOSED) else "Conv"
        return (getattr(nn, f"{kind}{len(layer.kernel.shape) - 2}d"),)

    def check(self, name, layer):
        super().check(name, layer)
        if self.module is None or not hasattr(layer, "dilation_rate"):
            return
        module = self.reach(name)
        theirs = (*module.stride, *module.dilation)
        ours = (*layer.strides, *layer.dilation_rate)
        if theirs != ours:
            raise ValueError(
                "Strides and dilations differ. Received: "
                f"{name!r} with {theirs} and {layer.name!r} with {ours}. Map "
                "convolutions that are the same."
            )

    @classmethod
    def said(cls, module):
        momentum = module.momentum
        momentum = None if momentum is None else cls._complement(momentum)
        return {"epsilon": module.eps, "momentum": momentum}

    @staticmethod
    def _complement(momentum):
        """1 minus a momentum: PyTorch's from Keras's, or back."""
        # Without the subtraction's rounding of 1e-16, so that 0.1 comes back as 0.1.
        return round(1.0 - momentum, 15)

    def arguments(self):
        kind = type(self.module).__name__
        # SyncBatchNorm takes any rank; arrays alone don't say it.
        rank = next((n + 2 for n in (2, 3) if kind.endswith(f"{n}d")), 2)
        return {"synchronized": True} if "Sync" in kind else {}, rank

    @staticmethod
    def kernels(layer):
        n = len(layer.kernel.shape) - 2
        if isinstance(layer, _DEPTHWISE):

            def leave(kernel):
                flat = kernel.reshape(*kernel.shape[:-2], -1)
                return np.moveaxis(flat, -1, 0)[:, None]

            def enter(weight):
                shape = (*weight.shape[2:], *layer.kernel.shape[-2:])
                return np.moveaxis(weight[:, 0], 0, -1).reshape(shape)

            return leave, enter
        # Input and output channels are the last in Keras, and the first in PyTorch, in
        # the other order; those of transposed convolutions are swapped in both.
        return (
            lambda kernel: kernel.transpose(n + 1, n, *range(n)),
            lambda weight: weight.transpose(*range(2, n + 2), 1, 0),
        )

    @classmethod
    def _lacks(cls, layer):
        found = super()._lacks(layer)
        if layer.center and not layer.scale:
            found.append("scale=False and center=True")
        return found

    @classmethod
    def made(cls, layer):
        cls.raise_if_it_lacks(layer)
        nn = _imported("torch", "torch").nn
        shape = (layer.get_build_config() or {}).get("input_shape", ())
        by_rank = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        kind = by_rank.get(len(shape), nn.BatchNorm1d)
        momentum = layer.momentum
        module = (nn.SyncBatchNorm if layer.synchronized else kind)(
            layer.moving_mean.shape[0],
            eps=layer.epsilon,
            momentum=None if momentum is None else cls._complement(momentum),
            affine=layer.center or layer.scale,
        )
        if not layer.center:
            module.bias = None
        return module.double() if layer.variable_dtype == "float64" else module

    def read(self, weight):
        if hasattr(weight, "detach"):
            weight = weight.detach().cpu()
            # NumPy has no bfloat16.
            narrow = str(weight.dtype) == "torch.bfloat16"
            weight = (weight.float() if narrow else weight).numpy()
        return super().read(weight)

    def write(self, weight, value):
        torch = _imported("torch", "torch")
        with torch.no_grad():
            weight.copy_(torch.from_numpy(np.array(value)))


class _Flax(Library):
    """What NNX and linen share."""

    library, unbiased = "Flax", False
    defaults = MappingProxyType({"epsilon": 1e-5, "momentum": 0.99})
    gamma, beta, mean, variance = "scale", "bias", "mean", "var"
    kernel = "kernel"

    @staticmethod
    def said(module):
        return {"epsilon": module.epsilon, "momentum": module.momentum}

    def arguments(self):
        if self.module is None:
            return {}, 2
        groups = self.module.axis_index_groups
        if groups is not None:
            raise ValueError(
                "Groups of replicas can't be taken from Flax. Received: "
                f"axis_index_groups={groups}. Make the layer without them, and pass "
                "`synchronized=` the size of the groups."
            )
        more = {"axis": self.module.axis}
        if self.module.axis_name is not None:
            more.update(axis_name=self.module.axis_name, synchronized=True)
        return more, 2

    @classmethod
    def kernels(cls, layer):
        if isinstance(layer, _TRANSPOSED):
            # Flax's flip the kernel, or don't, by an argument.
            raise cls._unsupported(layer)
        if isinstance(layer, _DEPTHWISE):
            shape = tuple(layer.kernel.shape)
            return (
                lambda kernel: kernel.reshape(*shape[:-2], 1, -1),
                lambda weight: weight.reshape(shape),
            )
        return np.asarray, np.asarray

    @classmethod
    def _lacks(cls, layer):
        found = super()._lacks(layer)
        if layer.momentum is None:
            found.append("momentum=None")
        return found

    @staticmethod
    def _arguments_of(layer):
        return {
            "axis": layer.axis,
            "momentum": layer.momentum,
            "epsilon": layer.epsilon,
            "use_bias": layer.center,
            "use_scale": layer.scale,
            "axis_name": getattr(layer, "axis_name", None),
        }

    def read(self, weight):
        # Variables of NNX are read by an index.
        return super().read(weight[...] if hasattr(weight, "set_metadata") else weight)


class NNX(_Flax):
    """Objects of NNX."""

    def leaves(self, name):
        module = self.reach(name)
        kinds = (self.gamma, self.beta, self.mean, self.variance, self.kernel)
        pairs = {leaf: getattr(module, leaf, None) for leaf in kinds}
        # Numbers and functions of these names aren't weights.
        return {k: v for k, v in pairs.items() if hasattr(v, "shape")}

    def reach(self, name):
        found = self.module
        for key in _keys(name):
            try:
                found = found[int(key)] if key.isdigit() else getattr(found, key)
            except (AttributeError, IndexError, TypeError):
                return None
        return found

    @staticmethod
    def kinds(layer):
        nnx = _imported("flax.nnx", "flax")
        if layer is None or is_norm(layer):
            return (nnx.BatchNorm,)
        return (nnx.Linear,) if isinstance(layer, layers.Dense) else (nnx.Conv,)

    @classmethod
    def made(cls, layer):
        cls.raise_if_it_lacks(layer)
        nnx, size = _imported("flax.nnx", "flax"), layer.moving_mean.shape[0]
        return nnx.BatchNorm(size, rngs=nnx.Rngs(0), **cls._arguments_of(layer))

    def write(self, weight, value):
        weight[...] = _imported("jax.numpy", "jax").asarray(value)


class Linen(_Flax):
    """Variables of linen, with a single layer's module or without."""

    collections = ("params", "batch_stats")

    def __init__(self, variables, given, module=None):
        super().__init__(module, given)
        self.variables = variables

    @classmethod
    def joined(cls, leaves):
        """Variables, of each module's weights by its name."""
        variables = {name: {} for name in cls.collections}
        for name, values in leaves.items():
            for leaf, value in values.items():
                moving = leaf in (cls.mean, cls.variance)
                tree = variables["batch_stats" if moving else "params"]
                for key in _keys(name):
                    tree = tree.setdefault(key, {})
                tree[leaf] = value
        return variables

    @classmethod
    def copied(cls, variables):
        """Variables of their own, as arrays that can be written to."""
        return {
            key: cls.copied(value) if isinstance(value, Mapping) else np.array(value)
            for key, value in variables.items()
        }

    def leaves(self, name):
        found = {}
        for tree in (self.variables.get(k, {}) for k in self.collections):
            for key in _keys(name):
                tree = tree.get(key, {})
            found.update({k: v for k, v in tree.items() if not isinstance(v, Mapping)})
        return found

    def reach(self, name):
        return self.module

    @staticmethod
    def kinds(layer):
        return (_imported("flax.linen", "flax").BatchNorm,)

    @classmethod
    def made(cls, layer):
        return _imported("flax.linen", "flax").BatchNorm(**cls._arguments_of(layer))

    def write(self, weight, value):
        weight[...] = value


def flax(source, given):
    """The side of Flax that an object, variables or a pair belong to."""
    if isinstance(source, Mapping):
        return Linen(source, given)
    if isinstance(source, tuple) and len(source) == 2:
        return Linen(source[1], given, source[0])
    return NNX(source, given)


def _keys(name):
    return name.split(".") if name else ()


def _imported(name, package):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This needs {package}, which isn't installed. Received: {error}. "
            f"Install {package}, or ask for arrays by `kind`."
        ) from error
