"""What the layer does beside its arithmetic: arguments, modes, dtypes, weights."""

import inspect

import keras
import numpy as np
import pytest
from frameworks import (
    functional,
    gradients,
    statistics,
    to_numpy,
    with_gradients,
)
from keras import ops
from tolerance import assert_near, kappa

from keras_bnx import (
    BatchNormalization,
    explain_implementation,
    force_implementation,
)
from keras_bnx.reference import Arguments, State, batch_normalization

# An eager gradient on JAX is 50 small compilations.
HOW = "compiled" if keras.config.backend() == "jax" else "eager"
POLICIES = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"]


def random(*shape, mean=0.0, std=1.0):
    return np.random.default_rng(0).normal(mean, std, shape).astype("float32")


def built(channels=3, **arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, channels))
    return layer


def bare(parameter):
    """A parameter by name, kind and default; hints are ours alone."""
    return parameter.replace(annotation=inspect.Parameter.empty)


def test_arguments_are_keras_arguments_in_order_and_then_keywords():
    theirs = inspect.signature(keras.layers.BatchNormalization.__init__).parameters
    ours = inspect.signature(BatchNormalization.__init__).parameters
    keywords = {
        "virtual_batch_size": None,
        "unbiased_moving_variance": False,
        "debias_moving_statistics": False,
        "axis_name": None,
        "activation": None,
    }

    same = [bare(p) for n, p in ours.items() if n not in keywords]
    assert same == [bare(p) for p in theirs.values()]
    for name, default in keywords.items():
        assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert ours[name].default is default
    calls = BatchNormalization.call, keras.layers.BatchNormalization.call
    ours, theirs = (inspect.signature(call).parameters.values() for call in calls)
    assert [*map(bare, ours)] == [*map(bare, theirs)]


@pytest.mark.parametrize("renorm", [False, True])
def test_config_and_weights_are_keras(renorm):
    arguments = {"renorm": renorm, "gamma_regularizer": "l2", "name": "bn"}
    theirs = keras.layers.BatchNormalization(**arguments)
    ours = BatchNormalization(**arguments)
    theirs.build((None, 5))
    ours.build((None, 5))

    assert ours.get_config() == theirs.get_config()
    assert isinstance(ours, keras.layers.BatchNormalization)
    assert [(w.path, w.shape, w.trainable, w.dtype) for w in ours.weights] == [
        (w.path, w.shape, w.trainable, w.dtype) for w in theirs.weights
    ]


def test_the_parent_contributes_no_code(monkeypatch):
    parent = keras.layers.BatchNormalization
    for name, attribute in list(vars(parent).items()):
        if inspect.isfunction(attribute):

            def refuse(*args, _name=name, **kwargs):
                raise AssertionError(f"the parent's {_name} ran")

            monkeypatch.setattr(parent, name, refuse)

    layer = BatchNormalization(renorm=True)
    layer(random(4, 3), training=True)
    layer(random(4, 5, 3), mask=np.ones((4, 5), bool))
    BatchNormalization.from_config(layer.get_config()).compute_output_shape((2, 3))


def test_complex_inputs_and_masks_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        built()(np.ones((2, 3), "complex64"))
    with pytest.raises(ValueError, match="complex64"):
        built()(random(2, 3), mask=np.ones((2,), "complex64"), training=True)


@pytest.mark.parametrize("training", [np.True_, True, 1, "tensor"])
def test_any_true_trains(training):
    training = ops.convert_to_tensor(True) if training == "tensor" else training
    layer = built(momentum=0.0)
    layer(random(8, 3, mean=4.0), training=training)

    assert (statistics(layer)["moving_mean"] > 2).all()


@pytest.mark.parametrize("training", [np.False_, False, None, 0, "tensor"])
def test_inference_reads_and_never_writes(training):
    training = ops.convert_to_tensor(False) if training == "tensor" else training
    layer = built()
    x = random(8, 3, mean=4.0)
    before = statistics(layer)
    y = layer(x, training=training)

    np.testing.assert_allclose(to_numpy(y), x / np.sqrt(1.001), rtol=1e-6)
    for name, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_frozen_layer_is_in_inference_mode():
    layer = built()
    layer.trainable = False
    x = random(8, 3, mean=4.0)
    y = layer(x, training=True)

    np.testing.assert_allclose(to_numpy(y), x / np.sqrt(1.001), rtol=1e-6)
    assert len(layer.trainable_weights) == 0
    assert len(layer.non_trainable_weights) == 4
    layer.trainable = True
    assert len(layer.trainable_weights) == 2


