"""A report on the statistics of every batch normalization of a model."""

import importlib
import io
import math
import os
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.distance import Distance, geometric_mean, root_mean_square
from keras_bnx.tools.models import (
    batch_normalizations,
    names,
    table,
    written_whole,
)
from keras_bnx.tools.observation import (
    Observation,
    Seen,
    is_trained,
    moving_statistics,
    observe,
    raise_unless_built,
)

# A channel that gamma multiplies by less than this adds nothing that later layers,
# whose weights are of the order of 0.1 and more, could see beside the others.
DEAD = 1e-3
# Outputs that are off by a tenth of a deviation are within the noise of training on
# batches of 100 (1 / sqrt(100)); by half of one, they are another input.
NOTICEABLE, HARMFUL = 0.1, 0.5


@dataclass(frozen=True)
class LayerStatistics:
    """What is known of one batch normalization.

    Attributes:
        layer: its name.
        channels: how many it has.
        distance: `Distance` of its moving statistics from the data's; `None` without
            data, or where the model didn't call it.
        mean_to_deviation: the largest `|mean| / sqrt(variance)` of a channel of its
            inputs; `nan` where it isn't known.
        dead: how many channels have a gamma below 1e-3.
        below_epsilon: how many channels have a variance below epsilon, which then
            decides how they are scaled; the data's where it is known, and otherwise the
            moving one.
        never_updated: whether the moving statistics are the initial ones.
        frozen: whether they don't follow the batches.
        seen: `Seen`, of all calls; `None` without data.
    """

    layer: str
    channels: int
    distance: Distance | None
    mean_to_deviation: float
    dead: int
    below_epsilon: int
    never_updated: bool
    frozen: bool
    seen: Seen | None

    @property
    def error(self) -> float:
        """How far the normalized outputs are off at inference, in deviations.

        The root of the mean square over inputs and channels; `nan` without data.
        """
        return root_mean_square(self.distance.error) if self.distance else math.nan

    @property
    def harm(self) -> float:
        """What rows are sorted by: the error, or else the part that is in doubt."""
        if self.distance:
            return self.error
        doubtful = self.dead + self.below_epsilon
        return self.never_updated + doubtful / max(1, 2 * self.channels)

    @property
    def notes(self) -> str:
        """What else is to be said of the layer, in words; empty where nothing is."""
        notes = {
            "never updated": self.never_updated,
            "frozen": self.frozen,
            "not called": self.seen is not None and not self.seen.calls,
            "not finite": self.seen is not None and bool(self.seen.not_finite),
        }
        return ", ".join(note for note, holds in notes.items() if holds)

    def cells(self) -> list[str]:
        """The row of a table."""
        distance = self.distance
        mean = root_mean_square(distance.mean) if distance else math.nan
        ratio = geometric_mean(distance.ratio) if distance else math.nan
        return [
            self.layer,
            str(self.channels),
            _number(self.error),
            _number(mean),
            _number(ratio, "x "),
            _number(self.mean_to_deviation),
            str(self.dead),
            str(self.below_epsilon),
            self.notes,
        ]


HEADER = [
    "layer",
    " channels",
    " outputs off",
    " mean off",
    " deviation",
    " mean/deviation",
    " dead",
    " var < eps",
    "note",
]


def _number(value, prefix=""):
    return "-" if math.isnan(value) else f"{prefix}{value:.3g}"


