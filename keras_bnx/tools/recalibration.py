"""Moving statistics that are those of the data: a pass that takes them anew."""

import sys
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_bnx.averages import MovingStatistics
from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.distance import Distance, geometric_mean, root_mean_square
from keras_bnx.tools.models import batch_normalizations, names, table
from keras_bnx.tools.observation import is_trained, moving_statistics, observe


class Recalibration:
    """What a recalibration changed, and the way back.

    In a `with` statement, the moving statistics are what they were at its end.

    Attributes:
        samples, batches: how many the statistics are of, over all replicas.
        rows: list of `Distance`: how far the statistics were from those that have
            taken their place, a row for each layer, in the order of the calls.
        not_called: names of the layers that the model didn't call. They, and those
            that are frozen, are as they were.
    """

    def __init__(
        self,
        samples: int,
        batches: int,
        rows: list[Distance],
        not_called: list[str],
        before: list[tuple[keras.Variable, Any]],
    ) -> None:
        self.samples, self.batches = samples, batches
        self.rows, self.not_called = rows, not_called
        self._before = before
        self._after: list[tuple[keras.Variable, Any]] | None = None

    def undo(self) -> None:
        """Restores the moving statistics of all layers, bit for bit."""
        if self._after is None:
            self._after = _values(variable for variable, _ in self._before)
        _write(self._before)

    def redo(self) -> None:
        """Undoes `undo`."""
        if self._after is not None:
            _write(self._after)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = table(
            ["layer", " channels", " mean moved", " deviation", " outputs were off"],
            [
                [
                    row.layer,
                    str(len(row.mean)),
                    f"{root_mean_square(row.mean):.3g}",
                    f"x {geometric_mean(1.0 / row.ratio):.3g}",
                    f"{root_mean_square(row.error):.3g}",
                ]
                for row in self.rows
            ],
        )
        count = f"{self.samples} samples in {self.batches} batches"
        return f"{lines}\n{count}; means and outputs in deviations"


def recalibrate(
    model: keras.Layer,
    x: Any,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    verbose: str | int = "auto",
) -> Recalibration:
    """Makes the moving statistics of a model those of data, exactly.

    For when training is fine and evaluation isn't: after a few steps of training, a
    momentum too near 1, averaged weights (`use_ema`, the statistics of which belong to
    other weights), other data, batches too small to average. One pass, in which batch
    normalizations normalize by the batch and everything else (dropout, noise, frozen
    layers) is in inference; each layer's mean and variance over all that it saw become
    its moving statistics. They are merged by counts, in float64, so that unequal
    batches, masks and weights count as they are. gamma, beta and all other weights
    stay.

    A layer's inputs are those of layers that normalize by their batches, as in
    training. At inference they come from layers that normalize by the population. What
    that changes gets small with large batches: in a trained residual network of nine
    normalizations the outputs of the worst were off by 0.001 deviations with batches
    of 256, by 0.008 with 32 and by 0.04 with 8 (`benchmarks/README.md`). A pass for
    each layer would leave nothing, and cost as many passes as there are layers.

    Virtual batches and renorm's corrections are for training: here a layer takes the
    whole batch. In processes of `torch.distributed` each passes its own data, and all
    get the statistics of all; layers normalize by their own process's batch.

    Args:
        model: a built model or layer, with batch normalizations of Keras or ours;
            Sequential, Functional, subclassed, nested; layers may be shared.
        x: inputs as `predict` takes them: an array, a list or dictionary of several,
            `tf.data.Dataset`, `keras.utils.PyDataset`, `DataLoader`, generator. Of
            tuples `(x, y)` and `(x, y, sample_weight)` the first is taken.
        batch_size: integer, for arrays; 32 by default, as in `predict`. As in
            training, or larger.
        steps: integer, how many batches to take; all of them by default.
        verbose: `"auto"`, 0, 1 or 2: the progress bar, as in `predict`.

    Returns:
        `Recalibration`: prints as a table of how far statistics moved; has `undo()`,
        and undoes itself at the end of a `with` statement.

    Raises:
        ValueError: where there is no batch normalization, or all are frozen; where
            the model isn't built; for no data, data that ends before `steps`, or
            inputs of a layer that aren't finite, with the layer's and the batch's
            number. On any error, and on Ctrl-C, the model is as before.

    Example:

    >>> import keras, keras_bnx
    >>> model = keras.Sequential([keras.Input((3,)), keras_bnx.BatchNormalization()])
    >>> x = keras.random.normal((64, 3), mean=5.0, seed=1)
    >>> record = keras_bnx.recalibrate(model, x, verbose=0)
    >>> print(record.samples, round(float(keras.ops.std(model(x))), 2))
    64 1.0
    >>> record.undo()
    >>> print(float(model.layers[0].moving_mean[0]))
    0.0
    """
    layers = [layer for layer in batch_normalizations(model) if is_trained(layer)]
    if not layers:
        raise ValueError(
            "Every batch normalization of the model is frozen, and keeps its "
            f"statistics. Received: {model.name!r}. Unfreeze those to recalibrate."
        )
    seen = observe(
        model, x, batch_size=batch_size, steps=steps, verbose=verbose, finite=True
    )
    named = names(seen.layers)
    rows, not_called, before, writes = [], [], [], []
    for layer, what in seen.layers.items():
        if not is_trained(layer):
            continue
        if not what.population.count.any():
            not_called.append(named[id(layer)])
            continue
        moving = moving_statistics(layer)
        rows.append(
            Distance.between(named[id(layer)], moving, what.population, layer.epsilon)
        )
        before += _values(_averages(layer))
        writes.append((layer, moving, what))
    record = Recalibration(seen.samples, seen.batches, rows, not_called, before)
    try:
        for layer, moving, what in writes:
            _set(layer, moving, what)
    except BaseException:
        # Ctrl-C as well: half a model's statistics would be worse than either.
        record.undo()
        raise
    return record


