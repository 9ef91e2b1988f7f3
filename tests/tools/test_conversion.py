"""Models with other batch normalization, and the same weights."""

import re

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy

from keras_bnx import BatchNormalization, convert, freeze, renorm_schedule, revert
from keras_bnx.tools.models import batch_normalizations

KERAS = keras.layers.BatchNormalization
X = np.random.default_rng(0).normal(3.0, 2.0, (16, 4, 3)).astype("float32")


def trained(cls, **arguments):
    """A Functional model with a Sequential one in it, and a shared layer."""
    shared = cls(name="shared", **arguments)
    inner = keras.Sequential(
        [keras.layers.Dense(5), cls(name="inner", **arguments)], name="nested"
    )
    inputs = keras.Input((4, 3))
    x = shared(keras.layers.Dense(3)(shared(inputs)))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(inner(x)))
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(np.random.default_rng(1).uniform(0.5, 1.5, weight.shape))
    model(X, training=True)
    return model


@keras.saving.register_keras_serializable("tests")
class Doubled(KERAS):
    """A user's layer with another `call`."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


@keras.saving.register_keras_serializable("tests")
class Named(BatchNormalization):
    """A user's layer with an argument of its own."""

    def __init__(self, label="", **kwargs):
        super().__init__(**kwargs)
        self.label = label

    def get_config(self):
        return {**super().get_config(), "label": self.label}


@pytest.mark.parametrize("first", [KERAS, BatchNormalization])
def test_there_and_back_keeps_all_but_the_arguments(first):
    model = trained(first, momentum=0.75)
    there = convert(model, synchronized=True)
    back = convert(there, synchronized=False)

    layers = batch_normalizations(there)
    assert {layer.name for layer in layers} == {"shared", "inner"}
    assert all(layer.synchronized is True for layer in layers)
    assert all(layer.momentum == 0.75 for layer in layers)
    assert not any(layer.synchronized for layer in batch_normalizations(back))
    for other in (there, back):
        assert all(type(la) is BatchNormalization for la in batch_normalizations(other))
        for a, b in zip(model.weights, other.weights, strict=True):
            # On its own, and not the same array.
            assert a is not b
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
        np.testing.assert_allclose(
            to_numpy(other(X)), to_numpy(model(X)), rtol=1e-5, atol=1e-5
        )
    before = to_numpy(model.get_layer("shared").moving_mean).copy()
    there(X, training=True)
    np.testing.assert_array_equal(
        to_numpy(model.get_layer("shared").moving_mean), before
    )


def test_options_start_from_the_moving_statistics():
    model = trained(KERAS)
    other = convert(model, renorm=True, debias_moving_statistics=True)

    found = statistics(other.get_layer("shared"))
    np.testing.assert_array_equal(found["renorm_mean"], found["moving_mean"])
    np.testing.assert_allclose(
        to_numpy(other(X)), to_numpy(model(X)), rtol=1e-5, atol=1e-5
    )


def test_what_averages_know_and_what_is_frozen_is_kept():
    model = trained(BatchNormalization, momentum=None)
    freeze(model, affine=False)
    other = convert(model, epsilon=0.5)

    for name in ("shared", "nested"):
        old, new = model.get_layer(name), other.get_layer(name)
        if name == "nested":
            old, new = old.get_layer("inner"), new.get_layer("inner")
        assert new.epsilon == 0.5 and new.frozen == ("statistics",)
        updates = statistics(old)["mean_updates"]
        assert updates.min() >= 1
        np.testing.assert_array_equal(statistics(new)["mean_updates"], updates)


@pytest.mark.parametrize(
    ("first", "arguments"), [(KERAS, {}), (BatchNormalization, {"momentum": None})]
)
@pytest.mark.parametrize("fitted", ["model", "copy"])
def test_training_one_leaves_the_other_as_it_was(first, fitted, arguments):
    def pair():
        model = trained(first, **arguments)
        pair = [model, convert(model)]
        return pair if fitted == "model" else pair[::-1]

    # Of another, equal pair: what predicts once has arrays of its own from then on.
    before = pair()[1].predict(X, verbose=0)
    one, other = pair()
    # Compiled, Keras donates the arrays of one model on JAX.
    one.predict(X, verbose=0)
    one.compile("sgd", "mse")
    one.fit(X, np.zeros((16, 4, 5), "float32"), verbose=0)

    np.testing.assert_array_equal(other.predict(X, verbose=0), before)
    assert np.abs(one.predict(X, verbose=0) - before).max() > 1e-3


