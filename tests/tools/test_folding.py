"""Models for inference, whose normalizations other layers have taken.

What is expected is always the model's own output. Most of it is computed in float64,
where nothing but a wrong fold is larger than 1e-12.
"""

import keras
import numpy as np
import pytest
from frameworks import float64_enabled, to_numpy
from keras import layers

from keras_bnx import BatchNormalization, fold
from keras_bnx.tools.folding import Folding
from keras_bnx.tools.models import batch_normalizations

KERAS = keras.layers.BatchNormalization
BACKEND = keras.config.backend()
# What Keras 3.15 computes in float32, whatever it is given, on these backends.
ROUNDED = {
    "torch": {KERAS, layers.Dense, layers.GlobalAveragePooling2D},
    "jax": {KERAS, layers.GlobalAveragePooling2D},
    "tensorflow": {layers.UpSampling2D},
}[BACKEND]


@pytest.fixture
def float64():
    """Lets layers be made that compute in float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    with float64_enabled():
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        yield
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def settled(model, seed=0):
    """The model with weights of the order of 1, of either sign; means aren't 0."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" not in weight.dtype:
            continue
        value = rng.uniform(-1.0, 1.0, weight.shape)
        if weight.name in ("moving_variance", "gamma"):
            value = np.sign(value) * (0.5 + np.abs(value))
        if weight.name == "moving_variance":
            value = np.abs(value)
        weight.assign(value)
    return model


def sequential(*parts, shape=(6, 7, 4)):
    return settled(keras.Sequential([keras.Input(shape), *parts]))


def data(model, rows=2):
    rng = np.random.default_rng(1)
    # Sequential models have no `input`.
    return keras.tree.map_structure(
        lambda x: rng.normal(size=(rows, *(n or 5 for n in x.shape[1:]))).astype(
            x.dtype
        ),
        getattr(model, "input", model.inputs[0]),
    )


def assert_same(model, copy, tolerance=None):
    """Outputs are equal, to rounding."""
    if tolerance is None:
        rounded = ROUNDED & {type(layer) for layer in leaves(model)}
        tolerance = 1e-5 if rounded else 1e-12
    x = data(model)
    old, new = keras.tree.flatten(model(x)), keras.tree.flatten(copy(x))
    for a, b in zip(map(to_numpy, old), map(to_numpy, new), strict=True):
        assert np.isfinite(a).all() and a.std() > 1e-3
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())


def leaves(model):
    for layer in model.layers:
        yield from leaves(layer) if hasattr(layer, "layers") else [layer]


def assert_folded(model, into):
    """All are folded, into layers of these names; returns the copy."""
    copy, report = fold(model)
    assert [record.into for record in report] == into, report
    assert all(record.reason is None for record in report)
    assert not any(isinstance(layer, KERAS) for layer in leaves(copy))
    assert_same(model, copy)
    return copy


# Of each kind, what its kernel makes different: groups, multipliers, several axes. The
# shapes are (7, 4), (6, 7, 4) and (5, 6, 7, 4).
LINEAR = {
    "dense": lambda: layers.Dense(5, name="linear"),
    "dense, 2 axes": lambda: layers.Dense(5, name="linear"),
    "dense, 3 axes": lambda: layers.Dense(5, use_bias=False, name="linear"),
    "einsum": lambda: layers.EinsumDense("abc,cd->abd", (7, 5), name="linear"),
    "einsum with bias": lambda: layers.EinsumDense(
        "abcd,cde->abe", (6, 5), bias_axes="be", name="linear"
    ),
    "einsum with ellipsis": lambda: layers.EinsumDense(
        "...x,yx->...y", 5, bias_axes="y", name="linear"
    ),
    "einsum that sums": lambda: layers.EinsumDense(
        "abcd,de->ace", (7, 5), name="linear"
    ),
    "conv1d": lambda: layers.Conv1D(6, 3, groups=2, dilation_rate=2, name="linear"),
    "conv2d": lambda: layers.Conv2D(6, (3, 2), strides=2, groups=2, name="linear"),
    "conv2d, no bias": lambda: layers.Conv2D(5, 3, use_bias=False, name="linear"),
    "conv3d": lambda: layers.Conv3D(5, 2, dilation_rate=2, name="linear"),
    "depthwise1d": lambda: layers.DepthwiseConv1D(3, depth_multiplier=2, name="linear"),
    "depthwise2d": lambda: layers.DepthwiseConv2D(
        3, depth_multiplier=3, use_bias=False, name="linear"
    ),
    "separable1d": lambda: layers.SeparableConv1D(
        5, 3, depth_multiplier=2, name="linear"
    ),
    "separable2d": lambda: layers.SeparableConv2D(
        5, 3, use_bias=False, depth_multiplier=2, name="linear"
    ),
}
TRANSPOSED = {
    "transposed1d": lambda **k: layers.Conv1DTranspose(5, name="linear", **k),
    "transposed2d": lambda **k: layers.Conv2DTranspose(
        5, name="linear", use_bias=False, **k
    ),
    "transposed3d": lambda **k: layers.Conv3DTranspose(5, name="linear", **k),
}
SHAPES = {1: (7, 4), 2: (6, 7, 4), 3: (5, 6, 7, 4)}


def shape_for(name):
    if name in ("dense", "einsum"):
        return (4,) if name == "dense" else (7, 4)
    rank = [digit for digit in name if digit in "13"]
    return SHAPES[int(rank[0])] if rank else SHAPES[2]


