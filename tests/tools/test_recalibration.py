"""Moving statistics that are those of the data."""

import inspect

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy
from networks import BOTH, X, chain, inputs_of_normalizations

import keras_bnx
from keras_bnx import BatchNormalization, Recalibrate, recalibrate

BATCHES = [X[i : i + 32] for i in (0, 32, 64, 96)]
Y = (X[:, :1] > 3.0).astype("float32")


def weights_of(model):
    return [np.copy(w) for w in model.get_weights()]


def assert_unchanged(model, before):
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def moving(layer):
    return to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)


def alone(cls, channels=8, **arguments):
    layer = cls(**arguments)
    return layer, keras.Sequential([keras.Input((channels,)), layer])


@pytest.mark.parametrize("cls", BOTH)
def test_moving_statistics_are_the_populations(cls):
    model = chain(cls)
    record = recalibrate(model, X, verbose=0)

    expected = inputs_of_normalizations(model, BATCHES)
    for name, values in zip(("first", "second"), expected, strict=True):
        mean, variance = moving(model.get_layer(name))
        atol = 1e-6 * values.std()  # float32 through a network
        np.testing.assert_allclose(mean, values.mean(0), rtol=0, atol=atol)
        np.testing.assert_allclose(variance, values.var(0), rtol=1e-5)
    assert (record.samples, record.batches) == (100, 4)


@pytest.mark.parametrize("cls", BOTH)
def test_the_record_says_how_far_statistics_were(cls):
    layer, model = alone(cls, momentum=0.0)
    layer.moving_mean.assign(np.full(8, 7.0))
    layer.moving_variance.assign(np.full(8, 16.0))
    record = recalibrate(model, X, verbose=0)

    x = X.astype("float64")
    deviation = np.sqrt(x.var(0) + layer.epsilon)
    (row,) = record.rows
    np.testing.assert_allclose(row.mean, (7.0 - x.mean(0)) / deviation, rtol=1e-5)
    ratio = np.sqrt(16.0 + layer.epsilon) / deviation
    np.testing.assert_allclose(row.ratio, ratio, rtol=1e-5)
    # By hand: the outputs that inference had, against those that it should have.
    difference = (x - 7.0) / np.sqrt(16.0 + layer.epsilon) - (x - x.mean(0)) / deviation
    # The data's variance has no epsilon: 1e-3 of 4.
    np.testing.assert_allclose(
        row.error, np.sqrt((difference**2).mean(0)), rtol=3e-4, atol=0
    )
    assert layer.name in str(record) and "100 samples in 4 batches" in str(record)


@pytest.mark.parametrize("cls", BOTH)
def test_large_means_keep_their_deviations(cls):
    layer, model = alone(cls, 3)
    x = np.random.default_rng(2).normal(5000.0, 0.1, (100, 3)).astype("float32")
    recalibrate(model, x, verbose=0)

    mean, variance = moving(layer)
    # Half a unit in the last place of 5000.
    np.testing.assert_allclose(mean, x.mean(0, dtype="float64"), rtol=0, atol=2.5e-4)
    np.testing.assert_allclose(variance, x.var(0, dtype="float64"), rtol=1e-5)


@pytest.mark.parametrize("cls", BOTH)
def test_float64_layers_have_float64_statistics(cls, float64):
    layer, model = alone(cls, dtype="float64")
    # Keras reads arrays in its default dtype.
    x = X.astype("float64")
    recalibrate(model, x, verbose=0)

    np.testing.assert_allclose(moving(layer)[0], x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moving(layer)[1], x.var(0), rtol=1e-13)


@pytest.mark.parametrize("arguments", [{"scale": False}, {"center": False}])
def test_layers_without_gamma_or_beta_have_successors(arguments):
    model = chain(BatchNormalization, **arguments)
    recalibrate(model, X, batch_size=32, verbose=0)
    expected = inputs_of_normalizations(model, BATCHES)
    for layer, seen in zip((model.layers[1], model.layers[5]), expected, strict=True):
        np.testing.assert_allclose(moving(layer)[0], seen.mean(0), rtol=1e-4, atol=1e-5)