@pytest.mark.parametrize("layer", [Doubled, Named])
def test_subclasses_are_kept(layer):
    arguments = {"label": "mine"} if layer is Named else {}
    kept = layer(momentum=0.5, name="kept", **arguments)
    model = keras.Sequential([keras.Input((4, 3)), kept, KERAS(name="theirs")])
    model(X, training=True)
    before = to_numpy(model(X))
    copy = convert(model, momentum=0.75)
    found = copy.get_layer("kept")

    assert type(found) is layer and found is not kept
    assert found.get_config() == kept.get_config()
    assert copy.get_layer("theirs").momentum == 0.75
    np.testing.assert_allclose(to_numpy(copy(X)), before, rtol=1e-5, atol=1e-6)


def test_a_kept_subclass_keeps_its_counts():
    kept = Named(momentum=None, name="kept")
    model = keras.Sequential([keras.Input((4, 3)), kept, KERAS()])
    for _ in range(3):
        model(X, training=True)
    copy = convert(model)

    updates = statistics(copy.get_layer("kept"))["mean_updates"]
    np.testing.assert_array_equal(updates, np.full(3, 3.0))


def test_what_a_layer_computes_from_its_weights_is_kept():
    scaled = keras.layers.Normalization()
    scaled.adapt(X)
    model = keras.Sequential([keras.Input((4, 3)), scaled, KERAS()])

    np.testing.assert_allclose(
        to_numpy(convert(model)(X)), to_numpy(model(X)), rtol=1e-5, atol=1e-6
    )


def two_inputs(structure):
    a, b = keras.Input((3,)), keras.Input((3,), name="named", optional=True)
    outputs = KERAS()(keras.layers.Dense(3)(a))
    if structure == "dict":
        a, b = (keras.Input((3,), name=name) for name in ("a", "named"))
        outputs = {"sum": KERAS()(a + b)}
        return keras.Model({"named": b, "a": a}, outputs)
    return keras.Model((a, b) if structure == "tuple" else [a, b], outputs)


@pytest.mark.parametrize("structure", ["list", "tuple", "dict"])
def test_inputs_keep_their_names_and_structure(structure):
    model = two_inputs(structure)
    copy = convert(model)
    x = np.ones((2, 3), "float32")

    def configs(model):
        found = [la for la in model.layers if isinstance(la, keras.layers.InputLayer)]
        return {layer.name: layer.get_config() for layer in found}

    assert [la.name for la in copy.layers] == [la.name for la in model.layers]
    assert len(configs(model)) == 2
    assert configs(copy) == configs(model)
    data = keras.tree.map_structure(lambda _: x, model.input)
    assert type(copy.input) is type(model.input)
    old, new = keras.tree.flatten(model(data)), keras.tree.flatten(copy(data))
    np.testing.assert_allclose(to_numpy(new[0]), to_numpy(old[0]), rtol=1e-6)
    assert copy.output_names == model.output_names


def test_inputs_of_sequential_models_keep_their_names():
    layers = [keras.Input((3,), name="table"), KERAS()]
    copy = convert(keras.Sequential(layers))
    assert copy.inputs[0].name == "table"

    called = keras.Sequential([KERAS()])
    called(X)
    assert convert(called).input_shape == called.input_shape == (16, 4, 3)


def test_what_is_shared_stays_shared():
    """A layer in two nested models, and one of these called twice."""
    shared, inputs = KERAS(name="shared"), keras.Input((3,))
    first = keras.Model(inputs, shared(inputs), name="first")
    second = keras.Sequential([keras.Input((3,)), shared], name="second")
    model = keras.Model(inputs, first(second(first(inputs))))
    copy = convert(model)

    assert len(copy.weights) == len(model.weights) == 4
    found = [copy.get_layer(name).get_layer("shared") for name in ("first", "second")]
    assert found[0] is found[1]
    assert copy.get_layer("first").layers[0].name == first.layers[0].name


