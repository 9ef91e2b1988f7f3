"""Exchange of weights with PyTorch and Flax: what travels is equal at the other end.

The public functions, and the trip there and back: all is compared first, then set, then
read again. What differs by library is in `libraries`.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, overload

import keras
import numpy as np
from keras import ops

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.libraries import NNX, Linen, Settings, Torch, flax, is_norm
from keras_bnx.tools.models import walk

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
    return _read(Torch, source, target, names, arguments)


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
        target = Torch.made(source)
    if target is None:
        return Torch.joined({name: _leave(layer, Torch) for name, layer in pairs})
    if isinstance(target, Mapping):
        raise ValueError(
            "A target has to be a torch.nn.Module. Received: a dictionary. Leave "
            "`target` out, and take the dictionary that is returned."
        )
    _write(Torch(target, {}), pairs)
    return target


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
    return _read(flax, source, target, names, arguments)


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
            `momentum` have to be the source's already; or variables of linen, alone or
            in a pair with their module, of which a copy with other weights is returned.
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
        target = NNX.made(source)
    if target is None:
        variables = Linen.joined({name: _leave(layer, Linen) for name, layer in pairs})
        alone = names is not None or kind == "variables"
        return variables if alone else (Linen.made(source), variables)
    if isinstance(target, Mapping):
        target = Linen.copied(target)
    elif isinstance(target, tuple) and len(target) == 2:
        target = target[0], Linen.copied(target[1])
    _write(flax(target, {}), pairs)
    return target


def _read(library, source, target, names, arguments):
    """Sets the weights of a new layer, or of a target."""
    given, more = {}, {}
    for name, value in arguments.items():
        (given if name in ("epsilon", "momentum") else more)[name] = value
    other = library(source, given)
    if target is None:
        if names is not None:
            raise ValueError(
                "Names need a model to name layers of. "
                f"Received: names={names!r} without a target. Pass the Keras model."
            )
        target = _new_layer(other, more)
        pairs = [("", target)]
    else:
        if more:
            raise ValueError(
                "A target has its arguments already. "
                f"Received: {sorted(more)}. Pass them to `keras_bnx.convert`."
            )
        pairs = _pairs(target, names)
    _enter(other, pairs)
    return target


def _new_layer(other, more):
    """A layer of the other side's settings, whose weights aren't set yet."""
    other.check("", None)
    values = other.leaves("")
    if other.mean not in values or other.variance not in values:
        raise ValueError(
            "There are no moving statistics to take. "
            f"Received: {sorted(values)}. A batch normalization has {other.mean!r} and "
            f"{other.variance!r}; for a whole model pass `target` and `names`."
        )
    settings = other.settings("")
    arguments, rank = other.arguments()
    mean = other.read(values[other.mean])
    config = {
        "epsilon": settings.epsilon,
        "momentum": settings.momentum,
        "unbiased_moving_variance": settings.unbiased,
        "center": other.beta in values,
        "scale": other.gamma in values,
        "dtype": "float64" if mean.dtype == np.float64 else None,
        **arguments,
        **more,
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


def _enter(other, pairs):
    """Sets weights of Keras's side, all or none."""
    found, counts = [], []
    for name, layer in pairs:
        parts, weights = other.parts(layer), _weights(other, name, layer)
        count = weights.pop(other.count, None)
        if is_norm(layer):
            _raise_if_different(other, name, layer)
            counts.append((layer, 0 if count is None else int(count)))
        ours = [part.leaf for part in parts]
        _raise_unless_same_leaves(other, name, layer, weights, ours)
        for leaf, variable, _, enter in parts:
            array, where = enter(other.read(weights[leaf])), f"{name}.{leaf}"
            if tuple(variable.shape) != array.shape:
                raise ValueError(
                    f"A weight has another shape. Received: {where}, in Keras's order "
                    f"{array.shape}, for {variable.path!r} of {tuple(variable.shape)}. "
                    "Map layers of the same size."
                )
            kept = _unrounded(where, array, str(variable.dtype))
            found.append((variable.path, variable, kept))
    touched = [variable for _, layer in pairs for variable in layer.variables]
    read, write = ops.convert_to_numpy, keras.Variable.assign
    with _all_or_none(found, touched, read, write):
        for _, variable, array in found:
            variable.assign(array)
        for layer, count in counts:
            _continue(layer, count)


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


