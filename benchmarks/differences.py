"""What Keras's layer does and what this one does, where they differ.

    KERAS_BACKEND=torch python -m benchmarks.differences
    python -m benchmarks.differences --report

The first prints and writes one line a situation: what happens with
`keras.layers.BatchNormalization`, and what here. The second makes README's figure, its
table and that of docs/differences.md from what the three backends have written.
"""

import csv
import math
import sys

import keras
import numpy as np
from keras import ops

import keras_bnx
from benchmarks import harness
from keras_bnx import reference


def normal(mean, deviation, shape):
    """The same numbers for both layers."""
    return np.random.default_rng(0).normal(mean, deviation, shape)


def attempt(function):
    """The text of a number or word that a function returns, or of its error."""
    try:
        result = function()
    except Exception as error:
        return type(error).__name__
    if isinstance(result, str):
        return result
    text = f"{result:.2g}".replace("e-0", "e-")
    return f"{result:.0f}" if "e+" in text else text


def to_numpy(x):
    return np.array(ops.convert_to_numpy(x), "float64")


def output_error(cls, ratio):
    x = normal(ratio, 1.0, (1000, 4)).astype("float32")
    y = to_numpy(cls(epsilon=1e-5)(x, training=True))
    state = reference.State(np.zeros(4), np.ones(4))
    expected = reference.batch_normalization(
        x, state, reference.Arguments(epsilon=1e-5)
    ).y
    return np.abs(y - expected).max()


