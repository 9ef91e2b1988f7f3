"""What the linter finds in planted models, and doesn't find in the same without."""

import keras
import numpy as np
import pytest
from networks import BOTH, KERAS, X

import keras_bnx
from keras_bnx import BatchNormalization, check, freeze, recalibrate, statistics_report
from keras_bnx.tools.checks import RULES, SEVERITIES

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype("float32")


def sequential(*parts, data=X):
    """A model with settled statistics, that ends in a layer of its own."""
    shape = data.shape[1:]
    model = keras.Sequential([keras.Input(shape), *parts, layers.Dense(2, name="last")])
    recalibrate(model, data, verbose=0)
    return model


def bn(cls=BatchNormalization, **arguments):
    return cls(name="bn", **arguments)


def bias(bad, cls):
    return sequential(layers.Dense(4, use_bias=bad), bn(cls)), {}


def dropout(bad, cls):
    first = [layers.Dropout(0.2), layers.Dense(4, use_bias=False)]
    between = [] if bad else [layers.LayerNormalization()]
    return sequential(*first, *between, bn(cls)), {}


def axis(bad, cls):
    convolution = layers.Conv2D(4, 3, padding="same", use_bias=False)
    model = sequential(convolution, bn(cls, axis=1 if bad else -1), data=IMAGES)
    return model, {}


def last(bad, cls):
    inputs = keras.Input((8,))
    x = layers.Dense(4, use_bias=False)(inputs)
    x = bn(cls)(x)
    model = keras.Model(inputs, x if bad else layers.Dense(2)(x))
    recalibrate(model, X, verbose=0)
    return model, {}


def softmax(bad, cls):
    model = sequential(bn(cls), layers.Softmax() if bad else layers.ReLU())
    return model, {}


def streams(bad, cls):
    a, b = keras.Input((8,)), keras.Input((8,))
    shared, other = bn(cls), cls()
    x = layers.Add()([shared(a), (shared if bad else other)(b)])
    model = keras.Model([a, b], layers.Dense(2)(x))
    recalibrate(model, [X, X], verbose=0)
    return model, {}


def time_distributed(bad, cls):
    data = np.random.default_rng(0).normal(size=(40, 3, 8)).astype("float32")
    part = layers.TimeDistributed(bn(cls)) if bad else bn(cls)
    return sequential(part, data=data), {}


def half_frozen(bad, cls):
    model = sequential(layers.Dense(4, use_bias=False, name="dense"), bn(cls))
    model.get_layer("dense").trainable = False
    if not bad:
        freeze(model)
    return model, {}


def gamma_frozen(bad, cls):
    model = sequential(bn(cls))
    model.get_layer("bn").gamma.trainable = not bad
    return model, {}


def after_compile(bad, cls):
    model = sequential(bn(cls))
    model.compile("adam", "mse")
    model.fit(X, np.zeros((100, 2)), verbose=0, steps_per_epoch=1)
    recalibrate(model, X, verbose=0)
    if bad:
        model.get_layer("bn").trainable = False
    # The optimizer's few steps are another rule's.
    model.optimizer.iterations.assign(10000)
    return model, {}


def momentum(bad, cls):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100 if bad else 10000)
    return sequential(bn(cls)), {"optimizer": keras.optimizers.SGD(schedule)}


def never_moves(bad, cls):
    return sequential(bn(cls, momentum=1.0 if bad else 0.9)), {}


def steps_made(bad, cls):
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.iterations.assign(100 if bad else 5000)
    return sequential(bn(cls)), {"optimizer": optimizer}


def accumulation(bad, cls):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    momentum = 0.99 if bad else 0.99 ** (1 / 4)
    return sequential(bn(cls, momentum=momentum)), {"optimizer": optimizer}


def epsilons(bad, cls):
    parts = [cls(), layers.ReLU(), bn(cls, epsilon=1e-5 if bad else 1e-3), cls()]
    return sequential(*parts), {}


def few_values(bad, cls):
    return sequential(bn(cls)), {"x": X, "batch_size": 4 if bad else 20}


def one_value(bad, cls):
    return sequential(bn(cls)), {"x": X[: 65 if bad else 64]}


def regularized(bad, cls):
    return sequential(bn(cls, gamma_regularizer="l2" if bad else None)), {}


def mask_lost(bad, cls):
    data = np.random.default_rng(0).integers(1, 9, (40, 5))
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.Conv1D(4, 2, use_bias=False) if bad else layers.ReLU(),
            # What comes behind has lost it, too.
            layers.ReLU(),
            bn(cls),
            layers.Dense(2),
        ]
    )
    recalibrate(model, data, verbose=0)
    return model, {}


def large_mean(bad, cls):
    # Ours takes it; Keras's loses digits.
    x = X + (1e5 if bad else 0.0)
    model = sequential(bn(KERAS), data=x)
    return model, {"x": x}


