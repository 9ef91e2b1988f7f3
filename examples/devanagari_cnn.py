"""Recognizes Devanagari digits by convolutions, with and without normalization.

    python examples/devanagari_cnn.py                 # the file in Keras's cache
    python examples/devanagari_cnn.py --path FILE     # or from here
    python examples/devanagari_cnn.py --quick         # 8x8 digits, in scikit-learn

An article's experiment: three 3x3 convolutions of 16 filters, each followed by ReLU,
a max pool and one linear layer, with batch normalization before each ReLU and without
any. The article had 99.1 % test accuracy with and 92.4 % without.

The data are the ten digits of the Devanagari Handwritten Character Dataset, CC BY 4.0:
Acharya, Pant, Gyawali, "Deep learning based large scale handwritten Devanagari
character recognition", SKIMA 2015. UCI distributes them as a zip file:
https://archive.ics.uci.edu/dataset/389

Besides curves, this draws the descent of two weights of the last convolution: where
they are after each epoch, and above it the loss of the network as it is then. The loss
around them, all other weights as at the end, would be flat: two of 45,000 weights
change it by less than 0.002, and the paths wouldn't descend.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import os
import pathlib
import re
import zipfile

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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

DEFAULTS = {"epochs": 30, "seeds": 1}
QUICK = {"epochs": 5}
TITLE = "Devanagari digits (32x32)"
ARTICLE = {"without": 0.924, "with": 0.991}
BATCH_SIZE = 32
# Keras's default for SGD; the article's optimizer we don't know. Test accuracies
# without and with normalization after three epochs: 92.9 and 96.5 % at 0.001, 96.0 and
# 99.0 % at 0.01 (JAX, one seed). Adam leaves less to tell apart: without, it had 97.3 %
# after one.
LEARNING_RATE = 0.01
# The weight of the old value in the moving averages. The 8x8 digits have 45 batches an
# epoch: at Keras's default, 0.99, the averages would still be 0.99**45 = 64 % their
# initial values after one. The Devanagari digits have 532.
MOMENTUM, QUICK_MOMENTUM = 0.99, 0.9
# The training images whose mean loss the descent shows.
NUM_IMAGES = 1024

LINES = {
    "without": {"color": COLOURS["orange"], "linestyle": "--"},
    "with": {"color": COLOURS["blue"], "linestyle": "-"},
}


def load_devanagari(path=None):
    """Loads the Devanagari digits, in an order that is the same each time.

    Args:
        path: optional path of a file: an `.npz` with the uint8 arrays `x_train`,
            `y_train`, `x_test` and `y_test`, or else UCI's zip file of PNG images.
            `None` takes `datasets/devanagari_digits.npz` in Keras's cache: the folder
            that the environment's KERAS_HOME names, or `~/.keras`.

    Returns:
        The tuples `(x_train, y_train), (x_test, y_test)`: float32 images of shape
        `(images, 32, 32)`, pixels from 0 to 255, and integer labels.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where there is something else in it.
    """
    if path is None:
        cache = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
        path = pathlib.Path(cache) / "datasets" / "devanagari_digits.npz"
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"The Devanagari digits aren't there. Received: path={path}. "
            "Download the Devanagari Handwritten Character Dataset from the UCI "
            "machine learning repository, https://archive.ics.uci.edu/dataset/389, "
            "and give the path of its zip file."
        )
    try:
        arrays = _read_npz(path) if path.suffix == ".npz" else _read_zip(path)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The Devanagari digits can't be read: {error}. Received: path={path}. "
            "Give UCI's zip file, with images at Train/digit_0/*.png and so on, or an "
            ".npz file with x_train, y_train, x_test and y_test."
        ) from error

    # Both files are sorted by class.
    rng, data = np.random.default_rng(0), []
    for x, y in arrays:
        order = rng.permutation(len(x))
        data.append((x[order].astype("float32"), y[order].astype("int64")))
    return tuple(data)


def _read_npz(path):
    with np.load(path) as file:
        return [(file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")]


def _read_zip(path):
    # The letters are in folders beside, and named otherwise.
    pattern = re.compile(r"(?:.*/)?(Train|Test)/digit_(\d)/[^/]+\.png")
    images, labels = {"Train": [], "Test": []}, {"Train": [], "Test": []}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if match := pattern.fullmatch(name):
                part, digit = match.groups()
                with archive.open(name) as file, Image.open(file) as image:
                    images[part].append(np.asarray(image.convert("L")))
                labels[part].append(int(digit))
    for part in images:
        if not images[part]:
            raise ValueError(f"no images of digits under {part}/")
    return [(np.stack(images[part]), np.array(labels[part])) for part in images]


def build_model(image_shape, *, normalization, momentum=0.99):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`; pixels from 0 to 1.
        normalization: whether to normalize before each ReLU.
        momentum: float in [0, 1], that of the normalization layers.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    layers = [keras.Input(image_shape), keras.layers.Reshape((*image_shape, 1))]
    for _ in range(3):
        # The normalization takes the mean out, and with it any bias.
        layers.append(
            keras.layers.Conv2D(16, 3, padding="same", use_bias=not normalization)
        )
        if normalization:
            layers.append(keras_bnx.BatchNormalization(momentum=momentum))
        layers.append(keras.layers.ReLU())
    model = keras.Sequential(
        [
            *layers,
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def last_convolution(model):
    """Returns the last of the convolution layers."""
    import keras

    return [x for x in model.layers if isinstance(x, keras.layers.Conv2D)][-1]


def measure_loss(model, images, labels):
    """Measures the mean loss in training mode: normalized by these images.

    It is what is descended, and moving statistics lag behind the weights.

    Args:
        model: the network, which stays as it is.
        images, labels: arrays.

    Returns:
        A float, in nats.
    """
    import keras

    import keras_bnx

    with keras_bnx.keep_moving_statistics():
        logits = model(images, training=True)
    losses = keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )
    return float(keras.ops.convert_to_numpy(losses).mean())


def train(variant, train_data, test_data, *, momentum, epochs, seed):
    """Trains the network once, and tests it after every epoch.

    The test images choose nothing (no early stopping, no best epoch), so that the
    last epoch's accuracy is the test accuracy.

    Args:
        variant: `"without"` or `"with"`.
        train_data, test_data: tuples of images, pixels from 0 to 1, and labels.
        momentum: float in [0, 1], that of the normalization layers.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        Dictionary of `history`, Keras's (dictionary of lists, one number an epoch);
        and, at the start and after each epoch, `kernels`, the last convolution's, an
        array of shape `(epochs + 1, 3, 3, 16, 16)`, and `losses`, the list of what
        `measure_loss` returns.
    """
    import keras

    kernels, losses = [], []
    some = [array[:NUM_IMAGES] for array in train_data]

    class Recorder(keras.callbacks.Callback):
        # On JAX, training's state gets into the layers by the property `self.model`.
        def record(self):
            model = self.model
            kernel = last_convolution(model).kernel
            kernels.append(np.array(keras.ops.convert_to_numpy(kernel)))
            losses.append(measure_loss(model, *some))

        def on_train_begin(self, logs=None):
            self.record()

        def on_epoch_end(self, epoch, logs=None):
            self.record()

    print(f"\n{variant.capitalize()} normalization, seed {seed}")
    keras.utils.set_random_seed(seed)
    model = build_model(
        train_data[0].shape[1:], normalization=variant == "with", momentum=momentum
    )
    history = model.fit(
        *train_data,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=test_data,
        callbacks=[Recorder()],
    ).history
    return {"history": history, "kernels": np.stack(kernels), "losses": losses}


def choose_weights(results):
    """Chooses two weights of the last convolution: who travel far, with and without.

    Of a weight counts the shorter of its two ways from start to end.

    Args:
        results: dictionary, of each variant what `train` returns.

    Returns:
        Two indices into the kernel, tuples of four integers.
    """
    ways = [abs(r["kernels"][-1] - r["kernels"][0]) for r in results.values()]
    order = np.argsort(np.minimum(*ways), axis=None)
    return [
        tuple(map(int, np.unravel_index(i, ways[0].shape))) for i in order[-1:-3:-1]
    ]


def paths(results, weights):
    """Returns each variant's path of the weights, `(epochs + 1, weights)`."""
    return {
        variant: np.stack([result["kernels"][:, *w] for w in weights], axis=1)
        for variant, result in results.items()
    }