@pytest.mark.parametrize("cls", [KERAS, BatchNormalization])
@pytest.mark.parametrize("name", LINEAR)
def test_every_linear_layer_takes_what_is_behind_and_before_it(name, cls, float64):
    shape = shape_for(name)
    relu = layers.ReLU
    assert_folded(
        sequential(LINEAR[name](), cls(), relu(), shape=shape), into=["linear"]
    )
    assert_folded(
        sequential(relu(), cls(), LINEAR[name](), relu(), shape=shape), into=["linear"]
    )
    # In front of the activation of the layer, and with a scale of zero.
    taken = LINEAR[name]().get_config() | {"activation": "relu"}
    layer = type(LINEAR[name]()).from_config(taken)
    model = sequential(relu(), cls(), cls(scale=False), layer, shape=shape)
    model.layers[1].gamma.assign(np.zeros(4))
    assert_folded(model, into=["linear", "linear"])


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_take_what_is_behind_them(name, float64):
    shape = shape_for(name)
    for arguments in (
        {"kernel_size": 3, "strides": 2, "padding": "same"},
        # TensorFlow has no such kernel on a CPU.
        {"kernel_size": 2, "dilation_rate": 1 if BACKEND == "tensorflow" else 2},
    ):
        layer = TRANSPOSED[name](**arguments)
        assert_folded(
            sequential(layer, BatchNormalization(), shape=shape), into=["linear"]
        )
    # Before them, only where each output has one input.
    layer = TRANSPOSED[name](kernel_size=1)
    assert_folded(
        sequential(layers.ReLU(), BatchNormalization(), layer, shape=shape),
        into=["linear"],
    )
    layer = TRANSPOSED[name](kernel_size=2)
    model = sequential(layers.ReLU(), BatchNormalization(), layer, shape=shape)
    copy, report = fold(model)
    assert "different numbers of inputs" in report[0].reason
    assert_same(model, copy)


@pytest.mark.parametrize("padding", ["same", "causal"])
def test_padding_matters_only_before_the_layer(padding, float64):
    conv = layers.Conv1D(5, 3, padding=padding, name="conv")
    shape = (7, 4)
    assert_folded(sequential(conv, BatchNormalization(), shape=shape), into=["conv"])
    conv = layers.Conv1D(5, 3, padding=padding, name="conv")
    model = sequential(layers.ReLU(), BatchNormalization(), conv, shape=shape)
    copy, report = fold(model)
    assert "'conv' (Conv1D) pads with zeros" in report[0].reason
    assert_same(model, copy)
    # A map without a shift keeps the zeros.
    conv = layers.Conv1D(5, 3, padding=padding, name="conv")
    model = sequential(
        layers.ReLU(), BatchNormalization(center=False), conv, shape=shape
    )
    model.layers[1].moving_mean.assign(np.zeros(4))
    assert_folded(model, into=["conv"])


@pytest.mark.parametrize(
    ("kernel", "strides", "height", "pads"),
    [(1, 1, None, False), (1, 2, 7, False), (2, 2, 6, False), (2, 2, 7, True)],
)
def test_same_padding_that_pads_nothing_is_none(kernel, strides, height, pads, float64):
    conv = layers.Conv2D(3, kernel, strides=strides, padding="same", name="conv")
    model = sequential(layers.ReLU(), BatchNormalization(), conv, shape=(height, 6, 4))
    _, report = fold(model)
    assert [record.into for record in report] == [None if pads else "conv"]
    if height:
        assert_same(model, fold(model)[0])


# Without weights: what a map passes on its way.
BETWEEN = {
    "average pooling": lambda: [layers.AveragePooling2D(3, 2, padding="same")],
    "adaptive pooling": lambda: [layers.AdaptiveAveragePooling2D((2, 3))],
    "global pooling": lambda: [layers.GlobalAveragePooling2D()],
    "global pooling, axes kept": lambda: [layers.GlobalAveragePooling2D(keepdims=True)],
    "cropping": lambda: [layers.Cropping2D(1)],
    "nearest": lambda: [layers.UpSampling2D(2)],
    "bilinear": lambda: [layers.UpSampling2D(2, interpolation="bilinear")],
    "permutation": lambda: [layers.Permute((2, 1, 3))],
    "at inference nothing": lambda: [
        layers.Dropout(0.5),
        layers.SpatialDropout2D(0.5),
        layers.GaussianNoise(1.0),
        layers.ActivityRegularization(0.1),
        layers.Identity(),
        layers.Activation("linear"),
    ],
    "reshaping": lambda: [layers.Reshape((-1, 4))],
}


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_without_weights_let_a_map_through(name, float64):
    model = sequential(
        layers.Conv2D(4, 2, name="conv"), *BETWEEN[name](), BatchNormalization()
    )
    assert_folded(model, into=["conv"])
    linear = layers.EinsumDense("...c,cd->...d", 3, bias_axes="d", name="linear")
    model = sequential(layers.ReLU(), BatchNormalization(), *BETWEEN[name](), linear)
    assert_folded(model, into=["linear"])