def stalls(bad, cls):
    dtype = "bfloat16" if bad else "mixed_bfloat16"
    model = keras.Sequential(
        [keras.Input((8,)), bn(KERAS, dtype=dtype), layers.Dense(2)]
    )
    model.get_layer("bn").moving_mean.assign(np.ones(8))
    return model, {}


def not_finite(bad, cls):
    model, x = sequential(bn(cls)), X.copy()
    x[40, 2] = np.nan if bad else 0.0
    return model, {"x": x}


def off(bad, cls):
    return sequential(bn(cls)), {"x": X + (3.0 if bad else 0.0)}


def never_updated(bad, cls):
    model = sequential(bn(cls))
    if bad:
        layer = model.get_layer("bn")
        layer.moving_mean.assign(np.zeros(8))
        layer.moving_variance.assign(np.ones(8))
    return model, {}


def dead(bad, cls):
    model = sequential(bn(cls))
    model.get_layer("bn").gamma.assign([0.0 if bad else 1.0, *[1.0] * 7])
    return model, {}


def below_epsilon(bad, cls):
    x = X * np.float32(1e-3 if bad else 1.0)
    return sequential(bn(cls), data=x), {"x": x}


class Loud(keras.Model):
    def __init__(self, cls, training):
        super().__init__()
        self.norm, self.loud = bn(cls), training

    def call(self, x, training=None):
        return self.norm(x, training=True if self.loud else training)


def moved(bad, cls):
    model = Loud(cls, bad)
    model(X)
    recalibrate(model, X, verbose=0)
    return model, {"x": X}


PLANTED = [
    ("bias-before-normalization", bias, ["dense"]),
    ("dropout-before-normalization", dropout, ["bn"]),
    ("wrong-axis", axis, ["bn"]),
    ("last-layer", last, ["bn"]),
    ("last-layer", softmax, ["bn"]),
    ("several-streams", streams, ["bn"]),
    ("time-distributed", time_distributed, ["bn"]),
    ("half-frozen", half_frozen, ["bn"]),
    ("half-frozen", gamma_frozen, ["bn"]),
    ("changed-after-compile", after_compile, ["bn"]),
    ("slow-momentum", momentum, ["bn"]),
    ("slow-momentum", never_moves, ["bn"]),
    ("slow-momentum", steps_made, ["bn"]),
    ("accumulation", accumulation, ["bn"]),
    ("several-epsilons", epsilons, ["bn"]),
    ("few-values", few_values, ["bn"]),
    ("one-value", one_value, ["bn"]),
    ("regularized", regularized, ["bn"]),
    ("mask-lost", mask_lost, ["bn"]),
    ("large-mean", large_mean, ["bn"]),
    ("keras-defect", stalls, ["bn"]),
    ("not-finite", not_finite, ["bn"]),
    ("statistics-off", off, ["bn"]),
    ("never-updated", never_updated, ["bn"]),
    ("dead-channels", dead, ["bn"]),
    ("below-epsilon", below_epsilon, ["bn"]),
    ("moved-at-inference", moved, ["bn"]),
]
# Rules that two models of one replica can't show have tests of their own.
ELSEWHERE = {"not-synchronized"}


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("rule", "plant", "names"), PLANTED, ids=[f.__name__ for _, f, _ in PLANTED]
)
def test_a_planted_fault_is_found_and_its_cure_is_not(rule, plant, names, cls):
    model, arguments = plant(True, cls)
    found = [f for f in check(model, **arguments) if f.rule == rule]
    assert found, rule
    if names == ["dense"]:
        names = [model.layers[0].name]
    assert found[0].layers == names
    assert found[0].message.endswith(".") and found[0].cure

    keras.utils.clear_session(free_memory=False)
    model, arguments = plant(False, cls)
    assert rule not in [finding.rule for finding in check(model, **arguments)]


def test_every_rule_has_a_planted_model():
    assert {rule for rule, _, _ in PLANTED} | ELSEWHERE == set(RULES)
    assert {severity for severity, _ in RULES.values()} == set(SEVERITIES)


def healthy(cls):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = layers.ReLU()(cls()(x))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.Add()([x, cls()(y)])
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("adam", "mse")
    recalibrate(model, IMAGES, verbose=0)
    return model


@pytest.mark.parametrize("cls", BOTH)
def test_a_healthy_model_has_no_findings(cls):
    found = check(healthy(cls), IMAGES, batch_size=16)

    assert list(found) == [] and found.errors == []
    assert str(found) == "0 errors, 0 warnings, 0 notes"


def test_errors_come_first_and_print_what_to_do():
    model, arguments = one_value(True, KERAS)
    model.get_layer("bn").gamma.assign([0.0, *[1.0] * 7])
    found = check(model, **arguments)

    order = [SEVERITIES.index(finding.severity) for finding in found]
    assert order == sorted(order) and found.errors[0].rule == "one-value"
    text = str(found)
    assert text.startswith("error: one-value [bn]\n  A batch has one value")
    assert "1 error, " in text and text.endswith("2 notes")