def numbers(runs, name, epoch=-1):
    """Returns each seed's number of an epoch, by default of the last."""
    return [run["history"][name][epoch] for run in runs]


def results_table(results, *, article):
    """Returns the results as a table, a row for each variant.

    Args:
        results: dictionary, of each variant the seeds' results.
        article: whether to put the article's figures beside.
    """
    header = ["normalization", "test accuracy in %", "after one epoch"]
    header += ["training loss"] + ["article: accuracy"] * article
    rows = []
    for variant, runs in results.items():
        row = [
            variant,
            percent(numbers(runs, "val_accuracy")),
            percent(numbers(runs, "val_accuracy", 0)),
            f"{mean_and_spread(numbers(runs, 'loss'))[0]:.2g}",
        ]
        rows.append(row + [f"{100 * ARTICLE[variant]:.1f}"] * article)
    return format_table(header, rows)


def read_numbers(results, weights, *, num_images, article):
    """Says in words what the table and the figures show.

    Args:
        results: dictionary, of each variant the seeds' results.
        weights: two indices into a kernel.
        num_images: integer, how many images were tested.
        article: whether to compare with the article's figures.

    Returns:
        List of strings.
    """
    plain, normalized = results["without"], results["with"]

    def against(epoch):
        old, new = (
            numbers(runs, "val_accuracy", epoch) for runs in (plain, normalized)
        )
        return compare(old, new, num_images=num_images)

    lines = [f"- With normalization, test accuracy: {against(-1)}."]
    if article:
        difference = 100 * (ARTICLE["with"] - ARTICLE["without"])
        lines[0] += f" The article: {difference:+.1f} points."
    lines.append(f"- After the first epoch: {against(0)}.")

    # Seeds' means, of each epoch.
    test, best = (
        np.mean([run["history"]["val_accuracy"] for run in runs], axis=0)
        for runs in (normalized, plain)
    )
    ahead = np.flatnonzero(test >= best.max())
    reached = f"in epoch {ahead[0] + 1}" if len(ahead) else "never"
    lines.append(
        f"- The best that was had without normalization, {best.max():.1%} in epoch "
        f"{best.argmax() + 1}, was had with it {reached}."
    )
    first = {variant: runs[0] for variant, runs in results.items()}
    for variant, path in paths(first, weights).items():
        kernels, losses = (first[variant][name] for name in ("kernels", "losses"))
        way = np.linalg.norm(kernels[-1] - kernels[0])
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        lines.append(
            f"- {variant.capitalize()}, the last convolution's kernel came {way:.2f} "
            f"from its start, while the loss of {NUM_IMAGES} training images went from "
            f"{losses[0]:.2f} to {losses[1]:.2g} in the first epoch, and to "
            f"{losses[-1]:.2g}. The two weights went {steps[0]:.2g} in the first epoch "
            f"and {steps[-1]:.2g} in the last."
        )
    return lines


