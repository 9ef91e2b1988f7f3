"""Exchange with Flax's own layers, NNX and linen, which are the oracle."""

import jax
import keras
import numpy as np
import pytest
from flax import linen, nnx
from frameworks import to_numpy
from keras import layers

from keras_bnx import BatchNormalization, interop

SETTINGS = {"epsilon": 1e-4, "momentum": 0.9}


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype("float32")


@pytest.mark.parametrize("scale", [True, False])
def test_objects_of_nnx_become_layers_and_come_back(scale):
    module = nnx.BatchNorm(3, use_scale=scale, **SETTINGS, rngs=nnx.Rngs(0))
    module.bias[...] = data(3)
    module(data(8, 3))
    layer = interop.from_flax(module)
    back = interop.to_flax(layer)

    assert (layer.epsilon, layer.momentum) == (1e-4, 0.9)
    assert (back.epsilon, back.momentum) == (1e-4, 0.9)
    assert layer.scale == back.use_scale == scale
    for leaf in ("mean", "var", "bias"):
        value = getattr(module, leaf)[...]
        np.testing.assert_array_equal(getattr(back, leaf)[...], value)
    for seed in range(3):
        x = data(8, 3, seed=seed)
        y = to_numpy(layer(x, training=True))
        for other in (module, back):
            np.testing.assert_allclose(other(x), y, rtol=1e-5, atol=1e-5)
            for leaf, weight in (
                ("mean", layer.moving_mean),
                ("var", layer.moving_variance),
            ):
                value = getattr(other, leaf)[...]
                np.testing.assert_allclose(to_numpy(weight), value, rtol=1e-5)


def test_a_pair_of_linen_becomes_a_layer_and_comes_back():
    module, x = linen.BatchNorm(**SETTINGS, use_bias=False), data(8, 3)
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    y, new = module.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    layer = interop.from_flax((module, variables))
    np.testing.assert_allclose(to_numpy(layer(x, training=True)), y, atol=1e-5)
    again, values = interop.to_flax(layer, kind="linen")

    assert not layer.center and layer.momentum == 0.9
    assert (again.epsilon, again.momentum, again.use_bias) == (1e-4, 0.9, False)
    for leaf, value in new["batch_stats"].items():
        np.testing.assert_allclose(values["batch_stats"][leaf], value, rtol=1e-6)
    y = again.apply(values, x, use_running_average=True)
    np.testing.assert_allclose(to_numpy(layer(x)), y, rtol=1e-5, atol=1e-5)
    # Into the pair that is there: a copy, whose module says what it does.
    kept, written = interop.to_flax(layer, (module, variables))
    assert kept is module and not variables["batch_stats"]["mean"].any()
    y = kept.apply(written, x, use_running_average=True)
    np.testing.assert_allclose(to_numpy(layer(x)), y, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="momentum"):
        interop.to_flax(layer, (linen.BatchNorm(momentum=0.5), variables))


def test_replicas_travel():
    module = nnx.BatchNorm(3, axis_name="batch", rngs=nnx.Rngs(0))
    layer = interop.from_flax(module)
    assert layer.synchronized is True and layer.axis_name == "batch"
    assert interop.to_flax(layer).axis_name == "batch"
    module.axis_index_groups = [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="axis_index_groups"):
        interop.from_flax(module)


class Block(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, **SETTINGS, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Network(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.blocks = nnx.List([Block(3, 4, rngs), Block(4, 6, rngs)])
        self.deep = nnx.Conv(6, 12, (3, 3), feature_group_count=6, rngs=rngs)
        self.head = nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.deep(x).mean((1, 2)))


NAMES = {
    "blocks.0.conv": "conv0",
    "blocks.0.norm": "norm0",
    "blocks.1.conv": "conv1",
    "blocks.1.norm": "norm1",
    "deep": "deep",
    "head": "head",
}


def keras_network():
    model = keras.Sequential([keras.Input((6, 6, 3))])
    for i, filters in enumerate([4, 6]):
        name = f"conv{i}"
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name))
        model.add(BatchNormalization(name=f"norm{i}", **SETTINGS))
        model.add(layers.ReLU())
    model.add(
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")
    )
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(2, name="head"))
    return model


def test_a_network_agrees_after_exchange_and_in_training():
    there, x = Network(), data(8, 6, 6, 3)
    call = nnx.jit(lambda module, x: module(x))
    call(there, x)
    model = interop.from_flax(there, keras_network(), NAMES)
    np.testing.assert_allclose(
        to_numpy(model(x, training=True)), call(there, x), rtol=1e-5, atol=1e-5
    )
    back = interop.to_flax(model, Network(seed=1), NAMES)
    y = to_numpy(model(x))
    for module in (there, back):
        module.eval()
        np.testing.assert_allclose(call(module, x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "settings", "match"),
    [
        ({"blocks.0": "norm0"}, {}, "no weights.*blocks.0"),
        ({"blocks.2.norm": "norm0"}, {}, "no weights.*blocks.2"),
        ({"head": "conv1"}, {}, "another kind.*head"),
        ({"blocks.1.norm": "norm0"}, {}, r"shape.*\(6,\)"),
        ({"blocks.1.norm": "norm1"}, {"momentum": 0.5}, "momentum 0.5 and 0.9"),
        ({"blocks.1.norm": "norm1"}, {"epsilon": 0.5}, "epsilon 0.5 and 0.0001"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(names, settings, match):
    there, model = Network(), keras_network()
    for name, value in settings.items():
        setattr(there.blocks[1].norm, name, value)
    there.blocks[0].conv.kernel[...] += 1.0
    before = [to_numpy(w) for w in model.weights]
    kernel = np.array(there.blocks[0].conv.kernel[...])
    with pytest.raises(ValueError, match=match):
        interop.from_flax(there, model, {"blocks.0.conv": model.layers[0], **names})
    with pytest.raises(ValueError, match=match):
        interop.to_flax(model, there, {"blocks.0.conv": model.layers[0], **names})
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(b), a)
    np.testing.assert_array_equal(there.blocks[0].conv.kernel[...], kernel)