def test_the_divisor_is_the_layers():
    layer, model = alone(BatchNormalization, unbiased_moving_variance=True)
    recalibrate(model, X[:5], batch_size=2, verbose=0)

    expected = X[:5].var(0, dtype="float64", ddof=1)
    np.testing.assert_allclose(moving(layer)[1], expected, rtol=1e-5)


@pytest.mark.parametrize("cls", BOTH)
def test_one_row_has_a_mean_and_no_variance(cls):
    layer, model = alone(cls)
    record = recalibrate(model, X[:1], verbose=0)

    np.testing.assert_allclose(moving(layer)[0], X[0], rtol=1e-6)
    np.testing.assert_array_equal(moving(layer)[1], 1.0)
    np.testing.assert_array_equal(record.rows[0].ratio, 1.0)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return BATCHES[i], Y[32 * i : 32 * i + 32]


def of_the_framework():
    """What the backend's own users have their data in."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    if keras.config.backend() == "torch":
        import torch

        data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
        return torch.utils.data.DataLoader(data, batch_size=32)
    import jax.numpy as jnp

    return jnp.asarray(X)


@pytest.mark.parametrize(
    "data",
    [
        lambda: Sequence(),
        lambda: ((x, x[:, :1], x[:, 0]) for x in BATCHES),
        lambda: ((x,) for x in BATCHES),
        of_the_framework,
    ],
    ids=["PyDataset", "tuples", "generator", "framework"],
)
def test_data_are_what_predict_takes(data):
    layer, model = alone(BatchNormalization)
    record = recalibrate(model, data(), verbose=0)

    np.testing.assert_allclose(moving(layer)[0], X.mean(0, dtype="float64"), rtol=1e-5)
    np.testing.assert_allclose(moving(layer)[1], X.var(0, dtype="float64"), rtol=1e-5)
    assert (record.samples, record.batches) == (100, 4)


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs(named):
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    layer = BatchNormalization()
    inputs = {"a": a, "b": b} if named else [a, b]
    model = keras.Model(inputs, layer(keras.layers.Add()([a, b])))
    recalibrate(model, {"a": X, "b": -3 * X} if named else [X, -3 * X], verbose=0)

    expected = -2.0 * X.mean(0, dtype="float64")
    np.testing.assert_allclose(moving(layer)[0], expected, rtol=1e-5)


class Subclassed(keras.Model):
    def __init__(self, cls):
        super().__init__()
        self.parts = [chain(cls), cls(name="outer")]
        self.never = cls(name="never")
        self.never.build((None, 2))

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x, training=training)
        return x


@pytest.mark.parametrize("cls", BOTH)
def test_nested_layers_are_found_and_those_not_called_are_named(cls):
    model = Subclassed(cls)
    model(X)
    record = recalibrate(model, X, steps=2, batch_size=50, verbose=0)

    assert [row.layer for row in record.rows] == ["first", "second", "outer"]
    assert record.not_called == ["never"]
    assert all(moving(layer)[0].any() for layer in (model.parts[1],))
    np.testing.assert_array_equal(moving(model.never)[0], 0.0)


@pytest.mark.parametrize("cls", BOTH)
def test_frozen_layers_keep_their_statistics(cls):
    model = chain(cls)
    model.get_layer("first").trainable = False
    record = recalibrate(model, X, verbose=0)

    assert [row.layer for row in record.rows] == ["second"]
    np.testing.assert_array_equal(moving(model.get_layer("first"))[0], 0.0)
    keras_bnx.freeze(model)
    with pytest.raises(ValueError, match="frozen"):
        recalibrate(model, X, verbose=0)


OPTIONS = [
    {},
    {"momentum": None},
    {"debias_moving_statistics": True},
    {"debias_moving_statistics": True, "momentum": None, "renorm": True},
    {"renorm": True},
    {"renorm": True, "renorm_clipping": keras_bnx.renorm_schedule(1, 5)},
    {"axis": [1]},
]


@pytest.mark.parametrize("arguments", OPTIONS, ids="-".join)
def test_undo_restores_bit_for_bit(arguments):
    _, model = alone(BatchNormalization, **arguments)
    model(X[:10], training=True)
    before = weights_of(model)
    record = recalibrate(model, X, verbose=0)
    after = weights_of(model)
    assert any((a != b).any() for a, b in zip(after, before, strict=True))

    record.undo()
    assert_unchanged(model, before)
    record.redo()
    assert_unchanged(model, after)
    record.undo()
    with recalibrate(model, X, verbose=0):
        assert_unchanged(model, after)
    assert_unchanged(model, before)


@pytest.mark.parametrize("arguments", OPTIONS, ids="-".join)
def test_inference_normalizes_by_the_population(arguments):
    layer, model = alone(BatchNormalization, **arguments)
    model(X[:10] + 9.0, training=True)
    recalibrate(model, X, verbose=0)

    x = X.astype("float64")
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + layer.epsilon)
    np.testing.assert_allclose(to_numpy(model(X)), expected, rtol=0, atol=5e-6)


def test_a_cumulative_average_goes_on():
    layer, model = alone(BatchNormalization, momentum=None)
    recalibrate(model, X[:96], verbose=0)
    model(X[:32] + 8.0, training=True)

    # The fourth batch of four.
    expected = (3 * X[:96].mean(0) + X[:32].mean(0) + 8.0) / 4
    np.testing.assert_allclose(moving(layer)[0], expected, rtol=1e-5)


# Keras 3.14's layer has no renorm.
RENORM = [cls for cls in BOTH if "renorm" in inspect.signature(cls).parameters]


@pytest.mark.parametrize("cls", RENORM)
def test_renorm_starts_as_plain_normalization(cls):
    layer, model = alone(cls, renorm=True)
    recalibrate(model, X, verbose=0)
    values = statistics(layer)

    stddev = np.sqrt(X.var(0, dtype="float64") + layer.epsilon)
    for name in ("moving_stddev", "renorm_stddev"):
        np.testing.assert_allclose(values[name], stddev, rtol=1e-5)
    np.testing.assert_allclose(values["renorm_mean"], X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(model(X, training=True)), to_numpy(model(X)), rtol=0, atol=1e-5
    )


def test_schedules_go_on():
    schedule = keras_bnx.renorm_schedule(1, 5)
    layer, model = alone(BatchNormalization, renorm=True, renorm_clipping=schedule)
    model(X, training=True)
    recalibrate(model, X, verbose=0)

    assert int(to_numpy(layer.history.steps)) == 1


class Fails(keras.layers.Layer):
    def call(self, x):
        if x.shape[0] == 4:
            raise RuntimeError("halfway")
        return x


def of_three():
    for x in BATCHES[:3]:
        yield (x,)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": None}, "x=None"),
        ({"x": X[:0]}, r"shape \(0, 8\)"),
        ({"x": of_three, "steps": 5}, "steps=5 and data for 3"),
        ({"x": np.where(X == X[40, 1], np.nan, X)}, "'first' in batch 1"),
        ({"x": X[:, :2]}, r"\(32, 2\)|shape"),
        ({"x": "digits.npz"}, "digits.npz"),
        ({"x": X, "steps": 0}, "steps=0"),
        ({"x": X, "batch_size": -1}, "batch_size=-1"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_bad_data_leave_the_model_as_it_was(cls, arguments, words):
    model = chain(cls)
    model(X, training=True)
    before = weights_of(model)
    arguments = {**arguments}
    if callable(arguments["x"]):
        arguments["x"] = arguments["x"]()
    with pytest.raises(ValueError, match=words):
        recalibrate(model, verbose=0, **arguments)

    assert_unchanged(model, before)
    assert not any("call" in vars(layer) for layer in model.layers)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="no batch normalization"):
        recalibrate(keras.Sequential([keras.Input((8,)), keras.layers.ReLU()]), X)
    with pytest.raises(ValueError, match="isn't built"):
        recalibrate(keras.Sequential([BatchNormalization()]), X)


@pytest.mark.parametrize("cls", BOTH)
def test_a_model_that_fails_halfway_is_as_it_was(cls):
    model = keras.Sequential([keras.Input((8,)), cls(), Fails()])
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="halfway"):
        recalibrate(model, X, verbose=0)

    assert_unchanged(model, before)


@pytest.mark.parametrize("cls", BOTH)
def test_an_interrupt_while_statistics_are_written_undoes_them(cls, monkeypatch):
    model = chain(cls)
    before = weights_of(model)
    second = model.get_layer("second").moving_variance
    original = type(second).assign

    def assign(variable, value):
        if variable is second and not done:
            done.append(True)
            raise KeyboardInterrupt
        return original(variable, value)

    done = []
    monkeypatch.setattr(type(second), "assign", assign)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, X, verbose=0)

    assert done
    assert_unchanged(model, before)


def compiled(cls=BatchNormalization, **optimizer):
    keras.utils.set_random_seed(3)
    # Without dropout: on PyTorch, reading data draws from its generator too.
    model = chain(cls, dropout=0.0, momentum=0.9)
    optimizer = keras.optimizers.SGD(0.05, **optimizer)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def fit(model, callbacks, epochs=2, **arguments):
    y = np.repeat(Y, 2, axis=1)
    return model.fit(
        X,
        y,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
        **{"validation_data": (X, y), **arguments},
    )


@pytest.mark.parametrize("cls", BOTH)
def test_the_callback_recalibrates_at_the_end(cls):
    model = compiled(cls)
    callback = Recalibrate(X)
    fit(model, [callback])

    expected = inputs_of_normalizations(model, BATCHES)
    for name, values in zip(("first", "second"), expected, strict=True):
        np.testing.assert_allclose(
            moving(model.get_layer(name))[1], values.var(0), rtol=1e-4
        )
    assert [entry["epoch"] for entry in callback.history] == ["end"]


def test_training_is_the_same_with_the_callback_and_evaluation_is_not():
    plain = compiled()
    before = fit(plain, [], epochs=4)
    other, callback = compiled(), Recalibrate(X, every=2)
    after = fit(other, [callback], epochs=4)

    assert [entry["epoch"] for entry in callback.history] == [1, 3, "end"]
    np.testing.assert_array_equal(before.history["loss"], after.history["loss"])
    same = np.equal(before.history["val_loss"], after.history["val_loss"])
    np.testing.assert_array_equal(same, [True, False, True, False])
    for a, b in zip(plain.trainable_weights, other.trainable_weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


@pytest.mark.parametrize("averaged", [True, False])
def test_what_is_saved_evaluates_as_reported(averaged, tmp_path):
    model = compiled(**({"use_ema": True, "ema_momentum": 0.8} if averaged else {}))
    path = str(tmp_path / "{epoch}.keras")
    callbacks = [Recalibrate(X, every=1), keras.callbacks.ModelCheckpoint(path)]
    if averaged:
        callbacks.insert(0, keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    history = fit(model, callbacks, epochs=3).history

    for epoch, reported in enumerate(history["val_loss"]):
        saved = keras.models.load_model(path.format(epoch=epoch + 1))
        found = saved.evaluate(X, np.repeat(Y, 2, axis=1), verbose=0)[0]
        np.testing.assert_allclose(found, reported, rtol=1e-5)
        expected = inputs_of_normalizations(saved, BATCHES)
        found = moving(saved.get_layer("second"))[1]
        np.testing.assert_allclose(found, expected[1].var(0), rtol=1e-4)


def test_metrics_are_reported_before_and_after(capsys):
    y = np.repeat(Y, 2, axis=1)
    model = compiled()
    callback = Recalibrate(X, every=1, validation_data=(X, y), verbose=1)
    history = fit(model, [callback], epochs=2).history

    first = callback.history[0]
    np.testing.assert_allclose(first["after"]["loss"], history["val_loss"][0], 1e-5)
    assert first["before"]["loss"] != first["after"]["loss"]
    printed = capsys.readouterr().out
    assert "in epoch 1" in printed and "at the end" in printed
    assert f"{first['before']['mae']:.4g} before" in printed


def test_a_loop_of_ones_own_may_call_the_callback():
    model, callback = compiled(), Recalibrate(X)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_train_end()
    expected = inputs_of_normalizations(model, BATCHES)
    found = moving(model.get_layer("second"))[1]
    np.testing.assert_allclose(found, expected[1].var(0), rtol=1e-4)


def test_an_evaluation_that_fails_afterwards_undoes_it(monkeypatch):
    # That of `fit`, and the callback's own, before and after.
    model, fails = compiled(), iter((False, False, True))
    callback = Recalibrate(X, every=1, validation_data=(X, np.repeat(Y, 2, axis=1)))
    before = []

    def evaluate(*arguments, **kwargs):
        before.append(weights_of(model))
        if next(fails):
            raise KeyboardInterrupt
        return {"loss": 0.0}

    monkeypatch.setattr(model, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [callback])

    _, trained, recalibrated = before
    assert any((a != b).any() for a, b in zip(trained, recalibrated, strict=True))
    assert_unchanged(model, trained)


def test_averaged_weights_are_evaluated_before_and_after():
    y = np.repeat(Y, 2, axis=1)
    model = compiled(use_ema=True, ema_momentum=0.8)
    callback = Recalibrate(X, every=1, validation_data=(X, y))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = fit(model, [swap, callback], epochs=2).history

    assert [entry["epoch"] for entry in callback.history] == [0, 1, "end"]
    after = [entry["after"]["loss"] for entry in callback.history]
    np.testing.assert_allclose(after[:2], history["val_loss"], rtol=1e-5)
    # At the end they are the same weights, and the same data.
    np.testing.assert_allclose(after[2], after[1], rtol=1e-5)
    found = model.evaluate(X, y, verbose=0)[0]
    np.testing.assert_allclose(found, after[2], rtol=1e-5)


def orders():
    swap = keras.callbacks.SwapEMAWeights
    checkpoint = lambda: keras.callbacks.ModelCheckpoint("x.keras")  # noqa: E731
    stop = lambda: keras.callbacks.EarlyStopping(restore_best_weights=True)  # noqa: E731
    own = lambda: Recalibrate(X)  # noqa: E731
    every = lambda: Recalibrate(X, every=1)  # noqa: E731
    return [
        ([every, swap], "SwapEMAWeights, Recalibrate"),
        ([checkpoint, every], "Recalibrate, ModelCheckpoint"),
        ([own, stop], "EarlyStopping, Recalibrate"),
        ([stop, every], "Recalibrate, EarlyStopping"),
        ([swap, every, checkpoint], "swap_on_epoch=True"),
    ]


@pytest.mark.parametrize(("makers", "words"), orders(), ids=range(5))
def test_a_wrong_order_is_refused_with_the_right_one(makers, words):
    model = compiled(use_ema=True)
    before = weights_of(model)
    with pytest.raises(ValueError, match=words):
        fit(model, [make() for make in makers])

    assert_unchanged(model, before)


def test_early_stopping_brings_back_statistics_of_its_epoch():
    model = compiled()
    stop = keras.callbacks.EarlyStopping(restore_best_weights=True, patience=1)
    callback = Recalibrate(X, every=1)
    fit(model, [callback, stop], epochs=3)

    y = np.repeat(Y, 2, axis=1)
    found = model.evaluate(X, y, verbose=0)[0]
    np.testing.assert_allclose(found, stop.best, rtol=1e-5)


def test_the_callbacks_arguments_are_checked():
    with pytest.raises(ValueError, match="every=0"):
        Recalibrate(X, every=0)


def test_the_callback_does_nothing_outside_of_fit():
    model = compiled()
    before = weights_of(model)
    y = np.repeat(Y, 2, axis=1)
    model.evaluate(X, y, verbose=0, callbacks=[Recalibrate(X, every=1)])

    assert_unchanged(model, before)