def test_flattening_and_reshaping_are_followed(float64):
    def dense():
        return layers.EinsumDense("ab,bc->ac", 3, name="dense")

    flatten = layers.Flatten
    parts = [layers.ReLU(), BatchNormalization(), flatten(), dense()]
    assert_folded(sequential(*parts), into=["dense"])
    parts = [
        layers.ReLU(),
        BatchNormalization(axis=1),
        flatten("channels_first"),
        dense(),
    ]
    assert_folded(sequential(*parts), into=["dense"])
    # Behind it each place has its own channel, unless they are all the same.
    parts = [
        layers.Conv2D(2, 3, name="conv"),
        flatten(),
        BatchNormalization(name="norm"),
    ]
    model = sequential(*parts)
    _, report = fold(model)
    assert "channels aren't those of 'conv'" in report[0].reason
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        weight = getattr(model.get_layer("norm"), name)
        weight.assign(np.tile([0.5, 2.0], weight.shape[0] // 2))
    assert_folded(model, into=["conv"])
    parts = [layers.Conv2D(4, 1, name="conv"), flatten("channels_first")]
    model = sequential(*parts, BatchNormalization(name="norm"))
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        weight = getattr(model.get_layer("norm"), name)
        # It takes the first axis for the channels', and moves it to the end.
        weight.assign(np.tile(np.repeat([0.5, 2.0, 1.0, 3.0], 6), 7))
    assert_folded(model, into=["conv"])
    parts = [
        layers.Dense(4, name="dense"),
        layers.RepeatVector(3),
        BatchNormalization(),
    ]
    assert_folded(sequential(*parts, shape=(2,)), into=["dense"])
    parts = [layers.ReLU(), BatchNormalization(), layers.RepeatVector(3)]
    linear = layers.EinsumDense("abc,cd->abd", (3, 2), name="dense")
    assert_folded(sequential(*parts, linear, shape=(2,)), into=["dense"])


def test_maxima_let_maps_through_that_keep_the_order(float64):
    for pooling in (layers.MaxPooling2D(2), layers.GlobalMaxPooling2D()):
        model = sequential(
            layers.Conv2D(3, 3, name="conv"), pooling, BatchNormalization(name="norm")
        )
        copy, report = fold(model)
        assert "takes the largest" in report[0].reason
        assert_same(model, copy)
        model.get_layer("norm").gamma.assign(np.array([0.0, 0.5, 2.0]))
        assert_folded(model, into=["conv"])


def test_explicit_padding_is_passed_by_maps_without_a_shift(float64):
    parts = [layers.ReLU(), BatchNormalization(name="norm"), layers.ZeroPadding2D(1)]
    model = sequential(*parts, layers.Conv2D(3, 3, name="conv"))
    copy, report = fold(model)
    assert "pads with zeros" in report[0].reason
    assert_same(model, copy)
    for name in ("beta", "moving_mean"):
        getattr(model.get_layer("norm"), name).assign(np.zeros(4))
    assert_folded(model, into=["conv"])


def test_concatenated_layers_take_a_part_each(float64):
    inputs = keras.Input((6, 7, 4))
    one = layers.Conv2D(3, 3, padding="same", name="one")(inputs)
    two = layers.SeparableConv2D(2, 3, padding="same", name="two")(inputs)
    x = BatchNormalization()(layers.Concatenate()([one, two]))
    model = settled(keras.Model(inputs, layers.ReLU()(x)))
    assert_folded(model, into=["one, two"])
    # And behind, one of the parts.
    x = layers.Concatenate()(
        [inputs, BatchNormalization()(layers.ReLU()(inputs)), inputs]
    )
    model = settled(keras.Model(inputs, layers.Conv2D(3, 3, name="conv")(x)))
    assert_folded(model, into=["conv"])
    # One that can't take its part leaves the other as it is.
    relu = layers.ReLU(name="relu")(two)
    x = BatchNormalization()(layers.Concatenate()([one, relu]))
    model = settled(keras.Model(inputs, x))
    copy, report = fold(model)
    assert "'relu' (ReLU) isn't linear" in report[0].reason
    assert_same(model, copy)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        *((f"Conv{i}D", i) for i in (1, 2, 3)),
        ("DepthwiseConv2D", 2),
        ("SeparableConv2D", 2),
        ("Conv2DTranspose", 2),
    ],
)
def test_channels_may_come_first(name, rank, float64):
    if BACKEND == "tensorflow":
        pytest.skip("TensorFlow has no such kernels on a CPU.")
    shape = SHAPES[rank][-1:] + SHAPES[rank][:-1]
    arguments = {"kernel_size": 3, "data_format": "channels_first", "name": "linear"}
    if name != "DepthwiseConv2D":
        arguments["filters"] = 5

    def layer():
        return getattr(layers, name)(**arguments)

    assert_folded(
        sequential(layer(), BatchNormalization(axis=1), shape=shape), into=["linear"]
    )
    model = sequential(layer(), BatchNormalization(axis=-1), shape=shape)
    copy, report = fold(model)
    assert "channels aren't those of 'linear'" in report[0].reason
    assert_same(model, copy)
    if name != "Conv2DTranspose":
        parts = [layers.ReLU(), BatchNormalization(axis=1), layer()]
        assert_folded(sequential(*parts, shape=shape), into=["linear"])
    if rank == 2:
        parts = [layers.AveragePooling2D(2, data_format="channels_first")]
        parts += [layers.GlobalAveragePooling2D("channels_first"), BatchNormalization()]
        assert_folded(sequential(layer(), *parts, shape=shape), into=["linear"])


