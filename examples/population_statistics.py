"""Compares moving averages with the statistics of all training images.

    python examples/population_statistics.py             # MNIST, downloaded by Keras
    python examples/population_statistics.py --quick     # 8x8 digits, in scikit-learn

At inference a normalization takes the place of a batch's mean and variance by those of
the population. The paper (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167,
Algorithm 2) goes for them through many batches once the weights are final: the mean
of the batches' means, and of their variances with the divisor n - 1. Layers estimate
them during training, when weights still move:

| estimate   | arguments                       | an average of                   |
| ---------- | ------------------------------- | ------------------------------- |
| moving     |                                 | the last batches, at first of   |
|            |                                 | initial values                  |
| debiased   | `debias_moving_statistics=True` | the last batches                |
| cumulative | `momentum=None`                 | all batches since the start     |
| exact      | Algorithm 2                     | all training images, with the   |
|            |                                 | weights of the moment           |

Training doesn't depend on the estimates, which only inference reads: copies of the
network with the same seed have the same weights all along, and differ in these
averages only. How much the copies do differ is measured.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import numpy as np

# keras and keras_bnx are imported inside the functions that use them: the backend is
# fixed by the first import of keras, and `--backend` has to come before.
from common import (
    BACKENDS,
    COLOURS,
    IMAGES,
    compare,
    format_table,
    load_images,
    new_figure,
    new_parser,
    parse,
    percent,
    save,
    write_report,
)
from matplotlib.ticker import LogLocator, NullFormatter

DEFAULTS = {"epochs": 5, "seeds": 2}
QUICK = {"epochs": 10, "seeds": 1}
UNITS, BATCH_SIZE = 100, 60
MOMENTUM = 0.99
# How many steps are done at a look; the last one is at the end. Tables are of that one,
# of one where initial values show, and of one where 0.99**300 = 5 % of them are left.
LOOKS = (3, 10, 30, 100, 300, 1000, 3000)
TABLES = (30, 300)

ESTIMATES = {
    "moving": {"momentum": MOMENTUM},
    "debiased": {"momentum": MOMENTUM, "debias_moving_statistics": True},
    "cumulative": {"momentum": None},
    "exact": {"momentum": None, "unbiased_moving_variance": True},
}
LINES = {
    "moving": {"color": COLOURS["blue"], "linestyle": "-", "marker": "o"},
    "debiased": {"color": COLOURS["sky"], "linestyle": "--", "marker": "v"},
    "cumulative": {"color": COLOURS["vermilion"], "linestyle": "-.", "marker": "s"},
    "exact": {"color": COLOURS["green"], "linestyle": ":", "marker": "D"},
}
LABELS = {
    "moving": f"moving averages, momentum {MOMENTUM}",
    "debiased": "debiased",
    "cumulative": "cumulative average",
    "exact": "exact (Algorithm 2)",
}


def build_model(image_shape, estimate):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        estimate: string, one of `ESTIMATES`.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    layers = [keras.Input(image_shape), keras.layers.Flatten()]
    for _ in range(2):
        layers += [
            # The normalization takes the mean out, and with it any bias.
            keras.layers.Dense(UNITS, use_bias=False),
            keras_bnx.BatchNormalization(**ESTIMATES[estimate]),
            keras.layers.ReLU(),
        ]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def normalizations(model):
    """Returns the normalization layers."""
    return [layer for layer in model.layers if hasattr(layer, "moving_mean")]


def take_population_statistics(twin, model, images):
    """Takes the population statistics of a network in its twin (Algorithm 2).

    With `momentum=None` one pass in training mode does it: the averages start anew, and
    weigh all batches alike. The batches are as large as in training, since a layer
    is fed what the ones below make of batches.

    Args:
        twin: a network built for `"exact"`; afterwards it has all weights of `model`.
        model: the network in training, whose statistics stay.
        images: the training images.
    """
    import keras

    pairs = zip(twin.trainable_variables, model.trainable_variables, strict=True)
    for new, old in pairs:
        # A copy: on JAX the next step gives the old array's memory away.
        new.assign(keras.ops.copy(old))
    for layer in normalizations(twin):
        layer.reset_moving_statistics()
    for start in range(0, len(images), BATCH_SIZE):
        twin(images[start : start + BATCH_SIZE], training=True)


def statistics(model, estimate, steps):
    """Returns the mean and the variance of all normalized channels, two arrays.

    Args:
        model: the network.
        estimate: string, one of `ESTIMATES`.
        steps: integer, how many batches the statistics have seen.
    """
    import keras

    mean, variance = (
        np.concatenate(
            [
                keras.ops.convert_to_numpy(getattr(layer, name))
                for layer in normalizations(model)
            ]
        )
        for name in ("moving_mean", "moving_variance")
    )
    if estimate == "debiased":
        # What is stored are Keras's averages; inference divides the initial 0 and 1 out
        # of them.
        initial = MOMENTUM**steps
        mean, variance = mean / (1 - initial), (variance - initial) / (1 - initial)
    return mean, variance


def train(estimate, train_data, test_data, *, epochs, seed):
    """Trains a copy of the network, and looks at its statistics now and then.

    Args:
        estimate: string, one of `ESTIMATES`; `"exact"` trains like any other, and looks
            through a twin.
        train_data, test_data: tuples of images and labels, pixels from 0 to 1.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        Dictionary: `steps`, list of integers, the steps done at each look; `statistics`
        and `accuracy`, lists of what inference has there; `weights`, the kernel of
        the first layer in the end.
    """
    import keras

    print(f"\n{LABELS[estimate]}, seed {seed}")
    keras.utils.set_random_seed(seed)
    images, labels = train_data
    model = build_model(images.shape[1:], estimate)
    twin = build_model(images.shape[1:], estimate) if estimate == "exact" else model

    # All batches are full, so that each of them is the same share of the population.
    num_batches = len(images) // BATCH_SIZE
    images, labels = (array[: num_batches * BATCH_SIZE] for array in (images, labels))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(epochs)])
    end = num_batches * epochs
    looks = [*(steps for steps in LOOKS if steps < end), end]

    result = {"steps": looks, "statistics": [], "accuracy": []}
    for start, steps in zip([0, *looks], looks, strict=False):
        chosen = order[start * BATCH_SIZE : steps * BATCH_SIZE]
        model.fit(images[chosen], labels[chosen], batch_size=BATCH_SIZE, shuffle=False)
        if estimate == "exact":
            take_population_statistics(twin, model, images)
        result["statistics"].append(statistics(twin, estimate, steps))
        result["accuracy"].append(
            twin.evaluate(*test_data, batch_size=1000, verbose=0)[1]
        )
    result["weights"] = np.array(keras.ops.convert_to_numpy(model.layers[1].kernel))
    return result


def distances(run, exact):
    """Measures at each look how far an estimate is from the population statistics.

    Args:
        run: dictionary, what `train` returned for an estimate.
        exact: dictionary, what it returned for `"exact"` with the same seed.

    Returns:
        Dictionary of arrays, a number a look, means over all normalized channels:
        `mean`, the distance of the means in standard deviations; `variance`, the
        relative error of the variance, without its sign; `bias`, with its sign.
    """
    found = {"mean": [], "variance": [], "bias": []}
    pairs = zip(run["statistics"], exact["statistics"], strict=True)
    for (mean, variance), (true_mean, true_variance) in pairs:
        error = variance / true_variance - 1
        found["mean"].append((abs(mean - true_mean) / np.sqrt(true_variance)).mean())
        found["variance"].append(abs(error).mean())
        found["bias"].append(error.mean())
    return {name: np.array(values) for name, values in found.items()}


def mean_distances(results, estimate, name):
    """Returns one of the distances of an estimate at each look, the mean of seeds."""
    pairs = zip(results[estimate], results["exact"], strict=True)
    return np.mean([distances(run, exact)[name] for run, exact in pairs], axis=0)


def results_table(results, look):
    """Returns the distances and the accuracy at a look, a row for each estimate.

    Args:
        results: dictionary, of each estimate the seeds' results.
        look: integer, the index of the look.
    """
    rows = []
    for estimate, runs in results.items():
        errors = [
            f"{mean_distances(results, estimate, name)[look]:{form}}"
            for name, form in (("mean", ".4f"), ("variance", ".2%"), ("bias", "+.2%"))
        ]
        accuracy = [run["accuracy"][look] for run in runs]
        if estimate == "exact":
            errors = ["0", "0", "0"]
        rows.append([estimate, *errors, percent(accuracy, digits=2)])
    header = ["estimate", "mean's distance", "variance's error", "its bias"]
    return format_table([*header, "test accuracy in %"], rows)


def read_numbers(results, shown, *, num_images):
    """Says in words what the tables show.

    Args:
        results: dictionary, of each estimate the seeds' results.
        shown: list of integers, the indices of the looks that have tables.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """
    looks = results["exact"][0]["steps"]

    def against(estimate, look):
        pair = (
            [run["accuracy"][look] for run in results[name]]
            for name in ("exact", estimate)
        )
        return compare(*pair, num_images=num_images)

    def closest(name, look):
        return min(
            (estimate for estimate in ESTIMATES if estimate != "exact"),
            key=lambda estimate: mean_distances(results, estimate, name)[look],
        )

    lines = []
    for estimate in ("moving", "debiased", "cumulative"):
        words = (f"after {looks[i]} steps {against(estimate, i)}" for i in shown)
        lines.append(
            f"- {estimate.capitalize()} in place of exact statistics: "
            f"{'; '.join(words)}."
        )
    lines.append(
        f"- Closest to the exact mean in the end: {closest('mean', -1)}; to the exact "
        f"variance: {closest('variance', -1)}. The divisor n alone makes a variance "
        f"{1 / BATCH_SIZE:.2%} too small."
    )
    difference = max(
        abs(run["weights"] - exact["weights"]).max()
        for runs in results.values()
        for run, exact in zip(runs, results["exact"], strict=True)
    )
    lines.append(
        "- The first layer's weights differ between the copies, after the training, "
        f"by at most {difference:.1e}."
    )
    return lines


def plot(results, path, *, title):
    """Draws both distances and the accuracy against steps."""
    figure, (mean, variance, accuracy) = new_figure(title, size=(14, 5.8), columns=3)
    looks = results["exact"][0]["steps"]
    for estimate, runs in results.items():
        style = {**LINES[estimate], "linewidth": 2.5, "markersize": 8}
        shares = np.mean([run["accuracy"] for run in runs], axis=0)
        accuracy.plot(looks, 100 * shares, label=LABELS[estimate], **style)
        if estimate != "exact":
            for axes, name in ((mean, "mean"), (variance, "variance")):
                axes.plot(looks, mean_distances(results, estimate, name), **style)
    variance.axhline(1 / BATCH_SIZE, color="0.4", linewidth=1.5)
    variance.annotate(
        f"1/{BATCH_SIZE}: divisor n",
        (looks[0], 1 / BATCH_SIZE),
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=13,
    )
    mean.set_title("distance of the mean", fontsize=15)
    mean.set_ylabel("exact standard deviations (log scale)", fontsize=15)
    variance.set_title("relative error of the variance", fontsize=15)
    variance.set_ylabel("share of the exact one (log scale)", fontsize=15)
    accuracy.set_title("test images", fontsize=15)
    accuracy.set_ylabel("accuracy (%)", fontsize=15)
    for axes in (mean, variance):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (mean, variance, accuracy):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("steps (log scale)", fontsize=15)
    save(figure, path, ncols=4, handlelength=3)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each estimate the list of what `train` returns.
    """
    args = parse(new_parser(__doc__), argv, defaults=DEFAULTS, quick=QUICK)
    data = "digits" if args.quick else "mnist"
    train_data, test_data = (
        (images / 255, labels) for images, labels in load_images(data)
    )
    title = f"{IMAGES[data]}, Keras on {BACKENDS[args.backend]}"
    num_images = len(test_data[0])
    print(
        f"{title}: {len(train_data[0])} training images, {num_images} test images, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )

    results = {
        estimate: [
            train(estimate, train_data, test_data, epochs=args.epochs, seed=seed)
            for seed in range(args.seeds)
        ]
        for estimate in ESTIMATES
    }
    picture = "population_statistics.png"
    plot(results, args.output / picture, title=f"Estimates of statistics, {title}")
    looks = results["exact"][0]["steps"]
    shown = [i for i, n in enumerate(looks) if n in TABLES or n == looks[-1]]
    tables = []
    for look in shown:
        tables += [f"After {looks[look]} steps:", results_table(results, look)]
    write_report(
        args,
        "population_statistics",
        f"Population statistics and their estimates: {title}",
        [
            f"Batches of {BATCH_SIZE}; means of {2 * UNITS} channels; seeds: "
            f"{args.seeds}. The mean's distance is in exact standard deviations; the "
            "variance's error is relative, its bias with the sign.",
            *tables,
            "\n".join(read_numbers(results, shown, num_images=num_images)),
        ],
        {picture: "Distances of the estimates, and accuracy with each, over steps"},
    )
    return results


if __name__ == "__main__":
    main()