def fit_5000(cls):
    x = normal(5000, 0.1, (256, 2)).astype("float32")
    model = keras.Sequential([cls(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((256, 1)), epochs=2, verbose=0)
    finite = np.isfinite(model.predict(x, verbose=0)).mean()
    return f"{finite:.0%}"


def moving(layer, name="moving_mean"):
    return to_numpy(getattr(layer, name))[0]


def empty_batch(cls):
    layer = cls()
    layer(np.zeros((0, 3), "float32"), training=True)
    return moving(layer)


def one_inf(cls):
    layer = cls()
    layer(np.array([[1.0], [np.inf], [2.0]], "float32"), training=True)
    return moving(layer)


def all_masked(cls):
    layer = cls(momentum=0.9, moving_mean_initializer=keras.initializers.Constant(5.0))
    layer(np.ones((4, 3, 2), "float32"), training=True, mask=np.zeros((4, 3), bool))
    return moving(layer)


def one_row(cls):
    layer = cls(momentum=0.9)
    layer(np.ones((1, 3), "float32"), training=True)
    return moving(layer, "moving_variance")


def mask_axis_1(cls):
    x = normal(0.0, 1.0, (6, 4, 4)).astype("float32")
    mask = np.random.default_rng(1).uniform(size=(6, 4)) > 0.5
    y = to_numpy(cls(axis=1)(x, training=True, mask=mask))
    state, arguments = (
        reference.State(np.zeros(4), np.ones(4)),
        reference.Arguments(axis=1),
    )
    weights = mask[:, None, :].astype(float)
    return np.abs(
        y - reference.batch_normalization(x, state, arguments, weights=weights).y
    ).max()


def mask_4d(cls):
    x = normal(0.0, 1.0, (2, 3, 4, 5)).astype("float32")
    cls()(x, training=True, mask=np.ones((2, 3), bool))
    return "works"


def float16_overflow(cls):
    x = normal(1e5, 1.0, (64, 3)).astype("float32")
    y = to_numpy(cls(dtype="mixed_float16")(x, training=True))
    return f"{np.isfinite(y).mean():.0%}"


def bfloat16_stall(cls):
    layer = cls(dtype="bfloat16")
    x = normal(0.0, 0.5, (64, 3))
    x = ops.cast(3.0 + x - x.mean(axis=0), "bfloat16")
    for _ in range(700):
        layer(x, training=True)
    return moving(layer)


def float64_error(cls):
    x = normal(10.0, 1.0, (64, 3))
    y = to_numpy(cls(dtype="float64", epsilon=1e-5)(x, training=True))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return np.abs(y - expected).max()


def imported_variance(cls):
    layer = cls(renorm=True)
    layer.build((None, 3))
    layer.moving_variance.assign(np.full(3, 100.0))
    layer(normal(0, 10, (64, 3)).astype("float32"), training=True)
    return moving(layer, "moving_variance")


def momentum_15(cls):
    cls(momentum=1.5)
    return "accepted"


RATIOS = [10.0**exponent for exponent in range(7)]
SITUATIONS = {
    **{
        f"largest error of float32 outputs, mean/deviation = 1e{exponent}": (
            lambda cls, ratio=ratio: output_error(cls, ratio)
        )
        for exponent, ratio in enumerate(RATIOS)
    },
    "finite predictions after `fit` on columns of 5000 ± 0.1": fit_5000,
    "moving mean after an empty batch; before: 0": empty_batch,
    "moving mean after a batch with one inf; before: 0": one_inf,
    "moving mean after a fully masked batch; before: 5": all_masked,
    "moving variance after one row, momentum 0.9; before: 1": one_row,
    "largest error with a mask and `axis=1`, 4 channels, 4 steps": mask_axis_1,
    "a mask of (batch, time) on 4-D inputs": mask_4d,
    "finite outputs under `mixed_float16`, inputs of 1e5": float16_overflow,
    "moving mean after 700 steps of 3.0 under `bfloat16`": bfloat16_stall,
    "largest error under `float64`": float64_error,
    "imported variance of 100 after one step of renorm": imported_variance,
    "`momentum=1.5`": momentum_15,
}
# Those that README shows.
STARTS = ("finite", "moving mean", "largest error with", "largest error under")
SHORT = [name for name in SITUATIONS if name.startswith(STARTS)]
COLUMNS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
START = "<!-- Between these lines, benchmarks/differences.py writes. -->"
END = "<!-- The end of what it writes. -->"
DOCUMENTS = {"README.md": SHORT, "docs/differences.md": list(SITUATIONS)}


def measure():
    """One row a situation: what Keras's layer does, and what ours."""
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    for name, function in SITUATIONS.items():
        theirs = attempt(lambda: function(keras.layers.BatchNormalization))  # noqa: B023
        ours = attempt(lambda: function(keras_bnx.BatchNormalization))  # noqa: B023
        print(f"{name:60}  {theirs:20}  {ours}")
        yield {"situation": name, "theirs": theirs, "ours": ours}


def read():
    """What was measured: rows of the files, by backend and situation."""
    found = {}
    for path in sorted(harness.ROOT.glob("benchmarks/results/*/*-differences.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["backend"], row["situation"]] = row
    return found


def table(measured, names):
    """Situations in Markdown: Keras's layer on each backend, and ours on all.

    Where ours differs by backend, it's the largest number.
    """
    header = ["", *(f"Keras, {name}" for name in COLUMNS.values()), "keras_bnx"]
    lines = [f"| {' | '.join(header)} |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        rows = [measured[backend, name] for backend in COLUMNS]
        ours = sorted({row["ours"] for row in rows}, key=_size)[-1]
        cells = [name, *(row["theirs"] for row in rows), ours]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(text):
    try:
        return float(text.rstrip("%"))
    except ValueError:
        return math.inf


def between(text, content):
    """A document with other content between the two lines."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{content}\n\n{END}{after}"


def draw(measured):
    """The error of float32 outputs by the mean, in deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [name for name in SITUATIONS if "float32 outputs" in name]
    # The palette by Okabe and Ito, whose colours everybody can tell apart.
    styles = {"tensorflow": "#E69F00", "jax": "#56B4E9", "torch": "#D55E00"}
    for backend, color in styles.items():
        errors = [float(measured[backend, name]["theirs"]) for name in names]
        label = f"Keras, {COLUMNS[backend]}"
        axes.plot(RATIOS, errors, "o-", color=color, ms=4, label=label)
        lost = [r for r, error in zip(RATIOS, errors, strict=True) if math.isnan(error)]
        if lost:
            axes.plot(lost, [1.0] * len(lost), "x", color=color, label=f"{label}: NaN")
    ours = [
        max(float(measured[backend, name]["ours"]) for backend in COLUMNS)
        for name in names
    ]
    label = "keras_bnx, the worst of the three"
    axes.plot(RATIOS, ours, "s-", color="#0072B2", ms=4, lw=2, label=label)
    axes.set(xscale="log", yscale="log", ylabel="largest error of an output")
    axes.set_xlabel("mean / standard deviation of a channel")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def report():
    measured = read()
    for name, situations in DOCUMENTS.items():
        path = harness.ROOT / name
        path.write_text(between(path.read_text(), table(measured, situations)))
    draw(measured).savefig(harness.ROOT / "docs" / "accuracy.png", dpi=150)


def main():
    if sys.argv[1:] == ["--report"]:
        return report()
    rows = list(measure())
    print(harness.write(harness.ROOT / "benchmarks", "differences", rows))


if __name__ == "__main__":
    main()