@pytest.mark.parametrize("cls", [KERAS, BatchNormalization])
def test_any_number_in_a_row_is_folded(cls, float64):
    conv = layers.Conv2D(3, 2, name="conv")
    model = sequential(conv, cls(), cls(center=False), layers.Dropout(0.1), cls())
    assert_folded(model, into=["conv"] * 3)
    model = sequential(layers.ReLU(), cls(), cls(scale=False), cls(), conv)
    assert_folded(model, into=["conv"] * 3)
    # One that takes none itself, and waits for the other to be gone.
    first = cls(beta_constraint="non_neg")
    model = sequential(layers.ReLU(), first, cls(), layers.Conv2D(3, 2, name="conv"))
    assert_folded(model, into=["conv"] * 2)
    # Where no other layer can, the first one takes the rest.
    model = sequential(
        layers.ReLU(), cls(name="first", scale=False, center=False), cls(), cls()
    )
    copy, report = fold(model)
    assert [record.into for record in report] == [None, "first", "first"]
    assert [type(layer) for layer in copy.layers] == [layers.ReLU, cls]
    assert_same(model, copy)


def test_arguments_of_ours_are_folded(float64):
    rng = np.random.default_rng(2)
    for arguments in (
        {"momentum": None},
        {"debias_moving_statistics": True},
        {"debias_moving_statistics": True, "renorm": True},
        {"unbiased_moving_variance": True, "virtual_batch_size": 2},
    ):
        norm = BatchNormalization(**arguments)
        model = sequential(layers.Conv2D(3, 2, name="conv"), norm)
        norm.reset_moving_statistics()
        model(rng.normal(3.0, 2.0, (4, 6, 7, 4)), training=True)
        assert_folded(model, into=["conv"])


def test_several_axes_are_folded_where_the_layer_has_them(float64):
    linear = layers.EinsumDense("abc,cde->abde", (7, 3, 5), name="linear")
    norm = BatchNormalization(axis=[2, 3])
    assert_folded(sequential(linear, norm, shape=(7, 4)), into=["linear"])
    parts = [layers.ReLU(), BatchNormalization(axis=[1, 2]), layers.Flatten()]
    linear = layers.EinsumDense("ab,bc->ac", 3, name="linear")
    assert_folded(sequential(*parts, linear, shape=(7, 4)), into=["linear"])
    model = sequential(layers.Conv1D(3, 2, name="conv"), norm2(), shape=(7, 4))
    copy, report = fold(model)
    assert "channels aren't those of 'conv'" in report[0].reason
    assert_same(model, copy)


def test_a_bias_of_fewer_axes_gets_those_of_the_normalization(float64):
    linear = layers.EinsumDense("ab,bcd->acd", (3, 5), bias_axes="d", name="linear")
    norm = BatchNormalization(axis=1)
    assert_folded(sequential(linear, norm, shape=(7,)), into=["linear"])


def norm2():
    return BatchNormalization(axis=[1, 2])


def functional(function, shape=(6, 7, 4)):
    inputs = keras.Input(shape)
    return settled(keras.Model(inputs, function(inputs)))


def two_users(x):
    x = layers.Conv2D(4, 3, name="conv")(x)
    return layers.Add()([x, BatchNormalization(name="norm")(x)])


def used_by_two(x):
    x = BatchNormalization(name="norm")(layers.ReLU()(x))
    return layers.Conv2D(4, 3)(x), layers.Conv2D(4, 3)(x)


def also_an_output(x):
    x = layers.Conv2D(4, 3, name="conv")(x)
    return x, BatchNormalization(name="norm")(x)


def shared_layer(x):
    conv = layers.Conv2D(4, 3, padding="same", name="conv")
    return BatchNormalization(name="norm")(conv(conv(x)))


def shared_norm(x):
    norm = BatchNormalization(name="norm")
    return norm(layers.Conv2D(4, 3, name="conv")(norm(x)))


def trains(x):
    return BatchNormalization(name="norm")(layers.Conv2D(4, 3)(x), training=True)


def dropout_that_trains(x):
    x = layers.Dropout(0.5, seed=1)(layers.Conv2D(4, 3)(x), training=True)
    return BatchNormalization(name="norm")(x)


class Doubled(KERAS):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


class Tripled(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs) ** 3


def convolution(**arguments):
    def function(x):
        x = layers.Conv2D(4, 3, name="conv", **arguments)(x)
        return layers.ReLU()(BatchNormalization(name="norm")(x))

    return function


def lora(x):
    layer = layers.Conv2D(4, 3, name="conv", lora_rank=2)
    return BatchNormalization(name="norm")(layer(x))