class StatisticsReport:
    """Statistics of every batch normalization of a model.

    Prints as a table. `outputs off`, `mean off` and `deviation` compare the moving
    statistics with the data's, averaged over channels, in deviations of the data and
    as a ratio; `mean/deviation` is the largest at the layer's input.

    Attributes:
        rows: list of `LayerStatistics`, the most harmful first.
        in_order: the same, in the order in which the model calls its layers.
        samples, batches: how many were looked at; 0 without data.
    """

    def __init__(self, rows: list[LayerStatistics], samples: int, batches: int) -> None:
        self.in_order = rows
        self.rows = sorted(rows, key=lambda row: -row.harm)
        self.samples, self.batches = samples, batches

    def __str__(self) -> str:
        if self.samples:
            end = f"{self.samples} samples in {self.batches} batches"
        else:
            end = "Without data: pass `x` to compare with what the layers see"
        return f"{table(HEADER, [row.cells() for row in self.rows])}\n{end}"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the layers along the depth of the model into a PNG.

        Args:
            path: of the file, which is replaced at once or not at all.

        Raises:
            ValueError: without data.
            ImportError: without matplotlib.
        """
        rows = [row for row in self.in_order if row.distance]
        if not rows:
            raise ValueError(
                "There is nothing to draw without data. Received: a report of no "
                "samples. Make it with `statistics_report(model, x)`."
            )
        figure = _draw(rows)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_whole(path, buffer.getvalue())


def statistics_report(
    model: keras.Layer,
    x: Any = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    verbose: str | int = "auto",
) -> StatisticsReport:
    """Compares every batch normalization's moving statistics with what it sees.

    For when evaluation is worse than training: the layer whose moving statistics are
    far from the data's stands on top. The data are those that the model is evaluated
    on, or those that it was trained on: what is far from the former only, the data
    have changed. Layers see them as `recalibrate` has it, normalizing by the batch, so
    that each is judged by itself.

    Args:
        model: a built model or layer, with batch normalizations of Keras or ours.
        x: inputs as `predict` takes them, see `recalibrate`; without them, what can
            be known from the weights alone.
        batch_size, steps, verbose: as in `predict`.

    Returns:
        `StatisticsReport`: prints as a table; `rows` to work with, the most harmful
        first; `plot(path)` draws a figure.

    Raises:
        ValueError: as `recalibrate`, but for inputs that aren't finite: those channels
            are left out of the batch, and their layers marked.

    Example:

    >>> import keras, keras_bnx
    >>> model = keras.Sequential([keras.Input((3,)), keras_bnx.BatchNormalization()])
    >>> x = keras.random.normal((64, 3), mean=5.0, seed=1)
    >>> report = keras_bnx.statistics_report(model, x, verbose=0)
    >>> print(report.rows[0].never_updated, round(report.rows[0].error))
    True 5
    """
    layers = batch_normalizations(model)
    raise_unless_built(model, layers)
    observation = Observation(0, 0, dict.fromkeys(layers))
    if x is not None:
        observation = observe(
            model, x, batch_size=batch_size, steps=steps, verbose=verbose
        )
    return report_on(observation)


def report_on(observation):
    """The report on an `Observation`, whose layers may have seen nothing."""
    named = names(observation.layers)
    rows = [
        _row(layer, named[id(layer)], seen)
        for layer, seen in observation.layers.items()
    ]
    return StatisticsReport(rows, observation.samples, observation.batches)


def _row(layer, name, seen):
    moving, epsilon = moving_statistics(layer), layer.epsilon
    distance, largest, variance = None, math.nan, moving[1]
    if seen is not None and seen.population.count.any():
        population = seen.population
        distance = Distance.between(name, moving, population, epsilon)
        has_variance = population.variance > 0
        variance = np.where(population.size > 1, population.variance, variance)
        deviation = np.sqrt(population.variance[has_variance])
        ratios = np.abs(population.mean[has_variance]) / deviation
        largest = float(ratios.max(initial=0.0))
    gamma = None if layer.gamma is None else ops.convert_to_numpy(layer.gamma.value)
    return LayerStatistics(
        layer=name,
        channels=len(variance),
        distance=distance,
        mean_to_deviation=largest,
        dead=0 if gamma is None else int((np.abs(gamma) < DEAD).sum()),
        below_epsilon=int((variance < epsilon).sum()),
        never_updated=_never_updated(layer),
        frozen=not is_trained(layer),
        seen=seen,
    )


def _never_updated(layer):
    """Whether moving statistics are the initial ones, as far as that can be known."""
    if isinstance(layer, BatchNormalization) and layer.history is not None:
        if layer.history.counts:
            return not ops.convert_to_numpy(layer.history.mean_updates.value).any()
    return all(
        # A random initializer has a seed, and draws the same numbers again.
        np.array_equal(
            ops.convert_to_numpy(variable.value),
            ops.convert_to_numpy(initializer(variable.shape, dtype=variable.dtype)),
        )
        for variable, initializer in (
            (layer.moving_mean, layer.moving_mean_initializer),
            (layer.moving_variance, layer.moving_variance_initializer),
        )
    )


def write_whole(path, content):
    """Writes bytes into a file that never has half of them."""
    with written_whole(path) as beside:
        beside.write_bytes(content)


# Okabe and Ito (2008): told apart by the colour-blind as well.
_FINE, _SUSPICIOUS, _WRONG = "#0072B2", "#E69F00", "#D55E00"
_MOST_NAMES = 40


def _draw(rows):
    try:
        Figure = importlib.import_module("matplotlib.figure").Figure
        ticker = importlib.import_module("matplotlib.ticker")
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib, which can't be imported "
            f"({error}). Install it: `python -m pip install matplotlib`."
        ) from error
    width = min(16.0, max(6.0, 2.5 + 0.3 * len(rows)))
    figure = Figure(figsize=(width, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    floor = 1e-3
    for i, row in enumerate(rows):
        colour = _WRONG if row.error >= HARMFUL else _FINE
        if NOTICEABLE <= row.error < HARMFUL:
            colour = _SUSPICIOUS
        for axes, values in (
            (top, np.maximum(np.abs(row.distance.mean), floor)),
            (bottom, row.distance.ratio),
        ):
            axes.plot([i, i], [values.min(), values.max()], color=colour, lw=1.5)
            axes.plot(i, np.median(values), "o", color=colour, ms=5)
    top.axhspan(floor, NOTICEABLE, color="0.93", zorder=0)
    top.set(yscale="log", ylabel="|moving mean - mean|\nin deviations")
    top.set_ylim(bottom=floor)
    bottom.axhspan(1 - NOTICEABLE, 1 + NOTICEABLE, color="0.93", zorder=0)
    bottom.axhline(1.0, color="0.5", lw=0.8)
    bottom.set(yscale="log", ylabel="moving deviation\n/ deviation")
    low, high = bottom.get_ylim()
    bottom.set_ylim(min(low, 0.5), max(high, 2.0))
    for axes in (top, bottom):
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    top.yaxis.set_major_locator(ticker.LogLocator())
    bottom.set_xlim(-0.6, len(rows) - 0.4)
    few = len(rows) <= _MOST_NAMES
    shown = range(len(rows)) if few else range(0, len(rows), len(rows) // 20)
    names = [rows[i].layer for i in shown]
    bottom.set_xticks(list(shown), names, rotation=90, fontsize=7)
    bottom.set_xlabel("batch normalizations, from input to output")
    marks = [
        top.plot([], [], "o-", color=colour, label=label)[0]
        for colour, label in (
            (_FINE, f"outputs off by less than {NOTICEABLE} deviations"),
            (_SUSPICIOUS, f"{NOTICEABLE} to {HARMFUL}"),
            (_WRONG, f"{HARMFUL} and more"),
        )
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, fontsize=8)
    top.set_title(
        "Moving statistics against the data's: median and range over channels\n"
        f"(grey: within {NOTICEABLE})",
        fontsize=10,
    )
    return figure