def test_what_trains_is_kept():
    model = trained(KERAS)
    model.get_layer("nested").trainable = False
    model.get_layer("nested").layers[0].trainable = True
    model.trainable = False
    model.get_layer("shared").trainable = True
    copy = convert(model)

    def trains(layer):
        inside = [trains(la) for la in getattr(layer, "layers", [])]
        return [layer.name, layer.trainable, *inside]

    assert trains(copy) == trains(model)
    assert not copy.trainable_weights
    copy.trainable = True
    assert copy.get_layer("nested").trainable


def test_a_compiled_models_copy_is_compiled():
    model = trained(KERAS)
    assert not convert(model).compiled
    model.compile("adam", "mse")
    model.fit(X, np.zeros((16, 4, 5), "float32"), verbose=0)
    copy = convert(model)

    assert copy.compiled and type(copy.optimizer) is type(model.optimizer)
    assert int(copy.optimizer.iterations) == 0


def test_models_that_are_not_built_have_no_weights_to_copy():
    model = convert(keras.Sequential([keras.layers.Dense(2), KERAS()]), momentum=0.5)
    assert model(X).shape == (16, 4, 2)
    assert model.layers[1].momentum == 0.5


def test_what_cannot_be_converted_is_named():
    class Subclass(keras.Model):
        pass

    with pytest.raises(ValueError, match="Subclass"):
        convert(Subclass())
    with pytest.raises(ValueError, match="alone"):
        convert(KERAS(name="alone"))
    with pytest.raises(ValueError, match="no batch normalization"):
        convert(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="momentum=2"):
        convert(trained(KERAS), momentum=2)
    with pytest.raises(ValueError, match="moment"):
        convert(trained(KERAS), moment=0.5)


class Raises(keras.layers.Layer):
    def get_config(self):
        raise KeyError("no config")


