"""Exchange of weights with PyTorch and Flax: what travels is equal at the other end.

Each framework is reached by its objects' own methods, and imported only where one is
made: `import keras_bnx` loads no other framework.
"""

import importlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, overload

import keras
import numpy as np
from keras import layers, ops

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.models import activation_of, walk

_KERNELS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)

_Target = TypeVar("_Target", bound=keras.Layer)


@overload
def from_torch(source: Any, **arguments: Any) -> BatchNormalization: ...
@overload
def from_torch(
    source: Any,
    target: _Target,
    names: Mapping[str, str | keras.Layer] | None = None,
    **arguments: float,
) -> _Target: ...
def from_torch(
    source: Any,
    target: keras.Layer | None = None,
    names: Mapping[str, str | keras.Layer] | None = None,
    **arguments: Any,
) -> keras.Layer:
    """Takes batch normalization, or a model's weights, from PyTorch.

    A single layer: `from_torch(module)` or `from_torch(state_dict)` returns a layer
    that continues where PyTorch's stopped, with its `eps`, its `momentum` (here
    `1 - momentum`, the weight of the old value; `None` stays), its number of batches
    where the average is cumulative, and a moving variance of the divisor n - 1
    (`unbiased_moving_variance=True`).

    A model: `from_torch(source, model, names)` sets the weights of the layers that are
    named: batch normalization, dense layers, convolutions, also depthwise and
    transposed ones. Batch normalizations of the model have to have PyTorch's epsilon,
    momentum and divisor already, as `keras_bnx.convert(model, epsilon=1e-5,
    momentum=0.9, unbiased_moving_variance=True)` gives them. Convolutions have to have
    the module's strides and dilations; padding is the model's own business.

    All is compared first: a layer that differs, a name that isn't there, a weight that
    would be left over or rounded is an error, and then nothing is changed.

    Args:
        source: a `torch.nn.Module`, or a state dictionary of tensors or arrays, which
            doesn't say epsilon and momentum.
        target: a Keras model or layer whose weights to set; by default a new layer is
            made.
        names: dictionary from names of PyTorch's modules (`"layer1.0.bn1"`) to names of
            Keras's layers, or the layers themselves.
        **arguments: for a state dictionary `epsilon` and `momentum` as Keras has them,
            by default PyTorch's, 1e-5 and 0.9. For a new layer any others of
            `keras_bnx.BatchNormalization`: `axis=1`, say, for channels first.

    Returns:
        The new layer, or the target.

    Raises:
        ValueError: where something differs, is missing, or isn't supported.

    Example:

    >>> import numpy as np
    >>> from keras_bnx import interop
    >>> state = {"running_mean": np.ones(3), "running_var": np.ones(3)}
    >>> layer = interop.from_torch(state, momentum=0.9)
    >>> layer.epsilon, layer.momentum, layer.scale, layer.unbiased_moving_variance
    (1e-05, 0.9, False, True)
    """
    return _read(_torch(source, arguments), target, names, arguments)