def _averages(layer):
    """The variables that averages are kept in."""
    return [v for v in layer.variables if v is not layer.gamma and v is not layer.beta]


def _values(variables):
    return [(variable, ops.copy(variable.value)) for variable in variables]


def _write(values):
    for variable, value in values:
        # A copy: JAX keeps the array it is given, and may donate it.
        variable.assign(ops.copy(value))


def _set(layer, moving, what):
    population, (mean, variance) = what.population, moving
    mean = np.where(population.count > 0, population.mean, mean)
    taken, has_variance = population.variance, population.size > 1
    if getattr(layer, "unbiased_moving_variance", False):
        taken = population.unbiased_variance
        has_variance = has_variance & (population.count > 1)
    variance = np.where(has_variance, taken, variance)
    if isinstance(layer, BatchNormalization):
        MovingStatistics(layer).set_to(mean, variance, what.updates)
        return
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    # Keras 3.14's layer doesn't have it.
    if getattr(layer, "renorm", False):
        stddev = np.sqrt(variance + layer.epsilon)
        layer.moving_stddev.assign(stddev)
        layer.renorm_mean.assign(mean)
        layer.renorm_stddev.assign(stddev)


class Recalibrate(keras.callbacks.Callback):
    """Recalibrates a model while and after it is trained by `fit`.

    At the end of training the moving statistics become those of `x`, for the weights as
    they are then. With `every=n` they do also in every n-th epoch, before the model is
    evaluated and saved; training goes on with the moving statistics as they were, and
    is the same as without this callback (on PyTorch but for the random numbers that
    reading data draws).

    Its place in `fit(callbacks=[...])` decides which weights it sees, and it raises
    where that is a wrong one: after `SwapEMAWeights`, whose averaged weights meet the
    statistics of others, and before `ModelCheckpoint`, which saves what was evaluated.
    `EarlyStopping(restore_best_weights=True)` brings back weights and statistics of an
    earlier epoch: after it, unless `every` is given, and before it with `every=1`.

    Args:
        x: inputs, as `recalibrate` takes them; they are read again each time.
        batch_size, steps: as in `recalibrate`.
        every: integer, how many epochs there are from one recalibration to the next;
            `None` for the end of training only.
        validation_data: optional `(x, y)`, `(x, y, sample_weight)` or a dataset: the
            model is evaluated on it before and after each recalibration. It may be
            worse after it, where weights have adapted to statistics that were off.
        verbose: 0, or 1 to print what was moved, and what it did to the metrics.

    Attributes:
        history: list of dictionaries, one for each recalibration: `"epoch"`,
            `"record"` (a `Recalibration`), `"before"` and `"after"` (metrics; `None`
            without `validation_data`).

    Raises:
        ValueError: in `fit`, for a wrong order of callbacks; for wrong arguments.

    Example:

    >>> import keras, keras_bnx
    >>> model = keras.Sequential([keras.Input((3,)), keras_bnx.BatchNormalization()])
    >>> model.compile("sgd", "mse")
    >>> x = keras.ops.convert_to_numpy(keras.random.normal((64, 3), mean=5.0, seed=1))
    >>> callback = keras_bnx.Recalibrate(x)
    >>> _ = model.fit(x, x, verbose=0, callbacks=[callback])
    >>> layer = model.layers[0]
    >>> print(bool(keras.ops.all(abs(layer.moving_mean - x.mean(axis=0)) < 1e-5)))
    True
    """

    def __init__(
        self,
        x: Any,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        every: int | None = None,
        validation_data: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if every is not None and every < 1:
            raise ValueError(
                f"`every` has to be at least 1. Received: every={every}. Leave it "
                "None to recalibrate at the end of training."
            )
        self.x, self.batch_size, self.steps = x, batch_size, steps
        self.every, self.validation_data, self.verbose = every, validation_data, verbose
        self.history: list[dict[str, Any]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.history = []
        self._epoch = self._record = None
        self._others = _in_one_list_with(self)
        self._raise_unless_ordered()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._leave()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # `evaluate` runs callbacks too: of its own, and this one while it evaluates.
        if self._is_due() and not self._is_evaluating:
            self._enter()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        # From here on the weights may be others, until they are swapped again.
        if self._swaps() and not self._is_evaluating:
            self._leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._is_due() and self._swaps() in (None, "on_epoch"):
            self._enter()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._leave()
        self._epoch = None
        self._recalibrate("end")

    # Outside of `fit`, in `evaluate`, it does nothing.
    _is_evaluating = False
    _epoch: int | None = None
    _record: Recalibration | None = None
    _others: list[keras.callbacks.Callback] | tuple[()] = ()

    def _is_due(self):
        return (
            self.every is not None
            and self._epoch is not None
            and (self._epoch + 1) % self.every == 0
        )

    def _enter(self):
        """Puts the population's statistics in, once an epoch for the same weights."""
        if self._record is not None:
            return
        if self.history and self.history[-1]["epoch"] == self._epoch:
            self._record = self.history[-1]["record"]
            self._record.redo()
        else:
            self._record = self._recalibrate(self._epoch)

    def _leave(self):
        """Puts back what training goes on with."""
        if self._record is not None:
            self._record.undo()
            self._record = None

    def _recalibrate(self, epoch):
        before = self._evaluate()
        record = recalibrate(
            self.model,
            self.x,
            batch_size=self.batch_size,
            steps=self.steps,
            verbose=0,
        )
        try:
            after = self._evaluate()
        except BaseException:
            record.undo()
            raise
        self.history.append(
            {"epoch": epoch, "record": record, "before": before, "after": after}
        )
        if self.verbose:
            when = "at the end" if epoch == "end" else f"in epoch {epoch + 1}"
            print(f"\nRecalibrated {when}:\n{record}")
            for name in before or ():
                print(f"{name}: {before[name]:.4g} before, {after[name]:.4g} after")
        return record

    def _evaluate(self):
        if self.validation_data is None:
            return None
        data = self.validation_data
        x, y, weights = keras.utils.unpack_x_y_sample_weight(
            data if isinstance(data, tuple) else (data,)
        )
        if self._swaps():
            # At the end SwapEMAWeights makes weights and their average one array, and
            # JAX's `evaluate` gives its arrays away.
            _write(_values(self.model.trainable_variables))
        self._is_evaluating = True
        try:
            return self.model.evaluate(
                x, y, sample_weight=weights, verbose=0, return_dict=True
            )
        finally:
            self._is_evaluating = False

    def _swaps(self):
        """Where averaged weights are in: `"for tests"`, `"on_epoch"`'s end too."""
        for other in self._others:
            if isinstance(other, keras.callbacks.SwapEMAWeights):
                return "on_epoch" if other.swap_on_epoch else "for tests"
        return None

    def _raise_unless_ordered(self):
        before, after = [], []
        for other in self._others:
            if isinstance(other, keras.callbacks.SwapEMAWeights):
                before.append(other)
            elif isinstance(other, keras.callbacks.ModelCheckpoint):
                after.append(other)
            elif isinstance(other, keras.callbacks.EarlyStopping):
                if other.restore_best_weights:
                    (before if self.every is None else after).append(other)
        own = self._others.index(self) if self in self._others else 0
        wrong = any(self._others.index(other) > own for other in before)
        wrong = wrong or any(self._others.index(other) < own for other in after)
        if wrong:
            order = [*before, self, *after]
            raise ValueError(
                "The order of the callbacks decides which weights meet which "
                f"statistics. Received: {_listed(self._others)}. "
                f"Pass them as {_listed(order)}."
            )
        if self._swaps() == "for tests" and self.every is not None:
            for other in after:
                if isinstance(other, keras.callbacks.ModelCheckpoint):
                    raise ValueError(
                        "What `ModelCheckpoint` saves wouldn't be what was evaluated. "
                        "Received: SwapEMAWeights(swap_on_epoch=False), which swaps "
                        "averaged weights out before it saves. Pass "
                        "`swap_on_epoch=True`."
                    )


def _listed(callbacks):
    return ", ".join(type(callback).__name__ for callback in callbacks)


def _in_one_list_with(callback):
    """The callbacks that are called together with one, in their order.

    Keras tells a callback nothing of the others. The list is its caller's: it is
    looked up there, while it is called.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            if any(other is callback for other in caller.callbacks):
                kept = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
                return [c for c in caller.callbacks if not isinstance(c, kept)]
        frame = frame.f_back
    return [callback]