@keras.saving.register_keras_serializable("tests")
class Grows(keras.layers.Layer):
    """Its config doesn't say how many weights it has."""

    def __init__(self, count=1, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def build(self, shape):
        self.all = [self.add_weight(name=f"{i}", shape=()) for i in range(self.count)]

    def call(self, x):
        return x

    def get_config(self):
        return {"name": self.name}


class Required(BatchNormalization):
    def __init__(self, needed, **kwargs):
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    "layer",
    [
        Raises(name="culprit"),
        Grows(2, name="culprit"),
        Required(1, name="culprit"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_cannot_be_copied_are_named(layer):
    model = keras.Sequential([keras.Input((3,)), layer, KERAS()])
    with pytest.raises(ValueError, match=f"culprit.*{type(layer).__name__}"):
        convert(model)


class Own(keras.Sequential):
    pass


class Constructed(keras.Model):
    def __init__(self, size):
        inputs = keras.Input((size,))
        super().__init__(inputs, KERAS()(inputs), name="constructed")


@pytest.mark.parametrize("nested", [False, True])
def test_models_that_would_lose_their_class_are_named(nested):
    for model in (Constructed(3), Own([keras.Input((3,)), KERAS()], name="own")):
        plain = keras.Model(model.inputs, model.outputs)
        if nested:
            inputs = keras.Input((3,))
            model = keras.Model(inputs, model(inputs))
        with pytest.raises(ValueError, match=r"constructed.*Constructed|own.*Own"):
            convert(model)
        # What the message says.
        assert convert(plain)(np.ones((2, 3))).shape == (2, 3)


def test_a_model_of_subclasses_alone_is_refused():
    model = keras.Sequential([keras.Input((3,)), Doubled(name="doubled")])
    with pytest.raises(ValueError, match=r"doubled.*Doubled"):
        convert(model)


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """Layers as attributes and in containers, of which some are named by Keras."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = KERAS()
        self.dense = keras.layers.Dense(units)
        self.pair = [KERAS(name="second"), (keras.layers.Dense(units), KERAS())]
        self.by_name = {"last": KERAS(), "again": self.first}

    def call(self, x, training=None):
        x = self.dense(self.first(x, training=training))
        x = self.pair[1][0](self.pair[0](x, training=training))
        x = self.by_name["last"](self.pair[1][1](x, training=training))
        return self.by_name["again"](x, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class NoConfig(Block):
    """Keras can't copy it, but a model's constructor can make it."""

    def __init__(self, units, thing):
        super().__init__(units)
        self.thing = thing

    def get_config(self):
        raise NotImplementedError("no config")


@keras.saving.register_keras_serializable("tests")
class Network(keras.Model):
    """A subclassed model with all kinds of layers in it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        inputs = keras.Input((4, 3))
        self.graph = keras.Model(inputs, KERAS()(keras.layers.Dense(3)(inputs)))
        self.block = Block(3)
        self.other = NoConfig(3, thing=object())
        self.wrapped = keras.layers.TimeDistributed(KERAS(momentum=0.75))
        self.head = keras.layers.Dense(2)

    def call(self, x, training=None):
        x = self.block(self.graph(x, training=training), training=training)
        x = self.wrapped(self.other(x, training=training), training=training)
        return self.head(x)


@keras.saving.register_keras_serializable("tests")
class Cell(keras.layers.Layer):
    """A recurrent cell that normalizes its state."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.dense, self.norm = keras.layers.Dense(units), KERAS()

    def build(self, shape):
        self.dense.build((*shape[:-1], shape[-1] + self.units))
        self.norm.build((*shape[:-1], self.units))

    def call(self, x, states, training=None):
        x = keras.ops.concatenate([x, states[0]], -1)
        x = self.norm(self.dense(x), training=training)
        return x, [x]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def wrapped_network():
    return keras.Sequential(
        [
            keras.Input((4, 3)),
            keras.layers.TimeDistributed(KERAS(momentum=0.75)),
            Block(3),
            keras.layers.Bidirectional(keras.layers.RNN(Cell(3))),
            KERAS(),
        ]
    )


def nested_network():
    """A model in a wrapper, a layer shared between graph and wrapper."""
    inputs, shared = keras.Input((4, 3)), KERAS(momentum=0.75, name="shared")
    inside = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), KERAS()])
    x = keras.layers.TimeDistributed(inside)(shared(inputs))
    return keras.Model(inputs, keras.layers.TimeDistributed(shared)(x))


def paths(weights):
    """Names of weights; Keras gives the layer that it can't copy a name of its own."""
    return [re.sub(r"no_config_\d+", "no_config", weight.path) for weight in weights]


NETWORKS = pytest.mark.parametrize(
    "network", [Network, wrapped_network, nested_network], ids=lambda f: f.__name__
)


def with_random_weights(network):
    model, rng = network(), np.random.default_rng(3)
    model(X)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


@NETWORKS
def test_layers_in_layers_are_converted_and_reverted(network):
    model = with_random_weights(network)
    before = [to_numpy(w) for w in model.weights]
    names = sorted(layer.name for layer in batch_normalizations(model))
    y = to_numpy(model(X))
    there = convert(model, epsilon=1e-3)
    back = revert(there)

    for copy, cls in ((there, BatchNormalization), (back, KERAS)):
        found = batch_normalizations(copy)
        assert {type(layer) for layer in found} == {cls}
        assert sorted(layer.name for layer in found) == names
        assert sum(layer.momentum == 0.75 for layer in found) == 1
        assert paths(copy.weights) == paths(model.weights)
        for a, b in zip(before, copy.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(b), a)
        np.testing.assert_allclose(to_numpy(copy(X)), y, rtol=1e-5, atol=1e-5)
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(b), a)


def test_copies_of_layers_in_layers_train_by_themselves():
    # Ours, since Keras's can't be trained in `TimeDistributed` on PyTorch.
    model = convert(with_random_weights(Network))
    # Compiled, it took TensorFlow a minute.
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(X, np.zeros(model(X).shape), verbose=0)
    slots = [to_numpy(v) for v in model.optimizer.variables]
    before = [to_numpy(w) for w in model.weights]
    copy = convert(model)
    copy.fit(X, np.zeros(model(X).shape), verbose=0)

    assert copy.compiled and int(copy.optimizer.iterations) == 1
    for a, b in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(b), a)
    for a, b, c in zip(before, model.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(b), a)
        # What only scales and shifts before another normalization has no gradient.
        assert "moving" not in c.path or (to_numpy(c) != a).any(), c.path
    assert (to_numpy(copy.weights[-1]) != before[-1]).any()


def test_what_trains_in_layers_in_layers_is_kept():
    model = with_random_weights(Network)
    model.block.dense.trainable = model.other.first.trainable = False
    copy = convert(model)
    assert not copy.block.dense.trainable and not copy.other.first.trainable
    assert paths(copy.trainable_weights) == paths(model.trainable_weights)
    trainable = len(model.trainable_weights)
    assert trainable == len(with_random_weights(Network).trainable_weights) - 4


@keras.saving.register_keras_serializable("tests")
class Twins(keras.layers.Layer):
    """Two normalizations, which may be one; its config has each."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def build(self, shape):
        for layer in {self.first, self.second}:
            layer.build(shape)

    def call(self, x, training=None):
        return self.second(self.first(x, training=training), training=training)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        own = {name: serialize(getattr(self, name)) for name in ("first", "second")}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        for name in ("first", "second"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def test_a_layer_that_is_two_arguments_stays_one():
    layer = KERAS(momentum=0.5)
    model = keras.Sequential([keras.Input((3,)), Twins(layer, layer), KERAS()])
    copy = convert(model)
    converted = copy.layers[0]
    assert converted.second is converted.first is not layer
    assert type(converted.first) is BatchNormalization
    assert paths(copy.weights) == paths(model.weights)
    x = X[:, 0]
    np.testing.assert_allclose(to_numpy(copy(x)), to_numpy(model(x)), rtol=1e-6)


def test_layers_that_were_never_called_stay_unbuilt():
    class Half(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.unused = KERAS(name="used"), KERAS(name="unused")

        def call(self, x):
            return self.used(x)

        def get_config(self):
            return {}

        def build(self, shape):
            self.used.build(shape)

        def build_from_config(self, config):
            if self.fails:
                raise RuntimeError("no weights today")
            self.build((None, 3))

    Half.fails = False
    model = Half()
    model(X[:, 0])
    copy = convert(model)
    assert type(copy.unused) is BatchNormalization and not copy.unused.built
    np.testing.assert_allclose(to_numpy(copy(X[:, 0])), to_numpy(model(X[:, 0])), 1e-6)
    Half.fails = True
    with pytest.raises(ValueError, match=r"Half.*no weights today"):
        convert(model)


class MakesLate(keras.layers.Layer):
    def build(self, shape):
        self.late = KERAS(name="late")
        self.late.build(shape)

    def call(self, x, training=None):
        return self.late(x, training=training)


def test_normalizations_made_in_build_are_named():
    model = keras.Sequential([keras.Input((3,)), MakesLate(), KERAS()])
    with pytest.raises(ValueError, match=r"late.*constructor"):
        convert(model)


@pytest.mark.parametrize("arguments", [{}, {"renorm": True, "momentum": 0.75}])
def test_reverted_layers_are_what_they_were(arguments):
    """Config by config, and bit by bit, in both orders."""
    model = trained(KERAS, **arguments)
    there = convert(model)
    back = revert(there)
    again = convert(back)

    for a, b in ((model, back), (there, again)):
        assert a.get_config() == b.get_config()
        assert type(a.get_layer("shared")) is type(b.get_layer("shared"))
        for v, w in zip(a.weights, b.weights, strict=True):
            assert v is not w and v.path == w.path
            np.testing.assert_array_equal(to_numpy(v), to_numpy(w))
    assert type(back.get_layer("shared")) is KERAS
    np.testing.assert_allclose(
        to_numpy(back(X)), to_numpy(model(X)), rtol=1e-5, atol=1e-5
    )


def test_all_that_keras_lacks_is_listed():
    lacking = {
        "axes": {"axis": (1, 2)},
        "momentum": {"momentum": None},
        "ghosts": {"virtual_batch_size": 2},
        "divisor": {"unbiased_moving_variance": True},
        "debiased": {"debias_moving_statistics": True},
        "groups": {"synchronized": 2},
        "named": {"axis_name": "replicas"},
        "limits": {"renorm": True, "renorm_clipping": renorm_schedule()},
        "narrow": {"dtype": "float16"},
    }
    layers = [BatchNormalization(name=name, **a) for name, a in lacking.items()]
    half = BatchNormalization(name="half")
    half.freeze(affine=False)
    fine = [
        BatchNormalization(name="fine", momentum=0.5, dtype="mixed_float16"),
        KERAS(name="theirs"),
    ]
    model = keras.Sequential([*layers, half, Named(name="class"), *fine])
    with pytest.raises(ValueError, match="can't express") as error:
        revert(model)
    message = str(error.value)

    for expected in (
        "'axes' with axis=(1, 2);",
        "'momentum' with momentum=None;",
        "'ghosts' with virtual_batch_size=2;",
        "'divisor' with unbiased_moving_variance=True;",
        "'debiased' with debias_moving_statistics=True;",
        "'groups' with synchronized=2;",
        "'named' with axis_name='replicas';",
        "'limits' with renorm_clipping={",
        "'narrow' with dtype='float16';",
        "'half' with frozen=('statistics',);",
        "'class' with the class Named",
    ):
        assert (expected in message) or (expected[:-1] + "." in message), expected
    assert "fine" not in message and "theirs" not in message
    plain = convert(keras.Sequential(layers[1:2]), momentum=0.5)
    assert type(revert(plain).layers[0]) is KERAS


def test_synchronized_layers_are_reverted_where_keras_has_them():
    model = keras.Sequential([keras.Input((3,)), BatchNormalization(synchronized=True)])
    if keras.config.backend() == "tensorflow":
        assert revert(model).layers[0].synchronized is True
    else:
        with pytest.raises(ValueError, match="synchronized=True"):
            revert(model)


def test_layers_frozen_as_a_whole_do_not_train_when_reverted():
    model = trained(BatchNormalization)
    freeze(model.get_layer("shared"))
    layer = revert(model).get_layer("shared")
    assert layer.trainable is False and not layer.trainable_weights
    before = to_numpy(layer.moving_mean)
    layer(X, training=True)
    np.testing.assert_array_equal(to_numpy(layer.moving_mean), before)


def activated(cls=BatchNormalization):
    """A network in which some activations can be fused, and some can't."""
    shared = keras.layers.ReLU(name="shared_relu")
    inner = keras.Sequential(
        [
            keras.Input((4, 3), name="inner_x"),
            cls(name="inner"),
            keras.layers.ELU(0.5, name="inner_elu"),
        ],
        name="nested",
    )
    inputs = keras.Input((4, 3), name="x")
    a = shared(cls(name="a")(inputs))
    b = shared(cls(name="b")(a))
    c = keras.layers.Activation("silu", name="c_silu")(inner(b))
    used_twice = cls(name="used_twice")(c)
    d = keras.layers.ReLU(name="d_relu")(used_twice)
    soft = keras.layers.Softmax(name="soft")(cls(name="unknown")(d))
    wide = keras.layers.ReLU(name="wide", dtype="float64")(cls(name="narrow")(soft))
    twice = cls(name="twice")
    e = keras.layers.ReLU(name="e_relu")(twice(twice(soft)))
    outputs = cls(name="put_out")(keras.layers.Add(name="add")([used_twice, e]))
    f = keras.layers.LeakyReLU(0.3, name="f_relu")(outputs)
    model = keras.Model(inputs, [outputs, f, wide], name="model")
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).uniform(0.5, 1.5, weight.shape))
    return model