def test_regularizers_and_constraints_reach_the_weights():
    layer = built(
        beta_regularizer="l2",
        gamma_regularizer=keras.regularizers.L1(0.5),
        gamma_constraint="non_neg",
        beta_constraint="unit_norm",
        gamma_initializer=keras.initializers.Constant(2.0),
    )

    assert len(layer.losses) == 2
    assert sum(float(to_numpy(loss)) for loss in layer.losses) == 0.5 * 2 * 3
    assert layer.gamma.constraint is layer.gamma_constraint
    assert layer.beta.constraint is layer.beta_constraint


def test_one_layer_serves_several_ranks():
    layer = built(momentum=0.5)
    layer(random(4, 5, 6, 3), training=True)
    layer(random(4, 3), training=True)

    with pytest.raises(ValueError, match="axis -1"):
        layer(random(4, 5))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("training", [True, False])
def test_16_bit_policies_compute_in_float32(policy, dtype, training):
    layer = BatchNormalization(dtype=policy, momentum=0.9)
    x = np.round(random(32, 3, mean=8.0) * 16) / 16
    step = batch_normalization(
        x, State(np.zeros(3), np.ones(3)), Arguments(momentum=0.9), training=training
    )
    y = layer(ops.cast(x, dtype), training=training)

    out = keras.DTypePolicy(policy).compute_dtype
    assert keras.backend.standardize_dtype(y.dtype) == out
    assert {w.dtype for w in layer.weights} == {"float32"}
    scale = kappa(x, epsilon=1e-3) if training else 20.0
    assert_near(to_numpy(y), step.y, scale=scale, dtype=out)
    moving = statistics(layer)["moving_variance"]
    assert_near(moving, step.state.moving_variance, scale=0.0)


@pytest.mark.parametrize("policy", ["mixed_float16", "float16"])
def test_values_that_float16_lacks_survive(policy):
    layer = BatchNormalization(dtype=policy)
    x = random(64, 3, mean=1e5)
    y = layer(x, training=True)
    expected = batch_normalization(x, State(np.zeros(3), np.ones(3)), Arguments()).y

    assert_near(to_numpy(y), expected, scale=kappa(x), dtype="float16")
    assert (np.abs(statistics(layer)["moving_mean"] - 1e3) < 1).all()


def test_statistics_do_not_stall_in_16_bits():
    layer = BatchNormalization(dtype="bfloat16")
    x = ops.cast(random(64, 3, mean=3.0, std=0.5), "bfloat16")
    for _ in range(700):
        layer(x, training=True)

    mean = to_numpy(x).mean(0)
    # 0.99**700 of the initial 0 is left.
    np.testing.assert_allclose(
        statistics(layer)["moving_mean"], mean * (1 - 0.99**700), rtol=1e-4
    )


def test_float64_policy_computes_in_float64(float64):
    layer = BatchNormalization(dtype="float64")
    x = np.random.default_rng(0).normal(1e5, 1.0, (64, 3))
    y = layer(x, training=True)
    expected = batch_normalization(x, State(np.zeros(3), np.ones(3)), Arguments())

    assert keras.backend.standardize_dtype(y.dtype) == "float64"
    assert_near(to_numpy(y), expected.y, scale=kappa(x), dtype="float64")
    assert_near(
        statistics(layer)["moving_mean"],
        expected.state.moving_mean,
        scale=0.0,
        dtype="float64",
    )


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integers_are_cast(dtype):
    x = (random(16, 3, mean=100.0, std=20.0)).clip(0, 255).astype(dtype)
    y = to_numpy(built()(x, training=True))
    expected = batch_normalization(
        x.astype(float), State(np.zeros(3), np.ones(3)), Arguments()
    ).y

    assert_near(y, expected, scale=10.0)


