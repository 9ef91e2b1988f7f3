"""Exchange of weights as arrays: state dictionaries, and variables of linen.

What needs the other frameworks is in `test_torch_interop.py`, `test_jax_interop.py`.
"""

import doctest
import sys

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy
from keras import layers

from keras_bnx import BatchNormalization, convert, interop

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.uniform(0.5, 1.5, shape).astype("float32")


def state(size=3, count=5):
    return {
        "weight": array(size),
        "bias": array(size),
        "running_mean": array(size),
        "running_var": array(size),
        "num_batches_tracked": np.array(count),
    }


@pytest.mark.parametrize("name", interop.__all__)
def test_docstring_examples_print_what_they_say(name):
    tests = doctest.DocTestFinder().find(getattr(interop, name), name)
    assert len(tests) == 1 and tests[0].examples
    assert doctest.DocTestRunner().run(tests[0]).failed == 0


def test_a_state_dictionary_becomes_a_layer():
    values = state()
    layer = interop.from_torch(values, axis=1, name="taken")

    assert layer.name == "taken" and layer.axis == 1
    assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)
    assert layer.unbiased_moving_variance
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    leaves = ["weight", "bias", "running_mean", "running_var"]
    assert [w.name for w in layer.weights] == names
    for weight, leaf in zip(layer.weights, leaves, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), values[leaf])
    # On its own.
    values["running_mean"][:] = 7.0
    assert to_numpy(layer.moving_mean).max() < 7.0


def test_the_next_update_is_pytorchs():
    """The formula of its documentation: momentum 0.25 here, and the divisor n - 1."""
    values, x = state(), array(8, 3)
    layer = interop.from_torch(values, momentum=0.75)
    layer(x, training=True)
    for leaf, new, stored in (
        ("running_mean", x.mean(0), layer.moving_mean),
        ("running_var", x.var(0, ddof=1), layer.moving_variance),
    ):
        expected = 0.75 * values[leaf] + 0.25 * new
        np.testing.assert_allclose(to_numpy(stored), expected, rtol=1e-6)


def test_a_cumulative_average_goes_on_from_its_count():
    layer = interop.from_torch(state(count=5), momentum=None)
    np.testing.assert_array_equal(statistics(layer)["mean_updates"], [5.0] * 3)
    layer(array(8, 3), training=True)
    back = interop.to_torch(layer, kind="state_dict")
    assert back["num_batches_tracked"] == 6


@pytest.mark.parametrize("momentum", [0.9, None])
def test_a_state_dictionary_comes_back_bit_by_bit(momentum):
    values = state(count=5 if momentum is None else 0)
    back = interop.to_torch(
        interop.from_torch(values, momentum=momentum), kind="state_dict"
    )
    assert set(back) == set(values)
    for leaf, value in values.items():
        np.testing.assert_array_equal(back[leaf], value)


def test_options_start_from_the_statistics_that_are_taken():
    values = state()
    layer = interop.from_torch(values, renorm=True, debias_moving_statistics=True)
    found = statistics(layer)
    np.testing.assert_array_equal(found["renorm_mean"], values["running_mean"])
    np.testing.assert_array_equal(found["debiased_mean"], values["running_mean"])


def test_float64_stays_float64(float64):
    values = {k: v.astype("float64") + 1e-12 for k, v in state().items()}
    layer = interop.from_torch(values)
    np.testing.assert_array_equal(to_numpy(layer.beta), values["bias"])
    with pytest.raises(ValueError, match=r"rounded.*float32"):
        interop.from_torch(values, dtype="float32")


def variables(size=3):
    return {
        "params": {"scale": array(size), "bias": array(size)},
        "batch_stats": {"mean": array(size), "var": array(size)},
    }