@pytest.mark.parametrize("cls", [KERAS, BatchNormalization])
def test_activations_are_fused_and_taken_apart_again(cls):
    model = activated(cls)
    fused = convert(model, fuse_activations=True)
    back = revert(fused)

    activations = {
        layer.name: layer.activation.name
        for layer in batch_normalizations(fused)
        if layer.activation is not keras.activations.linear
    }
    assert activations == {"a": "shared_relu", "b": "shared_relu", "inner": "inner_elu"}
    gone = {"shared_relu", "inner_elu"}
    assert {la.name for la in model.layers} - {la.name for la in fused.layers} == (
        gone - {"inner_elu"}
    )
    plain = activated(KERAS)
    assert [la.name for la in back.layers] == [la.name for la in plain.layers]
    assert back.get_config() == plain.get_config()
    for y, expected, again in zip(fused(X), model(X), back(X), strict=True):
        np.testing.assert_allclose(
            to_numpy(y), to_numpy(expected), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            to_numpy(again), to_numpy(expected), rtol=1e-5, atol=1e-5
        )
    # A file has a copy of the shared activation for each; they need names.
    copy = keras.models.clone_model(fused)
    names = [layer.name for layer in revert(copy).layers]
    assert {"shared_relu", "b_shared_relu"} <= set(names)
    # Fused once, an activation stays through other conversions.
    again = convert(fused, momentum=0.5)
    assert again.get_layer("a").activation.name == "shared_relu"