KEPT = {
    "two users": (two_users, "Others use the outputs of 'conv'"),
    "used by two": (used_by_two, "Several use its outputs"),
    "also an output": (also_an_output, "Others use the outputs of 'conv'"),
    "shared layer": (shared_layer, "'conv' (Conv2D) is called 2 times"),
    "shared norm": (shared_norm, "It is called 2 times"),
    "training": (trains, "`training`"),
    "the inputs": (
        lambda x: BatchNormalization(name="norm")(x),
        "The inputs of the model",
    ),
    "an output": (
        lambda x: BatchNormalization(name="norm")(x),
        "The outputs of the model",
    ),
    "between activations": (
        lambda x: layers.ReLU()(
            BatchNormalization(name="norm")(layers.ELU(name="elu")(x))
        ),
        "'elu' (ELU) isn't linear",
    ),
    "an activation as a layer": (
        lambda x: BatchNormalization(name="norm")(
            layers.Activation("relu", name="relu")(layers.Conv2D(4, 3)(x))
        ),
        "'relu' (Activation) isn't linear",
    ),
    "an activation": (convolution(activation="tanh"), "'conv' (Conv2D) has an activ"),
    "bias constraint": (convolution(bias_constraint="non_neg"), "bias_constraint"),
    "kernel constraint": (convolution(kernel_constraint="max_norm"), "kernel_const"),
    "other dtype": (convolution(dtype="float32"), "computes in float32, and it in"),
    "other axis": (
        lambda x: BatchNormalization(axis=1, name="norm")(
            layers.Conv2D(4, 3, name="conv")(x)
        ),
        "Its channels aren't those of 'conv'",
    ),
    "a subclass of the normalization": (
        lambda x: Doubled(name="norm")(layers.Conv2D(4, 3)(x)),
        "Its class, Doubled",
    ),
    "a subclass of the layer": (
        lambda x: BatchNormalization(name="norm")(Tripled(4, 3)(x)),
        "(Tripled) isn't linear",
    ),
    "inside": (
        lambda x: layers.TimeDistributed(BatchNormalization(name="norm"))(x),
        "inside of another layer",
    ),
    "dropout in training": (dropout_that_trains, "(Dropout) isn't linear"),
    "bicubic": (
        lambda x: BatchNormalization(name="norm")(
            layers.UpSampling2D(2, interpolation="bicubic")(layers.Conv2D(4, 3)(x))
        ),
        "interpolates",
    ),
    "lora": (lora, "LoRA"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_has_its_reason(name, float64):
    function, reason = KEPT[name]
    model = functional(function)
    copy, (record,) = fold(model)
    assert record.layer == "norm" and record.into is None
    assert reason in record.reason, record.reason
    assert len(batch_normalizations(copy)) == 1
    if name not in ("training", "dropout in training"):
        # Float32 is part of some.
        assert_same(model, copy, 1e-6 if "dtype" in name or "lora" in name else None)


def norm_behind(*parts, axis=-1):
    return (*parts, BatchNormalization(axis, name="norm"))


def norm_before(*parts, axis=-1):
    return (layers.ReLU(), BatchNormalization(axis, name="norm"), *parts)


def einsum(equation, *shape, **arguments):
    return layers.EinsumDense(equation, shape, name="linear", **arguments)


# The normalization's channels, or unknown sizes, that what is beside it can't take.
NOT_ITS_CHANNELS = {
    "of the space": (
        lambda: norm_behind(
            layers.Conv2D(4, 3), layers.AveragePooling2D(2, name="pool"), axis=1
        ),
        (6, 7, 4),
        "Its channels aren't those of 'pool'",
    ),
    "repeated": (
        lambda: norm_behind(
            layers.Dense(4), layers.RepeatVector(3, name="repeat"), axis=1
        ),
        (4,),
        "Its channels aren't those of 'repeat'",
    ),
    "reshaped, of unknown size": (
        lambda: norm_behind(layers.Dense(4), layers.Reshape((-1, 2), name="reshape")),
        (None, 4),
        "those of 'reshape' (Reshape), of unknown size",
    ),
    "of another normalization": (
        lambda: (
            layers.ReLU(),
            norm2(),
            BatchNormalization(name="norm"),
            layers.ReLU(),
        ),
        (6, 7, 4),
        "has several axes of channels",
    ),
    "not in the kernel": (
        lambda: norm_before(einsum("abc,cd->abd", 7, 2), axis=1),
        (7, 4),
        "Its channels aren't those of 'linear'",
    ),
    "not in the equation": (
        lambda: norm_before(einsum("ab...,bc->ac...", 1, 7), axis=1),
        (4, 7),
        "Its channels aren't those of 'linear'",
    ),
    "summed, of unknown size": (
        lambda: norm_before(einsum("abc,cd->ad", 2)),
        (None, 4),
        "'linear' (EinsumDense) sums an axis of unknown size",
    ),
    "behind another batch": (
        lambda: norm_before(einsum("abc,cd->bad", None, 2)),
        (7, 4),
        "'linear' (EinsumDense) moves the axis of the batch",
    ),
}


@pytest.mark.parametrize("name", NOT_ITS_CHANNELS)
def test_channels_that_a_layer_does_not_have_are_kept(name, float64):
    parts, shape, reason = NOT_ITS_CHANNELS[name]
    model = sequential(*parts(), shape=shape)
    copy, report = fold(model)
    (record,) = [record for record in report if record.layer == "norm"]
    assert record.into is None and reason in record.reason, record.reason
    assert_same(model, copy)


def joined(axis, behind):
    """Layers that are concatenated, and a normalization behind or before that."""

    def function(x):
        norm, join = BatchNormalization(name="norm"), layers.Concatenate(axis)
        if behind:
            parts = (layers.Dense(4, name=name)(x) for name in ("one", "two"))
            return layers.ReLU()(norm(join([*parts])))
        return layers.Dense(2, name="dense")(join([norm(layers.ReLU()(x)), x]))

    return function


def test_concatenation_along_other_axes(float64):
    assert_folded(functional(joined(1, True), (3, 4)), into=["one, two"])
    assert_folded(functional(joined(-1, False), (3, 4)), into=["dense"])
    for axis, behind, shape, reason in (
        (0, True, (3, 4), "joins batches"),
        (0, False, (3, 4), "joins batches"),
        (1, False, (None, 4), "joins what has an unknown size"),
    ):
        model = functional(joined(axis, behind), shape)
        copy, (record,) = fold(model)
        assert reason in record.reason, record.reason
        assert_same(model, copy)


def test_examples_that_are_channels_are_kept(float64):
    inputs = keras.Input(batch_shape=(2, 4))
    x = BatchNormalization(axis=0, name="norm")(layers.Dense(3)(inputs))
    model = settled(keras.Model(inputs, x))
    copy, (record,) = fold(model)
    assert "Its channels are the examples of the batch" in record.reason
    assert_same(model, copy)


def test_quantized_layers_are_kept():
    dense = layers.Dense(4, name="dense")
    model = sequential(dense, BatchNormalization(), shape=(3,))
    dense.quantize("int8")
    _, (record,) = fold(model)
    assert "quantized (int8)" in record.reason


def test_statistics_that_are_not_finite_are_kept():
    norm = BatchNormalization()
    model = sequential(layers.Dense(2), norm, shape=(3,))
    norm.moving_mean.assign(np.array([np.nan, 1.0]))
    assert "finite" in fold(model)[1][0].reason


def test_means_that_would_cost_digits_are_kept_before_a_layer():
    def model(dtype):
        norm = BatchNormalization(name="norm", dtype=dtype)
        dense = layers.Dense(2, name="dense", dtype=dtype)
        found = sequential(layers.ReLU(dtype=dtype), norm, dense, shape=(3,))
        norm.moving_mean.assign(np.full(3, 5000.0))
        norm.moving_variance.assign(np.full(3, 0.01))
        return found

    (record,) = fold(model("float32"))[1]
    assert "standard deviations would cost 'dense' (Dense) digits" in record.reason
    with float64_enabled():
        assert fold(model("float64"))[1][0].into == "dense"


def test_an_activation_of_the_normalization_stays(float64):
    norm = BatchNormalization(name="norm")
    model = sequential(layers.Conv2D(4, 3, name="conv"), norm, layers.Dropout(0.5))
    expected = np.maximum(to_numpy(model(data(model))), 0.0)
    norm.activation = keras.activations.relu
    copy, report = fold(model)
    assert report == [Folding("norm", "conv", None)]
    assert type(copy.get_layer("norm")) is layers.Activation
    np.testing.assert_allclose(to_numpy(copy(data(model))), expected, atol=1e-12)
    model = sequential(layers.ReLU(), norm, layers.Conv2D(4, 3, name="conv"))
    assert "Its activation comes first" in fold(model)[1][0].reason


def test_activations_that_are_layers_stay_as_they_are(float64):
    """With their weights and names, also where two normalizations share one."""
    inputs = x = keras.Input((6, 7, 4))
    shared = layers.LeakyReLU(0.3, name="leaky")
    own = layers.PReLU(shared_axes=[1, 2], name="prelu")
    for activation in (shared, shared, own):
        x = layers.Conv2D(4, 3, padding="same")(x)
        x = BatchNormalization(activation=activation)(x)
    model = settled(keras.Model(inputs, x))
    own.alpha.assign(np.random.default_rng(0).uniform(size=own.alpha.shape))
    copy, report = fold(model)
    assert len(report.folded) == 3
    names = [layer.name for layer in copy.layers if not layer.name.startswith("conv")]
    assert names[1:] == ["leaky", "prelu"]
    assert_same(model, copy)


def test_nested_models_are_folded_each_by_itself(float64):
    """One of them is called twice, and one has a layer of the outer one."""
    inner = keras.Sequential(
        [
            keras.Input((None, None, 4)),
            layers.Conv2D(4, 3, padding="same", name="conv"),
            BatchNormalization(name="inner"),
        ],
        name="nested",
    )
    shared = layers.Conv2D(4, 1, name="shared")
    start = keras.Input((None, None, 4))
    other = keras.Model(
        start, BatchNormalization(name="other")(shared(start)), name="model"
    )
    inputs = keras.Input((6, 7, 4))
    x = shared(inner(inner(other(inputs))))
    x = layers.Conv2D(2, 3, name="last")(
        BatchNormalization(name="outer")(layers.ReLU()(x))
    )
    model = settled(keras.Model(inputs, x, name="outer_model"))
    copy, report = fold(model)

    into = {record.layer: record.into for record in report}
    assert into == {"inner": "conv", "outer": "last", "other": None}
    (other,) = [record for record in report if record.layer == "other"]
    assert "is called 2 times" in other.reason
    assert copy.name == "outer_model" and copy.get_layer("nested").name == "nested"
    assert len(copy.get_layer("nested").layers) == 1
    assert copy.get_layer("model").get_layer("shared") is copy.get_layer("shared")
    assert_same(model, copy)


def test_inputs_and_outputs_keep_their_structure(float64):
    a, b = keras.Input((6, 7, 4), name="a"), keras.Input((6, 7, 4), name="b")
    x = BatchNormalization()(layers.Conv2D(3, 3, name="conv")(a + b))
    outputs = {"sum": a - b, "norm": x, "list": [layers.ReLU()(x * 2.0)]}
    model = settled(keras.Model({"a": a, "b": b}, outputs))
    copy, report = fold(model)

    assert len(report.folded) == 1
    assert [x.name for x in copy.inputs] == ["a", "b"]
    assert set(copy(data(model))) == {"sum", "norm", "list"}
    assert_same(model, copy)
    assert len(copy.layers) == len(model.layers) - 1


def test_the_model_stays_as_it_is_and_shares_nothing():
    model = functional(lambda x: layers.Dense(2)(convolution()(x)))
    config = model.get_config()
    before = [to_numpy(weight).copy() for weight in model.weights]
    copy, _ = fold(model)
    for weight in copy.weights:
        weight.assign(np.full(weight.shape, 7.0))

    assert model.get_config() == config
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)
    # Of the copy, too, each layer has been called once: here its features are.
    assert keras.Model(copy.inputs, copy.get_layer("conv").output)(data(copy)).shape
    assert not {id(la) for la in copy.layers} & {id(la) for la in model.layers}


def test_weights_in_bfloat16_are_rounded_once():
    dense = layers.Dense(5, dtype="bfloat16", name="dense")
    norm = BatchNormalization(dtype="bfloat16")
    copy, report = fold(sequential(dense, norm, shape=(3,)))
    assert report[0].into == "dense"
    found = copy.get_layer("dense").kernel
    kernel, gamma, variance = (
        to_numpy(weight).astype("float64")
        for weight in (dense.kernel, norm.gamma, norm.moving_variance)
    )
    expected = kernel * gamma / np.sqrt(variance + norm.epsilon)
    assert found.dtype == "bfloat16"
    # Half of the last of 8 bits.
    np.testing.assert_allclose(to_numpy(found), expected, rtol=2.0**-8)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_weights_are_computed_in_float64_and_rounded_once(dtype):
    dense, norm = (
        layers.Dense(5, dtype=dtype, name="dense"),
        BatchNormalization(dtype=dtype),
    )
    model = sequential(dense, norm, shape=(3,))
    copy, report = fold(model)
    kernel, bias, gamma, beta, mean, variance = (
        to_numpy(weight).astype("float64") for weight in (*dense.weights, *norm.weights)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)

    assert len(report.folded) == 1
    found = copy.get_layer("dense")
    assert found.kernel.dtype == "float32"
    np.testing.assert_array_equal(to_numpy(found.kernel), np.float32(kernel * scale))
    np.testing.assert_array_equal(
        to_numpy(found.bias), np.float32(bias * scale + (beta - mean * scale))
    )


def test_weights_that_would_overflow_are_kept():
    norm = BatchNormalization(epsilon=1e-12, dtype="mixed_float16")
    model = sequential(layers.Dense(2, dtype="mixed_float16"), norm, shape=(3,))
    norm.moving_variance.assign(np.array([1e-12, 1.0]))
    assert "overflow" in fold(model)[1][0].reason


def test_masks_reach_what_is_behind():
    inputs = keras.Input((5, 3))
    x = layers.Dense(4, name="dense")(layers.Masking(0.0)(inputs))
    model = settled(keras.Model(inputs, layers.LSTM(2)(BatchNormalization()(x))))
    copy, report = fold(model)
    x = data(model)
    x[0, 3:] = 0.0

    assert [record.into for record in report] == ["dense"]
    np.testing.assert_allclose(to_numpy(copy(x)), to_numpy(model(x)), atol=1e-5)
    # It matters here.
    unmasked = to_numpy(copy(x + 1e-3 * (x == 0)))
    assert np.abs(unmasked - to_numpy(copy(x)))[0].max() > 1e-2


def test_the_copy_is_compiled_and_saved_as_any_model(tmp_path):
    model = functional(lambda x: layers.Dense(2)(convolution(use_bias=False)(x)))
    model.compile("sgd", "mse", metrics=["mae"])
    copy, _ = fold(model)
    x, y = data(model), np.zeros((2, 4, 5, 2))
    np.testing.assert_allclose(
        copy.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-4
    )
    copy.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(copy(x)))


