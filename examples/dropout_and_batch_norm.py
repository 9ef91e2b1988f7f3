"""Trains with dropout, with normalization, and with both in either order.

    python examples/dropout_and_batch_norm.py           # MNIST, downloaded by Keras
    python examples/dropout_and_batch_norm.py --quick   # 8x8 digits, in scikit-learn

Both are said to regularize, so that with the one the other is less needed (Ioffe and
Szegedy 2015, https://arxiv.org/abs/1502.03167, section 4.2.1). After each of the two
hidden layers of a network, Dense and ReLU, come:

| variant                     | after each ReLU                   |
| --------------------------- | --------------------------------- |
| none                        |                                   |
| dropout                     | Dropout                           |
| normalization               | BatchNormalization                |
| normalization, then dropout | BatchNormalization, then Dropout  |
| dropout, then normalization | Dropout, then BatchNormalization  |

The order matters for what normalization is told. Dropout at rate p leaves out values
in training and enlarges the others by 1 / (1 - p): the mean stays, the variance grows.
A normalization that comes after it stores that variance, and at inference meets
another one (Li et al. 2018, https://arxiv.org/abs/1801.05134). The table has the ratio
of the two, and the accuracy when statistics are taken anew without dropout.

The network sees 5000 of MNIST's 60000 images, so that there is something to generalize
and a gap between training and test that could be narrowed.

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
    mean_and_spread,
    new_figure,
    new_parser,
    parse,
    percent,
    save,
    write_report,
)

DEFAULTS = {"epochs": 20, "seeds": 3}
QUICK = {"seeds": 1}
NUM_TRAIN, QUICK_NUM_TRAIN = 5000, 300
UNITS, BATCH_SIZE, RATE = 256, 50, 0.5
# The weight of the old value in the moving averages: 300 images are 6 batches an epoch,
# and at Keras's default, 0.99, 0.99**120 = 30 % of the averages would be initial values
# after 20 epochs.
MOMENTUM = 0.9

VARIANTS = {
    "none": (),
    "dropout": ("dropout",),
    "normalization": ("normalization",),
    "normalization, then dropout": ("normalization", "dropout"),
    "dropout, then normalization": ("dropout", "normalization"),
}

LINES = dict(
    zip(
        VARIANTS,
        (COLOURS[name] for name in ("orange", "vermilion", "blue", "green", "purple")),
        strict=True,
    )
)


def build_model(image_shape, variant, *, momentum=MOMENTUM):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        variant: string, one of `VARIANTS`.
        momentum: float in [0, 1], that of the normalization layers.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    makers = {
        "dropout": lambda: keras.layers.Dropout(RATE),
        "normalization": lambda: keras_bnx.BatchNormalization(momentum=momentum),
    }
    layers = [keras.Input(image_shape), keras.layers.Flatten()]
    for _ in range(2):
        layers.append(keras.layers.Dense(UNITS, activation="relu"))
        layers += [makers[name]() for name in VARIANTS[variant]]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def variance_ratios(model, images):
    """Returns the variance at inference over the stored one, of each normalization.

    Args:
        model: the trained network.
        images: the training images, so that what differs is dropout alone.

    Returns:
        List of floats, over the channels the median: a unit that is hardly ever
        active has a variance of a few images.
    """
    import keras

    layers = [layer for layer in model.layers if hasattr(layer, "moving_variance")]
    inputs = [layer.input for layer in layers]
    values = keras.Model(model.inputs[0], inputs).predict(images, verbose=0)
    ratios = []
    for layer, x in zip(layers, values, strict=True):
        stored = keras.ops.convert_to_numpy(layer.moving_variance)
        active = stored > 0
        ratios.append(float(np.median(x.var(axis=0)[active] / stored[active])))
    return ratios


def retake_statistics(model, images):
    """Returns the network without dropout, its statistics taken in one batch.

    Args:
        model: the trained network, with normalization.
        images: the training images.
    """
    # At momentum 0 the moving statistics are those of the last batch, the only one.
    twin = build_model(images.shape[1:], "normalization", momentum=0.0)
    twin.set_weights(model.get_weights())
    twin(images, training=True)
    return twin


def train(variant, train_data, test_data, *, epochs, seed):
    """Trains the network once, and tests it.

    Args:
        variant: string, one of `VARIANTS`.
        train_data, test_data: tuples of images and labels, pixels from 0 to 1.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights, the order of the images and dropout.

    Returns:
        Dictionary: `train` and `test`, the accuracies on training and test images, both
        at inference; with normalization also `ratios`, what `variance_ratios` returns,
        and `retaken`, the test accuracy after `retake_statistics`.
    """
    import keras

    print(f"\n{variant}, seed {seed}")
    keras.utils.set_random_seed(seed)
    images, labels = train_data
    model = build_model(images.shape[1:], variant)
    model.fit(images, labels, batch_size=BATCH_SIZE, epochs=epochs)

    def accuracy(model, data):
        return model.evaluate(*data, batch_size=1000, verbose=0)[1]

    # The accuracy that `fit` reports is that with dropout, of weights that change.
    result = {"train": accuracy(model, train_data), "test": accuracy(model, test_data)}
    if "normalization" in VARIANTS[variant]:
        result["ratios"] = variance_ratios(model, images)
        result["retaken"] = accuracy(retake_statistics(model, images), test_data)
    return result


def seeds(runs, name):
    """Returns a number of each seed; the gap is training less test accuracy."""
    if name == "gap":
        return [run["train"] - run["test"] for run in runs]
    return [run[name] for run in runs]


def results_table(results):
    """Returns the results as a table, a row for each variant.

    Args:
        results: dictionary, of each variant the seeds' results.
    """
    rows = []
    for variant, runs in results.items():
        names = ("train", "test", "gap")
        row = [variant, *(percent(seeds(runs, name), digits=2) for name in names)]
        if "ratios" in runs[0]:
            ratios = np.mean(seeds(runs, "ratios"), axis=0)
            row.append(" and ".join(f"{ratio:.2f}" for ratio in ratios))
            row.append(percent(seeds(runs, "retaken"), digits=2))
        else:
            row += ["", ""]
        rows.append(row)
    header = ["variant", "training, %", "test, %", "gap, points"]
    header += ["variance / stored", "test, %, retaken"]
    return format_table(header, rows)


def read_numbers(results, *, num_images):
    """Says in words what the table shows.

    Args:
        results: dictionary, of each variant the seeds' results.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """

    def against(old, new, name="test"):
        pair = seeds(results[old], "test"), seeds(results[new], name)
        return compare(*pair, num_images=num_images)

    gaps = {
        name: mean_and_spread(seeds(runs, "gap"))[0] for name, runs in results.items()
    }
    narrow, wide = min(gaps, key=gaps.get), max(gaps, key=gaps.get)
    both = [name for name, layers in VARIANTS.items() if len(layers) == 2]
    return [
        *(
            f"- {new.capitalize()}, against {old}: {against(old, new)}."
            for old, new in (
                ("none", "dropout"),
                ("none", "normalization"),
                *(("dropout", name) for name in both),
                both,
            )
        ),
        *(
            f"- {name.capitalize()}, statistics retaken without dropout: "
            f"{against(name, name, 'retaken')}."
            for name in both
        ),
        f"- The gap between training and test images is widest with {wide!r} "
        f"({100 * gaps[wide]:.2f} points), narrowest with {narrow!r} "
        f"({100 * gaps[narrow]:.2f}).",
    ]