def test_variables_of_linen_become_a_layer_and_come_back():
    values = variables()
    layer = interop.from_flax(values)
    assert (layer.epsilon, layer.momentum) == (1e-5, 0.99)
    assert not layer.unbiased_moving_variance
    np.testing.assert_array_equal(to_numpy(layer.gamma), values["params"]["scale"])
    np.testing.assert_array_equal(
        to_numpy(layer.moving_variance), values["batch_stats"]["var"]
    )
    back = interop.to_flax(layer, kind="variables")
    for name, tree in values.items():
        assert set(back[name]) == set(tree)
        for leaf, value in tree.items():
            np.testing.assert_array_equal(back[name][leaf], value)


def network(norm=BatchNormalization, **arguments):
    """One layer of each kind."""
    arguments = {"epsilon": 1e-5, "momentum": 0.9, **arguments}
    return keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(6, (3, 2), groups=2, use_bias=False, name="conv"),
            norm(name="norm", **arguments),
            layers.DepthwiseConv2D((2, 3), depth_multiplier=2, name="depthwise"),
            layers.Conv2DTranspose(5, (2, 3), name="transposed"),
            layers.Flatten(name="flatten"),
            keras.Sequential([keras.Input((6 * 7 * 5,)), layers.Dense(2, name="head")]),
        ]
    )


def randomized(model):
    for weight in model.weights:
        weight.assign(array(*weight.shape))
    return model


TORCH = {
    "stem.0": "conv",
    "stem.1": "norm",
    "depth": "depthwise",
    "up": "transposed",
    "fc": "head",
}


def test_kernels_are_where_pytorch_has_them():
    """Channels by channels, written out one by one."""
    model = randomized(network(unbiased_moving_variance=True))
    found = interop.to_torch(model, names=TORCH)

    conv = to_numpy(model.get_layer("conv").kernel)
    weight = found["stem.0.weight"]
    assert weight.shape == (6, 2, 3, 2)
    for o, c, i, j in np.ndindex(weight.shape):
        assert weight[o, c, i, j] == conv[i, j, c, o]
    depthwise = to_numpy(model.get_layer("depthwise").kernel)
    weight = found["depth.weight"]
    assert weight.shape == (12, 1, 2, 3)
    for c, m, i, j in np.ndindex(6, 2, 2, 3):
        assert weight[2 * c + m, 0, i, j] == depthwise[i, j, c, m]
    transposed = to_numpy(model.get_layer("transposed").kernel)
    weight = found["up.weight"]
    assert weight.shape == (12, 5, 2, 3)
    for c, o, i, j in np.ndindex(weight.shape):
        assert weight[c, o, i, j] == transposed[i, j, o, c]
    dense = to_numpy(model.layers[-1].get_layer("head").kernel)
    np.testing.assert_array_equal(found["fc.weight"], dense.T)
    assert "stem.0.bias" not in found and found["stem.1.running_var"].shape == (6,)


def test_a_model_goes_to_pytorch_and_back():
    model = randomized(network(unbiased_moving_variance=True))
    other = randomized(network(unbiased_moving_variance=True))
    back = interop.from_torch(interop.to_torch(model, names=TORCH), other, TORCH)
    assert back is other
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


FLAX = {"Conv_0": "conv", "Block_0.BatchNorm_0": "norm", "Dense_0": "head"}


