"""Which activation a function or a layer is."""

import functools

import keras
import pytest
from keras import activations, layers

from keras_bnx.ops.activations import recognize
from keras_bnx.reference import ACTIVATIONS


@pytest.mark.parametrize(
    ("activation", "name", "arguments"),
    [
        (activations.silu, "silu", {}),
        (keras.activations.get("swish"), "silu", {}),
        (keras.activations.get("hard_swish"), "hard_silu", {}),
        (activations.gelu, "gelu", {"approximate": False}),
        (
            functools.partial(activations.gelu, approximate=True),
            "gelu",
            {"approximate": True},
        ),
        (functools.partial(activations.relu, max_value=6), "relu6", {}),
        (layers.Activation("tanh"), "tanh", {}),
        (layers.Activation(layers.ReLU()), "relu", {}),
        (layers.ReLU(), "relu", {}),
        (layers.ReLU(6.0), "relu6", {}),
        (layers.ReLU(negative_slope=0.3), "leaky_relu", {"negative_slope": 0.3}),
        (layers.LeakyReLU(0.1), "leaky_relu", {"negative_slope": 0.1}),
        (layers.ELU(0.5), "elu", {"alpha": 0.5}),
    ],
)
def test_the_same_activation_has_one_name(activation, name, arguments):
    assert recognize(activation) == (name, tuple(arguments.items()))


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


class Special(layers.ReLU):
    """May compute something else."""


@pytest.mark.parametrize(
    "activation",
    [
        activations.linear,
        activations.softmax,
        layers.Activation("softmax"),
        layers.ReLU(3.0),
        layers.ReLU(threshold=1.0),
        layers.ReLU(6.0, negative_slope=0.1),
        layers.PReLU(),
        functools.partial(activations.elu, unheard_of=1),
        Special(),
        Unhashable(),
        lambda x: x,
    ],
)
def test_others_are_not_taken_for_one(activation):
    assert recognize(activation) is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_it_computes_is_keras_function_of_the_name(name):
    x = keras.ops.convert_to_tensor([-7.0, -1.0, 0.5, 3.5, 8.0])
    expected = keras.ops.convert_to_numpy(getattr(activations, name)(x))
    found = keras.ops.convert_to_numpy(recognize(getattr(activations, name))(x))
    assert (found == expected).all()