EMPTY = {
    "no rows": (np.zeros((0, 3), "float32"), None),
    "all masked": (random(8, 3, mean=5.0), np.zeros(8, bool)),
    "all weights 0": (random(8, 3, mean=5.0), np.zeros(8, "float32")),
    "all masked and NaN": (np.full((8, 3), np.nan, "float32"), np.zeros(8, bool)),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("renorm", [False, True])
def test_a_batch_without_elements_changes_nothing(name, renorm):
    x, mask = EMPTY[name]
    layer = built(renorm=renorm, momentum=0.5, renorm_momentum=0.5)
    layer(random(16, 3, mean=5.0), training=True)
    before = statistics(layer)
    y = to_numpy(layer(x, training=True, mask=mask))

    assert y.shape == x.shape and np.isfinite(y).all()
    for key, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("renorm", [False, True])
def test_one_bad_element_spoils_no_statistics(value, renorm):
    layer = built(renorm=renorm, momentum=0.5)
    x = random(16, 3)
    x[3, 1] = value
    before = statistics(layer)
    y = to_numpy(layer(x, training=True))
    after = statistics(layer)

    for key in after:
        assert after[key][1] == before[key][1], key
        assert after[key][0] != before[key][0], key
    # The gradient scaling of mixed precision has to see what happened.
    assert np.isfinite(y[3, 1]) == np.isfinite(value)
    assert np.isfinite(y[:, [0, 2]]).all()


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((1, 3), None), ((4, 3), np.arange(4) == 2), ((3,), None)],
    ids=["one row", "one row counts", "rank 1"],
)
@pytest.mark.parametrize("renorm", [False, True])
def test_one_element_moves_the_mean_and_not_the_variance(shape, mask, renorm):
    layer = built(renorm=renorm, momentum=0.5)
    layer.beta.assign([1.0, 2.0, 3.0])
    before = statistics(layer)
    x = random(*shape, mean=7.0)
    y = to_numpy(layer(x, training=True, mask=mask))
    after = statistics(layer)

    row = x if x.ndim == 1 else x[0] if mask is None else x[2]
    np.testing.assert_allclose(after["moving_mean"], row / 2, rtol=1e-6)
    for key in after:
        if not key.endswith("mean"):
            np.testing.assert_array_equal(after[key], before[key], err_msg=key)
    assert np.isfinite(y).all()
    if not renorm and mask is None:
        np.testing.assert_allclose(y.reshape(-1), [1.0, 2.0, 3.0])


def test_many_small_weights_are_not_one_element():
    layer = built(momentum=0.0)
    layer(random(100, 3), training=True, mask=np.full(100, 0.001, "float32"))

    np.testing.assert_allclose(
        statistics(layer)["moving_variance"], random(100, 3).var(0), rtol=1e-5
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_in_padding_reaches_nothing(training, poison):
    x, dy = random(6, 5, 3, mean=2.0), random(6, 5, 3)
    mask = np.arange(5) < np.array([5, 4, 3, 2, 1, 5])[:, None]
    clean, dy = np.where(mask[..., None], x, 0), np.where(mask[..., None], dy, 0)
    results = []
    for padding in (0.0, poison):
        layer = built()
        filled = np.where(mask[..., None], clean, np.float32(padding))
        y = to_numpy(layer(filled, training=training, mask=mask))
        call = functional(layer, mask=mask, training=training)
        found = gradients(
            lambda x, g, b, call=call: ops.sum(
                call(x, g, b) * ops.convert_to_tensor(dy)
            ),
            filled,
            np.ones(3, "float32"),
            np.zeros(3, "float32"),
        )
        assert np.isfinite(y).all()
        results.append([y[mask], *found, *statistics(layer).values()])

    for with_zero, with_poison in zip(*results, strict=True):
        assert np.isfinite(with_poison).all()
        if with_zero.shape == x.shape:
            with_zero, with_poison = with_zero[mask], with_poison[mask]
        np.testing.assert_allclose(with_poison, with_zero, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"renorm": True}, {"scale": False}, {"virtual_batch_size": 4}],
)
def test_a_channel_of_padding_alone_gives_beta(arguments, training):
    """What Keras's own masks do to a layer with `axis=1`: they cover its channels."""
    x = random(6, 3, 4, mean=2.0)
    x[:, 1] = 0.0
    masked = keras.layers.Masking()(x)
    layer = BatchNormalization(axis=1, momentum=0.5, **arguments)
    layer.build(x.shape)
    layer.beta.assign([1.0, 2.0, 3.0])
    before = statistics(layer)
    y = to_numpy(layer(masked, training=training))
    after = statistics(layer)

    np.testing.assert_array_equal(y[:, 1], np.full((6, 4), 2.0))
    state = State(np.zeros(3), np.ones(3))
    options = {"axis": 1, "beta": [1.0, 2.0, 3.0], **arguments}
    options.pop("scale", None)
    weights = (x != 0).any(-1, keepdims=True)
    expected = batch_normalization(
        x, state, Arguments(**options), weights=weights, training=training
    ).y
    assert_near(y, expected, scale=10.0)
    for name in after:
        assert after[name][1] == before[name][1], name
        assert (after[name][0] != before[name][0]) == training, name


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e25])
@pytest.mark.parametrize("implementation", ["generic", "native"])
@pytest.mark.parametrize("upstream", ["all", "finite elements"])
def test_a_channel_that_is_not_finite_has_the_gradients_of_inference(
    bad, implementation, upstream
):
    x, dy = random(8, 3), random(8, 3) + 1
    x[3, 1] = bad
    if upstream != "all":
        dy[3, 1] = 0.0
    layer = built(gamma_initializer=keras.initializers.Constant(2.0))
    other = built(gamma_initializer=keras.initializers.Constant(2.0))
    with force_implementation(implementation):
        found, expected = (
            {
                name: to_numpy(value)
                for name, value in with_gradients(each, training=training, how=HOW)(
                    *map(ops.convert_to_tensor, (x, dy))
                ).items()
            }
            for each, training in ((layer, True), (other, False))
        )

    finite = np.isfinite(x[:, 1])
    np.testing.assert_allclose(found["dx"][finite, 1], expected["dx"][finite, 1], 1e-5)
    np.testing.assert_allclose(found["beta"], dy.sum(0), rtol=1e-5)
    # A step whose loss is scaled has to be seen to be skipped.
    assert np.isfinite(found["gamma"][1]) == np.isfinite(bad)
    assert np.isfinite(found["dx"][:, [0, 2]]).all()
    assert np.isfinite(found["gamma"][[0, 2]]).all()