def _write(other, pairs):
    """Sets weights of the other side, all or none."""
    found = []
    for name, layer in pairs:
        values = _leave(layer, other)
        weights = _weights(other, name, layer)
        if is_norm(layer):
            if layer.momentum is not None or other.count not in weights:
                # It means nothing then. Theirs goes on counting.
                values.pop(other.count, None)
                weights.pop(other.count, None)
            # Arrays alone don't say them.
            if other.module is not None:
                _raise_if_different(other, name, layer)
        _raise_unless_same_leaves(other, name, layer, weights, values)
        for leaf, value in values.items():
            weight, where = weights[leaf], f"{name}.{leaf}"
            if tuple(weight.shape) != value.shape:
                raise ValueError(
                    f"{other.library}'s weight has another shape. Received: {where} of "
                    f"{tuple(weight.shape)} for {layer.name!r} with {value.shape}. Map "
                    "layers of the same size."
                )
            kept = _unrounded(where, value, str(other.read(weight).dtype))
            found.append((where, weight, kept))
    touched = [weight for _, weight, _ in found]
    with _all_or_none(found, touched, other.read, other.write):
        for _, weight, value in found:
            other.write(weight, value)


def _leave(layer, other):
    """Arrays of a layer's weights, by the other side's names."""
    values = {
        part.leaf: np.array(part.leave(_array(part.variable)))
        for part in other.parts(layer)
    }
    if is_norm(layer):
        other.raise_if_it_lacks(layer)
        if other.count:
            values[other.count] = np.array(_count(layer), "int64")
    return values


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


def _pairs(model, names):
    """Names on the other side and Keras layers, each found and of one side only."""
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "Keras's side has to be a layer or model. "
            f"Received: {model!r}. Pass the other side as the other argument."
        )
    if names is None:
        if is_norm(model):
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


def _weights(other, name, layer):
    """The weights of a name, which have to be of the layer's kind."""
    weights = other.leaves(name)
    if not weights:
        raise ValueError(
            f"{other.library} has no weights of this name. "
            f"Received: {name!r}. Correct the key of `names`."
        )
    other.check(name, layer)
    return weights


def _raise_if_different(other, name, layer):
    theirs, ours = other.settings(name), Settings.of(layer)
    found = theirs.differences(ours)
    if found:
        raise ValueError(
            f"{other.library}'s batch normalization and Keras's differ. Received: "
            f"{name!r} and {layer.name!r} with {', '.join(found)}. Make Keras's by "
            f"`keras_bnx.convert(model, epsilon={theirs.epsilon}, "
            f"momentum={theirs.momentum}, unbiased_moving_variance={theirs.unbiased})`,"
            " or say what the other side has, where it doesn't itself."
        )


def _raise_unless_same_leaves(other, name, layer, theirs, ours):
    if set(theirs) != set(ours):
        raise ValueError(
            f"{other.library} and Keras have other weights. Received: {name!r} with "
            f"{sorted(theirs)} for {layer.name!r}, which takes {sorted(ours)}. Map "
            "layers of the same kind, and give both a bias (`center`, `scale`), or "
            "none."
        )


def _unrounded(where, array, dtype):
    """An array in the dtype of a weight, which has to hold it exactly.

    It is a copy: JAX may keep the array itself, which the source goes on using.
    """
    # NumPy has no bfloat16.
    kept = None if dtype == "bfloat16" else array.astype(dtype)
    if kept is None or not np.array_equal(kept, array, equal_nan=True):
        raise ValueError(
            "A weight would be rounded. "
            f"Received: {where} for weights of {dtype}. Make the other layer with a "
            "wider `dtype`, or round the weights yourself before."
        )
    return kept


@contextlib.contextmanager
def _all_or_none(found, touched, read, write):
    """Reads what was set, and puts back all that was touched if anything failed."""
    before = [np.array(read(place)) for place in touched]
    try:
        yield
        for where, place, value in found:
            if not np.array_equal(read(place), value, equal_nan=True):
                raise ValueError(
                    "What was set isn't what is read afterwards, and all was put back. "
                    f"Received: {where}. Look for a constraint or a layer that shares "
                    "the weight."
                )
    except Exception:
        for place, value in zip(touched, before, strict=True):
            write(place, value)
        raise


def _check_kind(kind, kinds):
    if kind not in kinds:
        raise ValueError(
            "There is no such kind. "
            f"Received: kind={kind!r}. Choose one of {list(kinds)}."
        )


def _array(variable):
    """The value of a Keras variable; NumPy has no bfloat16."""
    narrow = str(variable.dtype) in ("bfloat16", "float16")
    value = ops.cast(variable.value, "float32") if narrow else variable.value
    return ops.convert_to_numpy(value)