def test_a_model_goes_to_linen_and_back():
    model, other = randomized(network()), randomized(network())
    found = interop.to_flax(model, names={**FLAX, "Deep": "depthwise"})
    assert set(found["batch_stats"]) == {"Block_0"}
    assert set(found["params"]["Block_0"]["BatchNorm_0"]) == {"scale", "bias"}
    kernel = to_numpy(model.get_layer("depthwise").kernel)
    flax = found["params"]["Deep"]["kernel"]
    assert flax.shape == (2, 3, 1, 12)
    for c, m in np.ndindex(6, 2):
        np.testing.assert_array_equal(flax[:, :, 0, 2 * c + m], kernel[:, :, c, m])

    interop.from_flax(found, other, {**FLAX, "Deep": "depthwise"}, momentum=0.9)
    for name in ("conv", "norm", "depthwise"):
        for a, b in zip(
            model.get_layer(name).weights, other.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    # Into variables that are there: a copy of these, which has the rest of them.
    target = {"params": {**found["params"], "More": {"kernel": array(2)}}}
    target["batch_stats"] = found["batch_stats"]
    merged = interop.to_flax(randomized(model), target, FLAX)
    assert "More" in merged["params"]
    before, after = (v["params"]["Dense_0"]["bias"] for v in (target, merged))
    assert (before != after).all()
    np.testing.assert_array_equal(after, model.layers[-1].get_layer("head").bias)


def test_layers_of_kerass_own_are_converted_first():
    """Its divisor is n: neither silently kept, nor silently changed."""
    model = network(layers.BatchNormalization)
    with pytest.raises(ValueError, match="unbiased_moving_variance=False"):
        interop.to_torch(model, names=TORCH)
    with pytest.raises(ValueError, match="unbiased True and False"):
        interop.from_torch(state(6), model, {"": "norm"})
    model = convert(model, unbiased_moving_variance=True)
    interop.from_torch(interop.to_torch(model, names=TORCH), model, TORCH)
    # Flax's is Keras's.
    interop.to_flax(network(layers.BatchNormalization), names=FLAX)


@pytest.mark.parametrize(
    ("names", "change", "match"),
    [
        ({"stem.0": "cnv"}, {}, "no layers.*'cnv'"),
        ({"stem.7": "conv"}, {}, "no weights.*'stem.7'"),
        ({"stem.0": "flatten"}, {}, "Flatten"),
        ({"stem.1": "conv"}, {}, "other weights.*running_mean"),
        ({"stem.0": "head"}, {}, "other weights.*bias"),
        ({"stem.0": "conv", "more": "conv"}, {}, "twice"),
        ({}, {"stem.1.running_mean": np.ones(7)}, r"shape.*running_mean.*\(7,\)"),
        ({}, {"fc.bias": np.full(2, 0.1)}, "rounded.*fc.bias"),
        ({}, {"fc.more": np.ones(2)}, "other weights.*more"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(names, change, match):
    model = randomized(network(unbiased_moving_variance=True))
    source = {**interop.to_torch(model, names=TORCH), **change}
    target = randomized(network(unbiased_moving_variance=True))
    before = [to_numpy(w) for w in target.weights]
    names = {"depth": "depthwise", **(names or TORCH)}
    names = {
        **names,
        **{k: target.layers[4] for k, v in names.items() if v == "flatten"},
    }
    with pytest.raises(ValueError, match=match):
        interop.from_torch(source, target, names)
    for a, b in zip(before, target.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(b), a)


@pytest.mark.parametrize(
    ("arguments", "given", "match"),
    [
        ({"epsilon": 1e-3}, {}, "epsilon 1e-05 and 0.001"),
        ({"momentum": 0.99}, {}, "momentum 0.9 and 0.99"),
        ({"momentum": None}, {}, "momentum 0.9 and None"),
        ({}, {"epsilon": 1e-3}, "epsilon 0.001 and 1e-05"),
        ({"unbiased_moving_variance": False}, {}, "unbiased True and False"),
    ],
)
def test_settings_that_differ_are_named(arguments, given, match):
    model = network(**{"unbiased_moving_variance": True, **arguments})
    with pytest.raises(ValueError, match=match):
        interop.from_torch(state(6), model, {"": "norm"}, **given)


@pytest.mark.parametrize(
    ("arguments", "to", "match"),
    [
        ({"axis": (1, 2)}, "torch", r"axis=\(1, 2\)"),
        ({"renorm": True}, "torch", "renorm=True"),
        ({"virtual_batch_size": 2}, "torch", "virtual_batch_size=2"),
        ({"debias_moving_statistics": True}, "torch", "debias"),
        ({"synchronized": 2}, "torch", "synchronized=2"),
        ({"scale": False}, "torch", "scale=False and center=True"),
        ({"unbiased_moving_variance": False}, "torch", "unbiased_moving_variance=F"),
        ({"activation": "relu"}, "torch", "activation=relu"),
        ({}, "flax", "unbiased_moving_variance=True"),
        ({"unbiased_moving_variance": False, "momentum": None}, "flax", "momentum"),
    ],
)
def test_what_the_other_side_lacks_is_named(arguments, to, match):
    layer = BatchNormalization(
        **{"unbiased_moving_variance": True, "name": "culprit", **arguments}
    )
    layer.build((None, 2, 3))
    with pytest.raises(ValueError, match=f"culprit.*{match}"):
        if to == "torch":
            interop.to_torch(layer, kind="state_dict")
        else:
            interop.to_flax(layer, kind="variables")


def test_frozen_halves_and_counts_of_channels_stay_here():
    layer = BatchNormalization(unbiased_moving_variance=True, name="culprit")
    layer.build((None, 3))
    layer.freeze(affine=False)
    with pytest.raises(ValueError, match=r"culprit.*frozen=\('statistics',\)"):
        interop.to_torch(layer, kind="state_dict")
    layer = BatchNormalization(
        momentum=None, unbiased_moving_variance=True, name="culprit"
    )
    layer.build((None, 3))
    layer.history.mean_updates.assign([1.0, 2.0, 2.0])
    with pytest.raises(ValueError, match=r"culprit.*seen \[0.0, 1.0, 2.0\]"):
        interop.to_torch(layer, kind="state_dict")


def test_kerass_own_layer_takes_weights_of_its_divisor():
    model = randomized(network(layers.BatchNormalization))
    variables = interop.to_flax(model, names=FLAX)
    target = network(layers.BatchNormalization)
    interop.from_flax(variables, target, FLAX, epsilon=1e-5, momentum=0.9)
    for name in ("conv", "norm"):
        kept, taken = (each.get_layer(name).weights for each in (model, target))
        for a, b in zip(kept, taken, strict=True):
            np.testing.assert_array_equal(to_numpy(b), to_numpy(a))


def test_transposed_convolutions_are_not_flaxs():
    layer = layers.Conv2DTranspose(2, 3, name="culprit")
    model = keras.Sequential([keras.Input((4, 4, 3)), layer])
    with pytest.raises(ValueError, match=r"exchanged with Flax.*culprit"):
        interop.to_flax(model, names={"A": "culprit"}, kind="variables")


def test_a_library_that_is_missing_is_named(monkeypatch):
    layer = interop.from_torch(state())
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="Install torch"):
        interop.to_torch(layer)


def test_wrong_calls_say_what_to_do():
    layer, model = interop.from_torch(state()), network()
    with pytest.raises(ValueError, match="names=None"):
        interop.to_torch(model)
    with pytest.raises(ValueError, match="before it is built"):
        interop.to_torch(BatchNormalization(), kind="state_dict")
    with pytest.raises(ValueError, match="without a target"):
        interop.from_torch(state(), names=TORCH)
    with pytest.raises(ValueError, match="has to be a torch"):
        interop.from_torch(layer)
    with pytest.raises(ValueError, match="A target has to be a torch"):
        interop.to_torch(layer, target=state())
    with pytest.raises(ValueError, match="A single channel axis"):
        interop.from_torch(state(), axis=(1, 2))
    with pytest.raises(ValueError, match=r"\['synchronized'\]"):
        interop.from_torch(state(), layer, synchronized=True)
    with pytest.raises(ValueError, match="kind='modul'"):
        interop.to_torch(layer, kind="modul")
    with pytest.raises(ValueError, match="no moving statistics"):
        interop.from_torch({"weight": array(3)})
    with pytest.raises(ValueError, match="has to be a layer or model"):
        interop.to_torch(state())
