"""How far float32 outputs are off in training, by the mean of their channel.

    KERAS_BACKEND=torch python -m benchmarks.accuracy
    python -m benchmarks.accuracy --plot

The first measures Keras's layer and ours against the float64 oracle, and writes a row
for each ratio of mean and deviation. The second draws README's figure from what the
three backends have written.
"""

import argparse
import csv
import math

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

import keras_bnx
from benchmarks import harness
from keras_bnx import reference

RATIOS = [10.0**exponent for exponent in range(7)]
PROVIDERS = {
    "keras": keras.layers.BatchNormalization,
    "ours": keras_bnx.BatchNormalization,
}
FIGURE = harness.ROOT / "docs" / "accuracy.png"
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# The palette by Okabe and Ito, whose colours everybody can tell apart.
COLORS = {"tensorflow": "#E69F00", "jax": "#56B4E9", "torch": "#D55E00"}


def error(cls, ratio):
    """The largest error of an output, for inputs of deviation 1."""
    x = np.random.default_rng(0).normal(ratio, 1.0, (1000, 4)).astype("float32")
    y = cls(epsilon=1e-5)(x, training=True)
    state = reference.State(np.zeros(4), np.ones(4))
    arguments = reference.Arguments(epsilon=1e-5)
    expected = reference.batch_normalization(x, state, arguments).y
    return float(np.abs(ops.convert_to_numpy(y) - expected).max())


def measure():
    """A row for each ratio and layer."""
    return [
        {"ratio": ratio, "provider": provider, "error": error(cls, ratio)}
        for provider, cls in PROVIDERS.items()
        for ratio in RATIOS
    ]


def read():
    """The errors in the files, by backend and layer, in the order of the ratios."""
    found = {}
    for path in sorted(harness.ROOT.glob("benchmarks/results/*/*-accuracy.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                errors = found.setdefault((row["backend"], row["provider"]), {})
                errors[float(row["ratio"])] = float(row["error"])
    return found


def draw(found):
    """Keras's layer on each backend, and the worst of ours."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for backend, color in COLORS.items():
        label, errors = f"Keras, {NAMES[backend]}", found[backend, "keras"]
        axes.plot(*zip(*errors.items(), strict=True), "o-", color=color, label=label)
        lost = [ratio for ratio, value in errors.items() if math.isnan(value)]
        if lost:
            axes.plot(lost, [1.0] * len(lost), "x", color=color, label=f"{label}: NaN")
    worst = [max(found[backend, "ours"][r] for backend in COLORS) for r in RATIOS]
    label = "keras_bnx, the worst of the three"
    axes.plot(RATIOS, worst, "s-", color="#0072B2", lw=2, label=label)
    axes.set(xscale="log", yscale="log", ylabel="largest error of an output")
    axes.set_xlabel("mean / standard deviation of a channel")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", action="store_true", help="draw, and measure nothing")
    if parser.parse_args().plot:
        draw(read()).savefig(FIGURE, dpi=150)
        print(FIGURE.relative_to(harness.ROOT))
        return
    print(harness.write(harness.ROOT / "benchmarks", "accuracy", measure()))


if __name__ == "__main__":
    main()
