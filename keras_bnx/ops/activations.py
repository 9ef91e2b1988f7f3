"""Activations that a normalization computes with itself, and how they are told."""

import functools

import keras
from keras import layers

from keras_bnx.backends.contract import Activation

# Each is elementwise and has no weights. Their arguments, with `keras.activations`'
# own defaults.
_DEFAULTS = {
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": False},
    "hard_sigmoid": {},
    "hard_silu": {},
    "leaky_relu": {"negative_slope": 0.2},
    "mish": {},
    "relu": {},
    "relu6": {},
    "sigmoid": {},
    "silu": {},
    "softplus": {},
    "squareplus": {"b": 4},
    "tanh": {},
}
_FUNCTIONS = [(getattr(keras.activations, name), name) for name in _DEFAULTS]
_LAYERS = {
    layers.ELU: (keras.activations.elu, ["alpha"]),
    layers.LeakyReLU: (keras.activations.leaky_relu, ["negative_slope"]),
    layers.ReLU: (keras.activations.relu, ["negative_slope", "max_value", "threshold"]),
}


def recognize(activation):
    """Tells which activation a function or a layer is.

    Args:
        activation: a function of `keras.activations`, with arguments where it is a
            `functools.partial`; or a layer: `Activation`, `ReLU`, `LeakyReLU`, `ELU`.

    Returns:
        `Activation`, or `None` for any other callable.
    """
    if activation is keras.activations.linear:
        return None  # what most layers have, and each call asks
    if type(activation) is layers.Activation:
        return recognize(activation.activation)
    function, arguments = activation, {}
    if type(activation) in _LAYERS:
        function, names = _LAYERS[type(activation)]
        arguments = {name: getattr(activation, name) for name in names}
    elif isinstance(activation, functools.partial) and not activation.args:
        function, arguments = activation.func, activation.keywords
    # Not looked up by value: a callable object needn't have a hash.
    name = next((n for f, n in _FUNCTIONS if f is function), None)
    if name == "relu":
        name, arguments = _relu(arguments)
    if name is None or not arguments.keys() <= _DEFAULTS[name].keys():
        return None
    return Activation(name, tuple({**_DEFAULTS[name], **arguments}.items()))


def _relu(arguments):
    """Keras's `relu` is several in one: those that have a name are told by it."""
    arguments = {k: v for k, v in arguments.items() if v}
    if arguments.keys() == {"negative_slope"}:
        return "leaky_relu", arguments
    if arguments == {"max_value": 6}:
        return "relu6", {}
    return "relu", arguments