def test_a_second_activation_stays_a_layer():
    layers = [BatchNormalization(activation="elu", name="bn"), keras.layers.ReLU()]
    model = keras.Sequential([keras.Input((3,)), *layers])
    fused = convert(model, fuse_activations=True)
    assert len(fused.layers) == 2
    x = X[:, 0] - 3.0
    np.testing.assert_allclose(to_numpy(fused(x)), to_numpy(model(x)), rtol=1e-6)


def test_a_sequential_model_keeps_its_inputs_name_and_dtype():
    """Servers and `fit` with dictionaries know inputs by their names."""
    start = keras.Input((3,), dtype="float64", name="pixels")
    model = keras.Sequential([start, KERAS(name="bn"), keras.layers.ReLU(name="relu")])
    fused = convert(model, fuse_activations=True)
    (found,) = keras.Model(fused.inputs, fused.outputs).inputs
    assert (found.name, found.dtype, found.shape) == ("pixels", "float64", (None, 3))
    assert revert(fused).get_config() == model.get_config()

    unnamed = keras.Sequential([keras.Input((3,)), *model.layers])
    back = revert(convert(unnamed, fuse_activations=True))
    assert back.get_config() == unnamed.get_config()


class Power(keras.layers.Layer):
    """Its config leaves an argument out."""

    def __init__(self, exponent, **kwargs):
        super().__init__(**kwargs)
        self.exponent = exponent

    def call(self, x):
        return x**self.exponent

    def get_config(self):
        return {"name": self.name}