def to_torch(
    source: keras.Layer,
    target: Any = None,
    names: Mapping[str, str | keras.Layer] | None = None,
    *,
    kind: Literal["module", "state_dict"] = "module",
) -> Any:
    """Gives batch normalization, or a model's weights, to PyTorch.

    `from_torch`'s way back, by the same `names`. Layers that PyTorch's can't express
    are refused; `keras_bnx.convert(model, unbiased_moving_variance=True)` makes
    Keras's own follow PyTorch's divisor from now on. Initializers, regularizers,
    constraints and `trainable` stay behind.

    Args:
        source: a Keras layer or model.
        target: a `torch.nn.Module` whose weights to set. Its `eps` and `momentum` have
            to be the source's already.
        names: dictionary from names of PyTorch's modules to names of Keras's layers,
            or the layers themselves.
        kind: what is made of a single layer without a target: `"module"`, a
            `torch.nn.BatchNorm1d`, `2d` or `3d` by the inputs that it was built for
            (`SyncBatchNorm` if it is synchronized); or `"state_dict"`, a dictionary of
            NumPy arrays, for which PyTorch needn't be installed. Models without a
            target give such a dictionary.

    Returns:
        The module, dictionary or target.

    Raises:
        ValueError: where something differs, is missing, or isn't supported. Then
            nothing is changed.
        ImportError: if PyTorch is needed and isn't installed.

    Example:

    >>> import keras_bnx
    >>> layer = keras_bnx.BatchNormalization(unbiased_moving_variance=True)
    >>> layer.build((None, 3))
    >>> sorted(keras_bnx.interop.to_torch(layer, kind="state_dict"))
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    _check_kind(kind, ("module", "state_dict"))
    pairs = _pairs(source, names)
    if target is None and names is None and kind == "module":
        target = _new_torch(source)
    if target is not None:
        if isinstance(target, Mapping):
            raise ValueError(
                "A target has to be a torch.nn.Module. Received: a dictionary. Leave "
                "`target` out, and take the dictionary that is returned."
            )
        return _write(_torch(target, {}), pairs, target)
    state = {}
    for name, values, _ in _leave_keras(pairs, _Torch):
        prefix = f"{name}." if name else ""
        state.update({f"{prefix}{leaf}": value for leaf, value in values.items()})
    return state


@overload
def from_flax(source: Any, **arguments: Any) -> BatchNormalization: ...
@overload
def from_flax(
    source: Any,
    target: _Target,
    names: Mapping[str, str | keras.Layer] | None = None,
    **arguments: float,
) -> _Target: ...
def from_flax(
    source: Any,
    target: keras.Layer | None = None,
    names: Mapping[str, str | keras.Layer] | None = None,
    **arguments: Any,
) -> keras.Layer:
    """Takes batch normalization, or a model's weights, from Flax, linen or NNX.

    As `from_torch`. Flax's momentum is the weight of the old value and its moving
    variance has the divisor n, as Keras has them. Flax's defaults are 0.99 and an
    epsilon of 1e-5, not Keras's 1e-3.

    Args:
        source: an object of NNX; variables of linen (`{"params": ..., "batch_stats":
            ...}`), which don't say epsilon and momentum; or a pair `(module,
            variables)` of a linen `BatchNorm`, which does.
        target: a Keras model or layer whose weights to set; by default a new layer is
            made.
        names: dictionary from names in Flax, attributes and indices with dots
            (`"blocks.0.norm"`, linen's `"Block_0.BatchNorm_1"`), to names of Keras's
            layers, or the layers themselves.
        **arguments: for variables of linen `epsilon` and `momentum`, by default Flax's.
            For a new layer any others of `keras_bnx.BatchNormalization`.

    Returns:
        The new layer, or the target.

    Raises:
        ValueError: where something differs, is missing, or isn't supported. Then
            nothing is changed.

    Example:

    >>> import numpy as np
    >>> from keras_bnx import interop
    >>> statistics = {"mean": np.ones(3), "var": np.ones(3)}
    >>> variables = {"params": {"scale": np.ones(3)}, "batch_stats": statistics}
    >>> layer = interop.from_flax(variables, momentum=0.9)
    >>> layer.epsilon, layer.momentum, layer.center
    (1e-05, 0.9, False)
    """
    return _read(_flax(source, arguments), target, names, arguments)


def to_flax(
    source: keras.Layer,
    target: Any = None,
    names: Mapping[str, str | keras.Layer] | None = None,
    *,
    kind: Literal["nnx", "linen", "variables"] = "nnx",
) -> Any:
    """Gives batch normalization, or a model's weights, to Flax, linen or NNX.

    `from_flax`'s way back, by the same `names`. Layers that Flax's can't express are
    refused. Initializers, regularizers, constraints and `trainable` stay behind.

    Args:
        source: a Keras layer or model.
        target: an object of NNX whose weights to set, and whose `epsilon` and
            `momentum` have to be the source's already; or variables of linen, of which
            a copy with other weights is returned.
        names: dictionary from names in Flax to names of Keras's layers, or the layers
            themselves.
        kind: what is made of a single layer without a target: `"nnx"`, an
            `nnx.BatchNorm`; `"linen"`, a pair of a `linen.BatchNorm` and its
            variables; or `"variables"`, these alone, of NumPy arrays, for which Flax
            needn't be installed. Models without a target give such variables.

    Returns:
        The object, pair, variables or target.

    Raises:
        ValueError: where something differs, is missing, or isn't supported. Then
            nothing is changed.
        ImportError: if Flax is needed and isn't installed.

    Example:

    >>> import keras_bnx
    >>> layer = keras_bnx.BatchNormalization()
    >>> layer.build((None, 3))
    >>> variables = keras_bnx.interop.to_flax(layer, kind="variables")
    >>> sorted(variables["params"]), sorted(variables["batch_stats"])
    (['bias', 'scale'], ['mean', 'var'])
    """
    _check_kind(kind, ("nnx", "linen", "variables"))
    pairs = _pairs(source, names)
    if target is None and names is None and kind == "nnx":
        target = _new_nnx(source)
    if isinstance(target, Mapping):
        target = _arrays(target)
    if target is not None:
        return _write(_flax(target, {}), pairs, target)
    variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    for name, values, _ in _leave_keras(pairs, _NNX):
        for leaf, value in values.items():
            tree = variables[_collection(leaf)]
            for key in name.split(".") if name else ():
                tree = tree.setdefault(key, {})
            tree[leaf] = value
    if names is None and kind == "linen":
        linen = _imported("flax.linen", "flax")
        return linen.BatchNorm(**_flax_arguments(source)), variables
    return variables


class _Settings(NamedTuple):
    """What a batch normalization does, beside its weights.

    Attributes:
        epsilon: what is added to the variance.
        momentum: the weight of the old value, or `None` for a cumulative average.
        unbiased: whether the moving variance has the divisor n - 1.
    """

    epsilon: float
    momentum: float
    unbiased: bool

    def differences(self, other):
        """What differs, as text: this and the other."""
        found = []
        for name, a, b in zip(self._fields, self, other, strict=True):
            # PyTorch's momentum is 1 minus ours, which rounds.
            numbers = None not in (a, b)
            if not (math.isclose(a, b, abs_tol=1e-12) if numbers else a == b):
                found.append(f"{name} {a} and {b}")
        return found


class _Part(NamedTuple):
    """A weight of a Keras layer, and where it is in the other framework.

    Attributes:
        leaf: its name there.
        variable: the Keras variable.
        leave: a function from Keras's array to the other one's.
        enter: the function back.
    """

    leaf: str
    variable: Any
    leave: Any = np.asarray
    enter: Any = np.asarray


class _Torch:
    """Modules and state dictionaries."""

    library, says_settings = "PyTorch", True
    gamma, beta, mean, variance = "weight", "bias", "running_mean", "running_var"
    kernel = "weight"
    defaults = MappingProxyType({"epsilon": 1e-5, "momentum": 0.9})
    has = "unbiased_moving_variance=True"

    def __init__(self, source, given):
        self.module = source if hasattr(source, "get_submodule") else None
        self.given = {**self.defaults, **given}
        self.says_settings = self.module is not None
        self.tensors = dict(source.state_dict() if self.says_settings else source)
        if given and self.module is not None:
            raise _says_itself(given)

    def leaves(self, name):
        """Tensors by their names in a module."""
        prefix = f"{name}." if name else ""
        return {
            key.removeprefix(prefix): value
            for key, value in self.tensors.items()
            if key.startswith(prefix) and "." not in key.removeprefix(prefix)
        }

    def check(self, name, layer):
        """Checks that a module, if it is one, is of the layer's kind."""
        if self.module is None:
            return
        nn, module = _imported("torch", "torch").nn, self.module.get_submodule(name)
        n = 0 if layer is None or _is_norm(layer) else len(layer.kernel.shape) - 2
        if layer is None or _is_norm(layer):
            kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        elif isinstance(layer, layers.Dense):
            kinds = (nn.Linear,)
        elif isinstance(layer, _TRANSPOSED):
            kinds = (getattr(nn, f"ConvTranspose{n}d"),)
        else:
            kinds = (getattr(nn, f"Conv{n}d"),)
        _raise_unless_of_kind(self, name, module, kinds)
        if n > 0:
            theirs = (*module.stride, *module.dilation)
            ours = (*layer.strides, *layer.dilation_rate)
            if theirs != ours:
                raise ValueError(
                    "Strides and dilations differ. Received: "
                    f"{name!r} with {theirs} and {layer.name!r} with {ours}. Map "
                    "convolutions that are the same."
                )

    def settings(self, name):
        if self.module is None:
            return _Settings(self.given["epsilon"], self.given["momentum"], True)
        module = self.module.get_submodule(name)
        momentum = None if module.momentum is None else _complement(module.momentum)
        return _Settings(module.eps, momentum, True)

    def arguments(self, name):
        """Arguments of a new layer, beside its settings, and the inputs' rank."""
        rank, more = 2, {}
        if self.module is not None:
            kind = type(self.module.get_submodule(name)).__name__
            # SyncBatchNorm takes any rank.
            rank = next((n + 2 for n in (2, 3) if kind.endswith(f"{n}d")), 2)
            if "Sync" in kind:
                more["synchronized"] = True
        return more, rank

    @staticmethod
    def kernels(layer):
        """Functions from and to Keras's kernels, for those that PyTorch has."""
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

    def write(self, tensor, value):
        torch = _imported("torch", "torch")
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(value)))


class _NNX:
    """Objects of NNX."""

    library, says_settings = "Flax", True
    gamma, beta, mean, variance = "scale", "bias", "mean", "var"
    kernel = "kernel"
    defaults = MappingProxyType({"epsilon": 1e-5, "momentum": 0.99})
    has = "unbiased_moving_variance=False"

    def __init__(self, source, given):
        self.source = source
        if given:
            raise _says_itself(given)

    def _reach(self, name):
        found = self.source
        for key in name.split(".") if name else ():
            try:
                found = found[int(key)] if key.isdigit() else getattr(found, key)
            except (AttributeError, IndexError, TypeError):
                return None
        return found

    def leaves(self, name):
        found = self._reach(name)
        kinds = (self.gamma, self.beta, self.mean, self.variance, self.kernel)
        pairs = {leaf: getattr(found, leaf, None) for leaf in kinds}
        # Numbers and functions of these names aren't weights.
        return {k: v for k, v in pairs.items() if hasattr(v, "shape")}

    def check(self, name, layer):
        """Checks that an object is of the layer's kind."""
        nnx, module = _imported("flax.nnx", "flax"), self._reach(name)
        if layer is None or _is_norm(layer):
            kinds = (nnx.BatchNorm,)
        else:
            kinds = (nnx.Linear,) if isinstance(layer, layers.Dense) else (nnx.Conv,)
        _raise_unless_of_kind(self, name, module, kinds)

    def settings(self, name):
        module = self._reach(name)
        return _Settings(module.epsilon, module.momentum, False)

    def arguments(self, name):
        module = self._reach(name)
        return _flax_placement(module), 2

    @staticmethod
    def kernels(layer):
        if isinstance(layer, _TRANSPOSED):
            # Flax's flip the kernel, or don't, by an argument.
            raise _unsupported(layer, "Flax")
        if isinstance(layer, _DEPTHWISE):
            shape = tuple(layer.kernel.shape)
            return (
                lambda kernel: kernel.reshape(*shape[:-2], 1, -1),
                lambda weight: weight.reshape(shape),
            )
        return np.asarray, np.asarray

    def write(self, variable, value):
        variable[...] = _imported("jax.numpy", "jax").asarray(value)


class _Linen(_NNX):
    """Variables of linen, and a single layer's module."""

    def __init__(self, variables, given, module=None):
        self.variables, self.module = variables, module
        self.says_settings = module is not None
        self.given = {**self.defaults, **given}
        if given and module is not None:
            raise _says_itself(given)

    def leaves(self, name):
        found = {}
        for tree in (self.variables.get(k, {}) for k in ("params", "batch_stats")):
            for key in name.split(".") if name else ():
                tree = tree.get(key, {})
            found.update({k: v for k, v in tree.items() if not isinstance(v, Mapping)})
        return found

    def check(self, name, layer):
        if self.module is not None:
            kinds = (_imported("flax.linen", "flax").BatchNorm,)
            _raise_unless_of_kind(self, name, self.module, kinds)

    def settings(self, name):
        if self.module is not None:
            return _Settings(self.module.epsilon, self.module.momentum, False)
        return _Settings(self.given["epsilon"], self.given["momentum"], False)

    def arguments(self, name):
        return {} if self.module is None else _flax_placement(self.module), 2

    def write(self, array, value):
        array[...] = value


def _arrays(tree):
    """A copy of nested variables, as arrays that can be written to."""
    return {
        key: _arrays(value) if isinstance(value, Mapping) else np.array(value)
        for key, value in tree.items()
    }


def _is_norm(layer):
    return isinstance(layer, keras.layers.BatchNormalization)


def _raise_unless_of_kind(other, name, module, kinds):
    if not isinstance(module, kinds):
        raise ValueError(
            f"{other.library}'s module is of another kind than Keras's layer. "
            f"Received: {name!r} of {type(module).__name__}. It has to be of "
            f"{' or '.join(kind.__name__ for kind in kinds)}."
        )


def _torch(source, arguments):
    if isinstance(source, keras.Layer) or not (
        hasattr(source, "get_submodule") or isinstance(source, Mapping)
    ):
        raise ValueError(
            "PyTorch's side has to be a torch.nn.Module, or a state dictionary. "
            f"Received: {source!r}. Pass Keras's side as the other argument."
        )
    return _Torch(source, _given(arguments))


def _flax(source, arguments):
    given = _given(arguments)
    if isinstance(source, Mapping):
        return _Linen(source, given)
    if isinstance(source, tuple) and len(source) == 2:
        return _Linen(source[1], given, source[0])
    return _NNX(source, given)


def _given(arguments):
    return {k: v for k, v in arguments.items() if k in ("epsilon", "momentum")}


def _says_itself(given):
    return ValueError(
        "The source says its epsilon and momentum itself. "
        f"Received: {', '.join(f'{k}={v}' for k, v in given.items())}. Leave them out."
    )


def _flax_placement(module):
    """Arguments of a new layer that Flax's says."""
    if module.axis_index_groups is not None:
        raise ValueError(
            "Groups of replicas can't be taken from Flax. "
            f"Received: axis_index_groups={module.axis_index_groups}. Make the layer "
            "without them, and pass `synchronized=` the size of the groups."
        )
    more = {"axis": module.axis}
    if module.axis_name is not None:
        more.update(axis_name=module.axis_name, synchronized=True)
    return more


def _flax_arguments(layer):
    return {
        "axis": layer.axis,
        "momentum": layer.momentum,
        "epsilon": layer.epsilon,
        "use_bias": layer.center,
        "use_scale": layer.scale,
        "axis_name": getattr(layer, "axis_name", None),
    }


def _read(other, target, names, arguments):
    """Sets the weights of a new layer, or of a target."""
    if target is None:
        if names is not None:
            raise ValueError(
                "Names need a model to name layers of. "
                f"Received: names={names!r} without a target. Pass the Keras model."
            )
        target = _new_keras(other, arguments)
        _enter_keras(other, [("", target)])
        return target
    unknown = set(arguments) - {"epsilon", "momentum"}
    if unknown:
        raise ValueError(
            "A target has its arguments already. "
            f"Received: {sorted(unknown)}. Pass them to `keras_bnx.convert`."
        )
    _enter_keras(other, _pairs(target, names))
    return target


def _new_keras(other, arguments):
    other.check("", None)
    values = other.leaves("")
    if other.mean not in values or other.variance not in values:
        raise ValueError(
            "There are no moving statistics to take. "
            f"Received: {sorted(values)}. A batch normalization has {other.mean!r} and "
            f"{other.variance!r}; for a whole model pass `target` and `names`."
        )
    settings = other.settings("")
    more, rank = other.arguments("")
    mean = _to_numpy(values[other.mean])
    config = {
        "epsilon": settings.epsilon,
        "momentum": settings.momentum,
        "unbiased_moving_variance": settings.unbiased,
        "center": other.beta in values,
        "scale": other.gamma in values,
        "dtype": "float64" if mean.dtype == np.float64 else None,
        **more,
        **arguments,
    }
    layer = BatchNormalization(**config)
    axes = np.atleast_1d(layer.axis)
    if len(axes) > 1:
        raise ValueError(
            "A single channel axis can be exchanged. "
            f"Received: axis={layer.axis}. Choose one."
        )
    rank = max(rank, 1 + int(axes[0]), -int(axes[0]))
    shape = [None] * rank
    shape[axes[0]] = mean.size
    layer.build(tuple(shape))
    return layer


def _enter_keras(other, pairs):
    """Compares all first, then sets the weights, and reads them again."""
    found, counts = [], []
    for name, layer in pairs:
        values = other.leaves(name)
        if not values:
            raise _unknown(other, name)
        other.check(name, layer)
        count = values.pop("num_batches_tracked", None)
        if _is_norm(layer):
            _raise_if_different(other, name, layer)
            counts.append((layer, 0 if count is None else int(count)))
        parts = _parts(layer, other)
        _raise_unless_same_leaves(other, name, layer, parts, values)
        for part in parts:
            array = part.enter(_to_numpy(values[part.leaf]))
            _raise_unless_it_fits(name, part, array)
            # A copy: JAX may keep the array itself, which the source goes on using.
            found.append((part.variable, np.array(array, str(part.variable.dtype))))
    touched = [variable for _, layer in pairs for variable in layer.variables]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in touched]
    try:
        for variable, array in found:
            variable.assign(array)
        for layer, count in counts:
            _continue(layer, count)
        for variable, array in found:
            if not np.array_equal(
                ops.convert_to_numpy(variable), array, equal_nan=True
            ):
                raise _unequal(variable.path)
    except Exception:
        for variable, value in zip(touched, before, strict=True):
            variable.assign(value)
        raise


def _continue(layer, count):
    """Lets a layer's options start from its new statistics, its counts from one."""
    if not isinstance(layer, BatchNormalization):
        return
    plain = [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance]
    values = [ops.copy(weight.value) for weight in plain if weight is not None]
    layer.load_own_variables({f"{i}": value for i, value in enumerate(values)})
    if layer.momentum is None:
        for updates in (layer.history.mean_updates, layer.history.scale_updates):
            updates.assign(ops.full_like(updates.value, count))


def _write(other, pairs, target):
    """Sets the weights of a target, all or none."""
    found = []
    for name, values, layer in _leave_keras(pairs, other):
        tensors = other.leaves(name)
        if not tensors:
            raise _unknown(other, name)
        other.check(name, layer)
        if _is_norm(layer):
            if layer.momentum is not None or "num_batches_tracked" not in tensors:
                # It means nothing then. Theirs goes on counting.
                values.pop("num_batches_tracked", None)
                tensors.pop("num_batches_tracked", None)
            if other.says_settings:
                _raise_if_different(other, name, layer)
        if set(tensors) != set(values):
            raise _other_leaves(other, name, layer, tensors, values)
        for leaf, value in values.items():
            if tuple(tensors[leaf].shape) != value.shape:
                raise ValueError(
                    f"{other.library}'s weight has another shape. Received: "
                    f"{name}.{leaf} of {tuple(tensors[leaf].shape)} for {layer.name!r} "
                    f"with {value.shape}. Map layers of the same size."
                )
            kept = value.astype(_to_numpy(tensors[leaf]).dtype)
            if not np.array_equal(kept, value, equal_nan=True):
                raise _rounded(f"{name}.{leaf}", kept.dtype)
            found.append((tensors[leaf], value, np.array(_to_numpy(tensors[leaf]))))
    try:
        for tensor, value, _ in found:
            other.write(tensor, value)
        for tensor, value, _ in found:
            if not np.array_equal(_to_numpy(tensor), value, equal_nan=True):
                raise _unequal(type(tensor).__name__)
    except Exception:
        for tensor, _, before in found:
            other.write(tensor, before)
        raise
    return target


def _leave_keras(pairs, other):
    """Yields each name, arrays by their leaves, and the layer."""
    for name, layer in pairs:
        values = {
            part.leaf: np.array(part.leave(_array(part.variable)))
            for part in _parts(layer, other)
        }
        if _is_norm(layer):
            _raise_if_it_lacks(other, layer)
            if other.library == "PyTorch":
                values["num_batches_tracked"] = np.array(_count(layer), "int64")
        yield name, values, layer


def _raise_if_it_lacks(other, layer):
    if lacks := _lacks(layer, other):
        raise ValueError(
            f"{other.library}'s batch normalization can't express the layer. Received: "
            f"{layer.name!r} with {', '.join(lacks)}. Change it by "
            "`keras_bnx.convert(model, argument=value)` first; "
            f"{other.library}'s has {other.has}."
        )


def _lacks(layer, other):
    """What another library's layer lacks of one of Keras's or ours."""
    on = {
        name: getattr(layer, name, None)
        for name in ("renorm", "virtual_batch_size", "debias_moving_statistics")
    }
    found = [f"{name}={value}" for name, value in on.items() if value]
    unbiased = _settings(layer).unbiased
    if unbiased != (other.library == "PyTorch"):
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
    if other.library == "Flax" and layer.momentum is None:
        found.append("momentum=None")
    if other.library == "PyTorch" and layer.center and not layer.scale:
        found.append("scale=False and center=True")
    return found


def _settings(layer):
    unbiased = getattr(layer, "unbiased_moving_variance", False)
    return _Settings(layer.epsilon, layer.momentum, unbiased)


def _count(layer):
    history = getattr(layer, "history", None)
    if layer.momentum is not None or history is None:
        return 0
    counts = {
        float(count)
        for updates in (history.mean_updates, history.scale_updates)
        for count in ops.convert_to_numpy(updates)
    }
    if len(counts) > 1:
        raise ValueError(
            "PyTorch counts batches for all channels together. "
            f"Received: {layer.name!r}, whose channels have seen {sorted(counts)} "
            "batches. Pass a number as its momentum, by `keras_bnx.convert`."
        )
    return int(counts.pop())


def _parts(layer, other):
    if not layer.built:
        raise ValueError(
            "A layer has no weights before it is built. "
            f"Received: {layer.name!r}. Call the model, or build it, first."
        )
    if _is_norm(layer):
        leaves = {
            other.gamma: layer.gamma,
            other.beta: layer.beta,
            other.mean: layer.moving_mean,
            other.variance: layer.moving_variance,
        }
        return [_Part(leaf, v) for leaf, v in leaves.items() if v is not None]
    if not isinstance(layer, (*_KERNELS, *_DEPTHWISE, *_TRANSPOSED)):
        raise _unsupported(layer, other.library)
    if isinstance(layer, _TRANSPOSED) and getattr(layer, "groups", 1) != 1:
        raise _unsupported(layer, other.library)
    leave, enter = other.kernels(layer)
    parts = [_Part(other.kernel, layer.kernel, leave, enter)]
    if layer.bias is not None:
        parts.append(_Part("bias", layer.bias))
    return parts


def _pairs(model, names):
    """Names on the other side and Keras layers, each found and of one side only."""
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "Keras's side has to be a layer or model. "
            f"Received: {model!r}. Pass the other side as the other argument."
        )
    if names is None:
        if _is_norm(model):
            return [("", model)]
        raise ValueError(
            "For a whole model the layers have to be named. "
            f"Received: {model.name!r} and names=None. Pass a dictionary of names."
        )
    by_name = {}
    for layer in walk(model):
        by_name.setdefault(layer.name, []).append(layer)
    pairs = []
    for name, layer in names.items():
        found = [layer] if isinstance(layer, keras.Layer) else by_name.get(layer, [])
        if len(found) != 1:
            raise ValueError(
                f"The model has {len(found) or 'no'} layers of this name. "
                f"Received: {layer!r} for {name!r}. Correct the name, or pass the "
                "layer itself."
            )
        pairs.append((name, found[0]))
    twice = {a.name for i, (_, a) in enumerate(pairs) for _, b in pairs[:i] if a is b}
    if twice:
        raise ValueError(
            "A layer can't have the weights of two. "
            f"Received: {sorted(twice)} twice. Name each layer once."
        )
    return pairs


def _new_torch(layer):
    _raise_if_it_lacks(_Torch, layer)
    nn = _imported("torch", "torch").nn
    shape = (layer.get_build_config() or {}).get("input_shape", ())
    by_rank = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    kind = by_rank.get(len(shape), nn.BatchNorm1d)
    module = (nn.SyncBatchNorm if layer.synchronized else kind)(
        layer.moving_mean.shape[0],
        eps=layer.epsilon,
        momentum=None if layer.momentum is None else _complement(layer.momentum),
        affine=layer.center or layer.scale,
    )
    if not layer.center:
        module.bias = None
    return module.double() if layer.variable_dtype == "float64" else module


def _new_nnx(layer):
    _raise_if_it_lacks(_NNX, layer)
    nnx = _imported("flax.nnx", "flax")
    size = layer.moving_mean.shape[0]
    return nnx.BatchNorm(size, rngs=nnx.Rngs(0), **_flax_arguments(layer))


def _complement(momentum):
    """1 minus a momentum: PyTorch's from Keras's, or back."""
    # Without the subtraction's rounding of 1e-16, so that 0.1 comes back as 0.1.
    return round(1.0 - momentum, 15)


def _raise_if_different(other, name, layer):
    theirs, ours = other.settings(name), _settings(layer)
    found = theirs.differences(ours)
    if found:
        raise ValueError(
            f"{other.library}'s batch normalization and Keras's differ. Received: "
            f"{name!r} and {layer.name!r} with {', '.join(found)}. Make Keras's by "
            f"`keras_bnx.convert(model, epsilon={theirs.epsilon}, "
            f"momentum={theirs.momentum}, unbiased_moving_variance={theirs.unbiased})`,"
            " or say what the other side has, where it doesn't itself."
        )