def test_what_is_harmless_in_our_layer_is_no_error():
    model, arguments = one_value(True, BatchNormalization)
    (found,) = [f for f in check(model, **arguments) if f.rule == "one-value"]
    assert found.severity == "info"
    model = sequential(bn(), data=X + 1e5)
    assert "large-mean" not in [f.rule for f in check(model, X + 1e5)]


MASKED = np.random.default_rng(0).normal(size=(8, 5, 4)).astype("float32")


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        ({"axis": 1}, MASKED, "aligns a mask with the last axis only"),
        ({}, 0 * MASKED, "masked as a whole"),
        ({"dtype": "float64"}, MASKED, "computes in float32 here"),
    ],
)
def test_what_keras_layer_gets_wrong_is_told(arguments, data, message):
    def found(cls, data):
        parts = layers.Masking(), bn(cls, **arguments), layers.Dense(2)
        model = keras.Sequential([keras.Input(data.shape[1:]), *parts])
        return [f.message for f in check(model, data) if f.rule == "keras-defect"]

    # TensorFlow's kernels know float64.
    expected = "dtype" not in arguments or keras.config.backend() != "tensorflow"
    (told,) = found(KERAS, data) or [""]
    assert (message in told) == expected, told
    assert not found(BatchNormalization, data)


def test_what_is_recalibrated_after_few_steps_is_not_slow():
    model, arguments = steps_made(True, BatchNormalization)
    assert "slow-momentum" not in [f.rule for f in check(model, X, **arguments)]


def test_several_streams_show_without_a_graph():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = bn()

        def call(self, x):
            return self.norm(x) + self.norm(2 * x)

    model = Twice()
    model(X)
    found = {finding.rule: finding.layers for finding in check(model, X)}
    assert found["several-streams"] == ["bn"]


def test_a_report_serves_as_data(monkeypatch):
    model, arguments = off(True, BatchNormalization)
    report = statistics_report(model, arguments["x"], verbose=0)
    monkeypatch.setattr("keras_bnx.tools.report.observe", None)

    assert "statistics-off" in [finding.rule for finding in check(model, report)]
    keras.utils.clear_session(free_memory=False)
    other = keras.Sequential([keras.Input((8,)), BatchNormalization(name="other")])
    with pytest.raises(ValueError, match="a report of bn"):
        check(other, report)


def test_nested_models_are_looked_into():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="inner_dense"), bn()]
    )
    inputs = keras.Input((8,))
    x = layers.Dropout(0.5)(layers.Dense(4)(inputs))
    model = keras.Model(inputs, layers.Softmax()(inner(x)))
    found = {finding.rule: finding.layers for finding in check(model)}

    # Through the border of the model, in both directions.
    assert found["bias-before-normalization"] == ["inner_dense"]
    assert found["dropout-before-normalization"] == ["bn"]
    assert found["last-layer"] == ["bn"]


def test_weight_decay_is_mentioned():
    model = sequential(bn())
    optimizer = keras.optimizers.AdamW(weight_decay=0.01)
    (found,) = [f for f in check(model, optimizer=optimizer) if f.rule == "regularized"]
    assert "weight_decay=0.01" in found.message and found.layers == []


def test_replicas_that_are_not_synchronized(monkeypatch):
    from keras_bnx.backends.contract import Replicas

    model = sequential(bn())
    report = statistics_report(model, X, verbose=0)
    monkeypatch.setattr(
        keras_bnx.backends.active(),
        "replicas",
        lambda axis_name: Replicas(2, 0, lambda x: x, True),
    )
    found = {f.rule: f for f in check(model, report)}
    assert found["not-synchronized"].layers == ["bn"]
    assert found["not-synchronized"].message.startswith("2 replicas")
    model.get_layer("bn").synchronized = True
    assert "not-synchronized" not in [f.rule for f in check(model, report)]


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="no batch normalization"):
        check(keras.Sequential([keras.Input((8,)), layers.ReLU()]))
    with pytest.raises(ValueError, match="isn't built"):
        check(keras.Sequential([BatchNormalization()]))


APPLICATIONS = {
    "MobileNetV2": {"never-updated"},
    "ResNet50": {"never-updated", "bias-before-normalization"},
    # Its stochastic depth drops whole branches of examples.
    "EfficientNetB0": {"never-updated", "dropout-before-normalization"},
    "DenseNet121": {"never-updated"},
    "InceptionV3": {"never-updated"},
    "Xception": {"never-updated"},
    "MobileNetV3Small": {"never-updated"},
    "NASNetMobile": {"never-updated"},
    "ResNet50V2": {"never-updated"},
}


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        *(
            pytest.param(name, marks=pytest.mark.full(except_on="jax"))
            for name in APPLICATIONS
            if name != "MobileNetV2"
        ),
    ],
)
def test_applications_have_what_is_true_of_them(name):
    application = getattr(keras.applications, name)
    model = application(weights=None, input_shape=(96, 96, 3), classes=10)

    assert {finding.rule for finding in check(model)} == APPLICATIONS[name]