def plot(results, path, *, title):
    """Draws the gap between training and test, and the ratio of the variances."""
    figure, (accuracy, ratio) = new_figure(
        title, size=(12, 5.8), sharey=True, width_ratios=(3, 2)
    )
    for place, (variant, runs) in enumerate(results.items()):
        color = LINES[variant]
        ends = [mean_and_spread(seeds(runs, name)) for name in ("test", "train")]
        accuracy.plot(
            [100 * mean for mean, _ in ends], [place] * 2, color=color, linewidth=5
        )
        for (mean, spread), marker, fill, label in zip(
            ends,
            "os",
            (color, "white"),
            ("test images", "training images"),
            strict=True,
        ):
            accuracy.errorbar(
                100 * mean,
                place,
                xerr=100 * spread,
                fmt=marker,
                color=color,
                markerfacecolor=fill,
                markersize=11,
                markeredgewidth=2.5,
                capsize=5,
                label=label if place == 0 else None,
            )
        if "ratios" not in runs[0]:
            continue
        for i, value in enumerate(np.mean(seeds(runs, "ratios"), axis=0)):
            # A layer's bar is drawn from the value that would be right.
            offset = place + 0.4 * (i - 0.5)
            ratio.barh(offset, value - 1, 0.34, left=1, color=color)
            ratio.annotate(
                f"{'first' if i == 0 else 'second'}: {value:.2f}",
                (max(value, 1), offset),
                xytext=(6, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=13,
            )
    ratio.axvline(1, color="0.3", linewidth=1.5)
    ratio.set_xlim(0, 1.6)
    ratio.set_xticks((0.5, 1))
    accuracy.set_yticks(range(len(results)), list(results), fontsize=14)
    accuracy.invert_yaxis()
    accuracy.set_xlabel("accuracy at inference (%), mean ± spread", fontsize=15)
    ratio.set_xlabel("variance at inference / stored", fontsize=15)
    for axes in (accuracy, ratio):
        axes.grid(visible=False, axis="y")
    save(figure, path, ncols=2)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each variant the list of what `train` returns.
    """
    args = parse(new_parser(__doc__), argv, defaults=DEFAULTS, quick=QUICK)
    data = "digits" if args.quick else "mnist"
    num_train = QUICK_NUM_TRAIN if args.quick else NUM_TRAIN
    (x_train, y_train), test_data = load_images(data)
    train_data = x_train[:num_train] / 255, y_train[:num_train]
    test_data = test_data[0] / 255, test_data[1]
    title = f"{IMAGES[data]}, Keras on {BACKENDS[args.backend]}"
    num_images = len(test_data[0])
    size = f"{num_train} training images, {num_images} test images"
    print(f"{title}: {size}, {args.epochs} epochs, {args.seeds} seeds")

    results = {
        variant: [
            train(variant, train_data, test_data, epochs=args.epochs, seed=seed)
            for seed in range(args.seeds)
        ]
        for variant in VARIANTS
    }
    picture = "dropout_and_batch_norm.png"
    plot(results, args.output / picture, title=f"Dropout and normalization, {title}")
    write_report(
        args,
        "dropout_and_batch_norm",
        f"Dropout and normalization: {title}",
        [
            f"Accuracy at inference after {args.epochs} epochs, {size}: mean ± "
            f"standard deviation over seeds ({args.seeds}). Of both normalizations: "
            "the variance of their inputs at inference over the stored one. Retaken: "
            "with statistics of the training images without dropout.",
            results_table(results),
            "\n".join(read_numbers(results, num_images=num_images)),
        ],
        {picture: "Accuracy on training and test images, and ratios of variances"},
    )
    return results


if __name__ == "__main__":
    main()