def test_an_activation_that_cannot_be_copied_is_named():
    layer = BatchNormalization(activation=Power(3, name="culprit"))
    with pytest.raises(ValueError, match=r"culprit.*Power"):
        revert(keras.Sequential([keras.Input((3,)), layer]))


def test_a_function_becomes_a_layer_behind():
    layer = BatchNormalization(activation="relu", name="bn")
    model = keras.Sequential([keras.Input((3,)), layer])
    back = revert(model)
    assert [la.name for la in back.layers] == ["bn", "bn_relu"]
    x = X[:, 0]
    inputs = keras.Input((3,))
    twice = revert(keras.Model(inputs, layer(layer(inputs))))
    np.testing.assert_allclose(to_numpy(twice(x)), to_numpy(layer(layer(x))), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(back(x)), to_numpy(model(x)), rtol=1e-6)


def test_the_weights_of_an_activation_are_kept():
    layer = BatchNormalization(activation=keras.layers.PReLU(name="prelu"))
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.activation.alpha.assign([0.1, 0.2, 0.3])
    x = X[:, 0] - 3.0
    for copy in (convert(model, momentum=0.5), revert(model)):
        np.testing.assert_allclose(to_numpy(copy(x)), to_numpy(model(x)), rtol=1e-6)


def test_activations_that_cannot_be_moved_are_named():
    unknown = keras.Sequential([BatchNormalization(), keras.layers.ReLU()])
    with pytest.raises(ValueError, match=r"inputs are known.*Begin it"):
        convert(unknown, fuse_activations=True)
    unknown = keras.Sequential([BatchNormalization(activation="relu", name="bn")])
    with pytest.raises(ValueError, match="'bn' with activation="):
        revert(unknown)
    inside = keras.layers.TimeDistributed(BatchNormalization(activation="relu"))
    with pytest.raises(ValueError, match="with activation="):
        revert(keras.Sequential([keras.Input((4, 3)), inside]))