def _raise_unless_same_leaves(other, name, layer, parts, values):
    if {part.leaf for part in parts} != set(values):
        raise _other_leaves(other, name, layer, values, [part.leaf for part in parts])


def _unknown(other, name):
    return ValueError(
        f"{other.library} has no weights of this name. "
        f"Received: {name!r}. Correct the key of `names`."
    )


def _other_leaves(other, name, layer, theirs, ours):
    return ValueError(
        f"{other.library} and Keras have other weights. Received: {name!r} with "
        f"{sorted(theirs)} for {layer.name!r}, which takes {sorted(ours)}. Map layers "
        "of the same kind, and give both a bias (`center`, `scale`), or none."
    )


def _raise_unless_it_fits(name, part, array):
    variable = part.variable
    if tuple(variable.shape) != array.shape:
        raise ValueError(
            f"A weight has another shape. Received: {name}.{part.leaf}, in Keras's "
            f"order {array.shape}, for {variable.path!r} of {tuple(variable.shape)}. "
            "Map layers of the same size."
        )
    if str(variable.dtype) == "bfloat16":
        raise _rounded(f"{name}.{part.leaf}", variable.dtype)
    kept = array.astype(str(variable.dtype))
    if not np.array_equal(kept, array, equal_nan=True):
        raise _rounded(f"{name}.{part.leaf}", variable.dtype)