def test_the_report_prints_as_a_table():
    model = functional(
        lambda x: BatchNormalization(name="second")(layers.ReLU()(two_users(x)))
    )
    _, report = fold(model)
    first, second = [record.layer for record in report]
    lines = str(report).splitlines()

    assert (first, second) == ("norm", "second")
    assert lines[0].split() == ["layer", "into", "reason"]
    assert lines[1].startswith("norm ") and lines[1].endswith(report[0].reason)
    assert lines[-1] == "0 of 2 folded" and len(lines) == 4


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = BatchNormalization()

    def call(self, x):
        return self.norm(x)


class Twice(keras.Model):
    def call(self, *args, **kwargs):
        return 2.0 * super().call(*args, **kwargs)


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(ValueError, match=r"Functional.*Subclass"):
        fold(Subclass())
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match=r"Functional.*Twice"):
        fold(Twice(inputs, BatchNormalization()(inputs)))
    with pytest.raises(ValueError, match=r"inputs aren't known.*keras.Input"):
        fold(keras.Sequential([layers.Dense(2), BatchNormalization()]))
    with pytest.raises(ValueError, match="no batch normalization"):
        fold(sequential(layers.Dense(2), shape=(3,)))
    for nothing in (None, BatchNormalization(), "model.keras"):
        with pytest.raises(ValueError, match="Functional"):
            fold(nothing)