def plot(results, path, *, title):
    """Draws test accuracy and training loss: the seeds' mean and range."""
    figure, (accuracy, loss) = new_figure(title, size=(11, 5.6))
    for variant, runs in results.items():
        for axes, name in ((accuracy, "val_accuracy"), (loss, "loss")):
            curves = np.array([run["history"][name] for run in runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(
                epochs,
                curves.mean(axis=0),
                label=f"{variant} normalization" if axes is loss else None,
                linewidth=2.5,
                **LINES[variant],
            )
            axes.fill_between(
                epochs,
                curves.min(axis=0),
                curves.max(axis=0),
                color=LINES[variant]["color"],
                alpha=0.2,
                linewidth=0,
            )
    accuracy.set_ylabel("test accuracy (%)", fontsize=15)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    loss.set_ylabel("training loss (nats, log scale)", fontsize=15)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch", fontsize=15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    save(figure, path, ncols=2, handlelength=3.5)


def plot_descent(results, weights, path, *, title):
    """Draws the two weights' paths, with the network's loss as their height.

    Args:
        results: dictionary, of each variant what `train` returns.
        weights: two indices into a kernel.
        path: path of the PNG file.
        title: string.
    """
    figure, (axes,) = new_figure(
        title, size=(10, 7.6), columns=1, subplot_kw={"projection": "3d"}
    )
    # Three dimensions have no logarithmic scale.
    heights = {name: np.log10(result["losses"]) for name, result in results.items()}
    floor = np.floor(min(height.min() for height in heights.values()))
    for variant, way in paths(results, weights).items():
        style, height = LINES[variant], heights[variant]
        label = f"{variant} normalization"
        line = {"linewidth": 2.5, "marker": ".", "markersize": 9, **style}
        axes.plot(*way.T, height, label=label, **line)
        axes.plot(*way.T, floor, color=style["color"], alpha=0.5, linewidth=2)
        for x, y, z in zip(*way.T, height, strict=True):
            axes.plot([x] * 2, [y] * 2, [floor, z], color=style["color"], alpha=0.25)
        for place, marker, label in ((0, "o", "start"), (-1, "*", "end")):
            axes.plot(
                *way[place],
                height[place],
                marker,
                color="black",
                markersize=12,
                label=label if variant == "with" else None,
            )
    axes.set_zlim(floor)
    axes.zaxis.set_major_locator(MaxNLocator(integer=True))
    axes.zaxis.set_major_formatter(lambda value, _: f"{10**value:g}")
    axes.set_zlabel("loss (nats, log scale)", fontsize=15, labelpad=14)
    axes.set_xlabel("weight [{}, {}, {}, {}]".format(*weights[0]), fontsize=15)
    axes.set_ylabel("weight [{}, {}, {}, {}]".format(*weights[1]), fontsize=15)
    for axis in (axes.xaxis, axes.yaxis):
        axis.labelpad = 14
        axis.set_major_locator(MaxNLocator(5))
    axes.view_init(elev=22, azim=-60)
    axes.set_box_aspect((1.4, 1.2, 1), zoom=0.92)
    save(figure, path, ncols=4, handlelength=3)


def load(parser, args):
    """Loads the training and the test data that `--path` and `--quick` name."""
    try:
        return load_images("digits") if args.quick else load_devanagari(args.path)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error).replace("path=", "--path "))


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each variant the list of what `train` returned for each seed.
    """
    parser = new_parser(__doc__)
    parser.add_argument(
        "--path",
        type=pathlib.Path,
        help="the Devanagari digits: UCI's zip file, or an .npz file; default: "
        "datasets/devanagari_digits.npz in Keras's cache; not used by --quick",
    )
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK)
    train_data, test_data = ((x / 255, y) for x, y in load(parser, args))
    title = f"{IMAGES['digits'] if args.quick else TITLE}, "
    title += f"Keras on {BACKENDS[args.backend]}"
    num_images = len(test_data[0])
    print(
        f"{title}: {len(train_data[0])} training images, {num_images} test images, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )

    results = {variant: [] for variant in LINES}
    for seed in range(args.seeds):
        for variant, runs in results.items():
            result = train(
                variant,
                train_data,
                test_data,
                momentum=QUICK_MOMENTUM if args.quick else MOMENTUM,
                epochs=args.epochs,
                seed=seed,
            )
            runs.append(result)
    first = {variant: runs[0] for variant, runs in results.items()}
    weights = choose_weights(first)

    article = not args.quick
    parts = [
        f"{title}: {args.epochs} epochs. Mean ± standard deviation over seeds: "
        f"{args.seeds}.",
        results_table(results, article=article),
        "\n".join(
            read_numbers(results, weights, num_images=num_images, article=article)
        ),
    ]
    print()
    plot(results, args.output / "devanagari_cnn.png", title=title)
    plot_descent(
        first,
        weights,
        args.output / "devanagari_cnn_descent.png",
        title=f"Two weights' descent: {title}",
    )
    write_report(
        args,
        "devanagari_cnn",
        "Devanagari digits by convolutions, with and without normalization",
        parts,
        {
            "devanagari_cnn.png": "Test accuracy and training loss over epochs",
            "devanagari_cnn_descent.png": "The descent of two weights of the last "
            "convolution: where they are after each epoch, and the loss",
        },
    )
    return results


if __name__ == "__main__":
    main()