def _rounded(name, dtype):
    return ValueError(
        "A weight would be rounded. "
        f"Received: {name} for weights of {dtype}. Make the other layer with a wider "
        "`dtype`, or round the weights yourself before."
    )


def _unequal(name):
    return ValueError(
        "What was set isn't what is read afterwards, and all was put back. "
        f"Received: {name}. Look for a constraint or a layer that shares the weight."
    )


def _unsupported(layer, library):
    return ValueError(
        f"Weights of this layer can't be exchanged with {library}. "
        f"Received: {layer.name!r} of {type(layer).__name__}. Leave it out of `names`, "
        "and set its weights by `layer.set_weights`."
    )


def _check_kind(kind, kinds):
    if kind not in kinds:
        raise ValueError(
            "There is no such kind. "
            f"Received: kind={kind!r}. Choose one of {list(kinds)}."
        )


def _collection(leaf):
    return "batch_stats" if leaf in ("mean", "var") else "params"


def _imported(name, package):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This needs {package}, which isn't installed. Received: {error}. "
            f"Install {package}, or ask for arrays by `kind`."
        ) from error


def _array(variable):
    """The value of a Keras variable; NumPy has no bfloat16."""
    narrow = str(variable.dtype) in ("bfloat16", "float16")
    value = ops.cast(variable.value, "float32") if narrow else variable.value
    return ops.convert_to_numpy(value)


def _to_numpy(value):
    """An array; of 16 bits as float32, which holds them exactly."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) in ("torch.bfloat16", "torch.float16"):
            value = value.float()
        return value.numpy()
    # Variables of NNX are read by an index.
    value = np.asarray(value[...] if hasattr(value, "set_metadata") else value)
    return value.astype("float32") if value.dtype.itemsize == 2 else value