class Raises(layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        raise KeyError("no config")


def test_layers_that_cannot_be_copied_are_named():
    model = sequential(Raises(name="culprit"), BatchNormalization(), shape=(3,))
    with pytest.raises(ValueError, match=r"culprit.*Raises"):
        fold(model)


def test_other_layers_keep_their_weights():
    """Those that compute something of them, and layers made of layers."""
    scaled = layers.Normalization()
    scaled.adapt(np.random.default_rng(0).normal(3.0, 2.0, (8, 5, 3)))
    inputs = keras.Input((5, 3))
    x = layers.Bidirectional(layers.GRU(2, return_sequences=True))(scaled(inputs))
    model = keras.Model(
        inputs, BatchNormalization()(layers.MultiHeadAttention(2, 3)(x, x))
    )
    copy, report = fold(model)
    assert not report.folded
    assert_same(model, copy, 1e-6)


# Random graphs.


def random_model(seed):
    """A graph of several branches of random layers, some of them shared."""
    rng = np.random.default_rng(seed)
    normalizations = (KERAS, BatchNormalization)
    shared = layers.Conv2D(4, 1)

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    def norm():
        return normalizations[rng.integers(2)](
            center=bool(rng.random() < 0.8), scale=bool(rng.random() < 0.8)
        )

    def layer(channels):
        padding = pick("same", "valid")
        arguments = {
            "padding": padding,
            "use_bias": bool(rng.random() < 0.5),
            "activation": pick(None, None, None, "relu"),
        }
        if padding == "same" and rng.random() < 0.3:
            arguments["dilation_rate"] = 2
        transposed = dict(arguments)
        if BACKEND == "tensorflow":
            # It has no such kernel on a CPU.
            transposed.pop("dilation_rate", None)
        return pick(
            lambda: layers.Conv2D(4, pick(1, 2, 3), groups=pick(1, 2), **arguments),
            lambda: layers.DepthwiseConv2D(2, depth_multiplier=pick(1, 2), **arguments),
            lambda: layers.SeparableConv2D(4, 3, **arguments),
            lambda: layers.Conv2DTranspose(4, pick(1, 2), strides=1, **transposed),
            lambda: layers.Dense(4),
            lambda: layers.EinsumDense("...a,ab->...b", 6, bias_axes="b"),
        )()

    def other():
        return pick(
            lambda: layers.ReLU(),
            lambda: layers.Activation("relu"),
            lambda: layers.Dropout(0.5),
            lambda: layers.MaxPooling2D(2, 1, padding=pick("same", "valid")),
            lambda: layers.AveragePooling2D(2, 1, padding=pick("same", "valid")),
            lambda: layers.ZeroPadding2D(1),
            lambda: layers.UpSampling2D(2),
            lambda: layers.Permute((2, 1, 3)),
            lambda: layers.Activation("linear"),
        )()

    inputs = keras.Input((9, 9, 4))
    tensors = [inputs]
    for _ in range(14):
        x = tensors[rng.integers(max(0, len(tensors) - 3), len(tensors))]
        if min(x.shape[1:3]) < 4 or max(x.shape[1:3]) > 24:
            x = inputs
        kind = rng.random()
        if kind < 0.4:
            tensors.append(norm()(x))
        elif kind < 0.7:
            tensors.append(layer(x.shape[-1])(x))
        elif kind < 0.75 and x.shape[-1] == 4:
            tensors.append(shared(x))
        elif kind < 0.85:
            same = [t for t in tensors if t.shape[:-1] == x.shape[:-1]]
            tensors.append(layers.Concatenate()([x, same[rng.integers(len(same))]]))
        else:
            tensors.append(other()(x))
    outputs = [tensors[-1], layers.GlobalMaxPooling2D()(tensors[-2])]
    outputs += [norm()(layers.Conv2D(3, 1)(tensors[-3]))]
    return settled(keras.Model(inputs, outputs), seed)


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_compute_the_same(seed, float64):
    model = random_model(seed)
    copy, report = fold(model)
    assert report.folded
    assert len(copy.layers) == len(model.layers) - len(report.folded)
    assert_same(model, copy)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6, 60))