class Records(keras.layers.Layer):
    """Keeps the mask that its call receives."""

    def call(self, inputs, mask=None):
        self.received = mask
        return inputs


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_masks_reach_the_layer_after_this_one(kind):
    x = random(2, 4, 3)
    x[0, 2:] = x[1, 3:] = 0.0
    after = Records()
    layers = [keras.layers.Masking(), BatchNormalization(), after]
    if kind == "sequential":
        model = keras.Sequential([keras.Input((4, 3)), *layers])
    else:
        inputs = y = keras.Input((4, 3))
        for layer in layers:
            y = layer(y)
        model = keras.Model(inputs, y)
    model(x)

    expected = [[True, True, False, False], [True, True, True, False]]
    np.testing.assert_array_equal(to_numpy(after.received), expected)


def test_imported_variances_survive_renorms_first_step():
    layer = built(renorm=True)
    layer.moving_variance.assign(np.full(3, 100.0))
    layer(random(64, 3, std=10.0), training=True)

    assert (np.abs(statistics(layer)["moving_variance"] - 100.0) < 1.0).all()


def test_renorm_starts_from_the_moving_statistics():
    layer = built(
        renorm=True,
        moving_mean_initializer=keras.initializers.RandomNormal(seed=1),
        moving_variance_initializer=keras.initializers.Constant(4.0),
    )
    values = statistics(layer)

    np.testing.assert_array_equal(values["renorm_mean"], values["moving_mean"])
    np.testing.assert_array_equal(values["renorm_stddev"], np.full(3, 2.0))
    np.testing.assert_array_equal(values["moving_stddev"], np.full(3, 2.0))
    layer(random(8, 3), training=True)
    assert (statistics(layer)["renorm_mean"] != values["renorm_mean"]).all()
    # Equal numbers, not one array.
    moving_mean = statistics(layer)["moving_mean"]
    layer.renorm_mean.assign(np.full(3, 7.0))
    np.testing.assert_array_equal(statistics(layer)["moving_mean"], moving_mean)


def test_renorm_builds_inside_a_model_that_infers_its_shapes():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn = BatchNormalization(renorm=True)

        def call(self, x, training=None):
            return self.bn(x, training=training)

    model = Model()
    model.compile("sgd", "mse")
    model.fit(random(8, 3), random(8, 3), verbose=0)

    assert np.isfinite(statistics(model.bn)["renorm_mean"]).all()


@pytest.mark.parametrize("synchronized", [True, 2])
@pytest.mark.parametrize("axis_name", [None, "replicas"])
def test_one_replica_is_the_plain_layer(synchronized, axis_name, recwarn):
    x = random(8, 3, mean=5.0)
    plain, layer = built(), built(synchronized=synchronized, axis_name=axis_name)
    explained = explain_implementation(layer, x)
    recwarn.clear()
    y = to_numpy(layer(x, training=True))

    np.testing.assert_array_equal(y, to_numpy(plain(x, training=True)))
    for name, value in statistics(plain).items():
        np.testing.assert_array_equal(statistics(layer)[name], value)
    assert explained == explain_implementation(plain, x)
    assert not [w for w in recwarn if "synchronized" in str(w.message)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"synchronized": 1},
        {"synchronized": -2},
        {"synchronized": "yes"},
        {"axis_name": 3},
        {"axis_name": ""},
    ],
)
def test_what_names_no_replicas_is_refused(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        BatchNormalization(**arguments)


@pytest.mark.parametrize("name", ["generic", "native"])
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("training", [True, False])
def test_nan_in_padding_gives_beta_on_each_implementation(name, size, training):
    layer = built(beta_initializer="ones", virtual_batch_size=size)
    x, mask = random(8, 5, 3, mean=5.0), np.ones((8, 5), bool)
    mask[:, 4] = False
    x[0, 4] = np.nan
    with force_implementation(name):
        y = to_numpy(layer(x, training=training, mask=mask))

    # PyTorch's `x * a + b` rounds.
    np.testing.assert_allclose(y[0, 4], [1.0, 1.0, 1.0], rtol=1e-6)
    assert np.isfinite(y).all()