def test_more_random_graphs_compute_the_same(seed, float64):
    model = random_model(seed)
    assert_same(model, fold(model)[0])


# Of how many; all, or those that have no linear layer before them.
APPLICATIONS = {
    "ResNet50": (53, 53),
    "ResNet50V2": (32, 49),
    "MobileNetV2": (52, 52),
    "MobileNetV3Small": (34, 34),
    "EfficientNetB0": (49, 49),
    "DenseNet121": (59, 121),
    "InceptionV3": (94, 94),
    "Xception": (40, 40),
    "NASNetMobile": (192, 192),
}


def application(name, **arguments):
    size = 75 if name in ("InceptionV3", "Xception") else 64
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, **arguments
    )
    rng = np.random.default_rng(0)
    # The statistics that the data have, so that all layers count. With betas about 0 a
    # random network is chaotic: InceptionV3's own rounding is 3e-5 in float32 then.
    for layer in model.layers:
        if isinstance(layer, KERAS):
            layer.momentum = 0.5
            layer.beta.assign(rng.uniform(0.5, 1.5, layer.beta.shape))
    x = rng.normal(size=(2, size, size, 3))
    for _ in range(5):
        model(x, training=True)
    return model


def assert_application_is_folded(name, **arguments):
    model = application(name, **arguments)
    copy, report = fold(model)
    assert (len(report.folded), len(report)) == APPLICATIONS[name], report
    assert_same(model, copy, 1e-5)


def test_a_mobile_network_is_folded_as_a_whole():
    assert_application_is_folded("MobileNetV2", alpha=0.35)


@pytest.mark.full(except_on="torch")
@pytest.mark.parametrize("name", ["ResNet50V2", "DenseNet121"])
def test_networks_keep_what_comes_before_an_activation(name):
    assert_application_is_folded(name)


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [n for n in APPLICATIONS if n not in ("ResNet50V2", "DenseNet121")]
)
def test_networks_are_folded_as_a_whole(name):
    if name == "NASNetMobile" and BACKEND == "torch":
        pytest.skip("Keras 3.15 has no NASNet on PyTorch.")
    assert_application_is_folded(name)
