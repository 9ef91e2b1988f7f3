"""Trains a digit classifier with and without normalization, on two pixel scales.

    python examples/mnist_mlp.py                     # 28x28, downloaded by Keras
    python examples/mnist_mlp.py --quick             # 8x8 digits, in scikit-learn
    python examples/mnist_mlp.py --quick --backend torch

An article's experiment: a network of three hidden layers, with batch normalization
after the first and the second, is trained on MNIST four times:

| run | pixels   | normalization | article's accuracy | loss   |
| --- | -------- | ------------- | ------------------ | ------ |
| A   | 0 to 1   | without       | 0.9789             | 0.1826 |
| B   | 0 to 1   | with          | 0.9804             | 0.1260 |
| C   | 0 to 255 | without       | 0.9696             | 0.6121 |
| D   | 0 to 255 | with          | 0.9797             | 0.1433 |

How many epochs these took, and in which batches, we don't know: here they are five,
in batches of 128. All runs of a seed start from the same Dense weights. What comes out
is a table, the learning curves, the hidden layers' activations on raw pixels, and the
difference that it makes to put `keras.layers.BatchNormalization` in this layer's place.

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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

DEFAULTS = {"epochs": 5, "seeds": 3}
QUICK = {"data": "digits", "seeds": 1}
BATCH_SIZE = 128
# The weight of the old value in the moving averages, which inference uses. The digits
# have 12 batches an epoch: at Keras's default, 0.99, the averages would still be
# 0.99**12 = 89 % their initial values after one epoch, and 55 % after five.
# MNIST has 469, where 0.9 is too restless: run D's test loss was 0.13 to 0.27 after
# three epochs (two seeds, JAX and TensorFlow), 0.09 to 0.10 at 0.99.
MOMENTUM = {"digits": 0.9, "mnist": 0.99}

RUNS = {
    "A": {"pixels": "0 to 1", "normalization": False, "article": (0.9789, 0.1826)},
    "B": {"pixels": "0 to 1", "normalization": True, "article": (0.9804, 0.1260)},
    "C": {"pixels": "0 to 255", "normalization": False, "article": (0.9696, 0.6121)},
    "D": {"pixels": "0 to 255", "normalization": True, "article": (0.9797, 0.1433)},
}

# Without normalization warm, broken and hollow; round for scaled pixels.
LINES = {
    "A": {
        "color": COLOURS["vermilion"],
        "linestyle": "--",
        "marker": "o",
        "fillstyle": "none",
    },
    "B": {"color": COLOURS["sky"], "linestyle": "-", "marker": "o"},
    "C": {
        "color": COLOURS["orange"],
        "linestyle": ":",
        "marker": "s",
        "fillstyle": "none",
    },
    "D": {"color": COLOURS["blue"], "linestyle": "-", "marker": "s"},
}


def build_model(image_shape, *, normalization, momentum=0.99):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        normalization: whether to keep the normalization layers.
        momentum: float in [0, 1], that of the normalization layers.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    layers = [
        keras.Input(image_shape),
        keras.layers.Flatten(),
        keras.layers.Dense(1024, activation="relu"),
        keras_bnx.BatchNormalization(momentum=momentum),
        keras.layers.Dense(512, activation="relu"),
        keras_bnx.BatchNormalization(momentum=momentum),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(10),
    ]
    if not normalization:
        layers = [
            layer
            for layer in layers
            if not isinstance(layer, keras_bnx.BatchNormalization)
        ]
    model = keras.Sequential(layers)
    # The softmax is in the loss. As an activation, Keras's loss would clip it to
    # [1e-7, 1 - 1e-7] on JAX and PyTorch, with gradient 0 beyond: on raw pixels the
    # network without normalization gets there, and stayed at 10 to 30 % accuracy.
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def describe(run):
    """Returns a run in words: `"D: pixels 0 to 255, with normalization"`."""
    word = "with" if RUNS[run]["normalization"] else "without"
    return f"{run}: pixels {RUNS[run]['pixels']}, {word} normalization"


def train(run, train_data, test_data, *, momentum, epochs, seed):
    """Trains the network of one run, and tests it after every epoch.

    The test images choose nothing (no early stopping, no best epoch), so that the
    last epoch's accuracy is the test accuracy.

    Args:
        run: string, one of `RUNS`.
        train_data: tuple of images and labels, pixels from 0 to 255.
        test_data: tuple of images and labels, likewise.
        momentum: float in [0, 1], that of the normalization layers.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        The model, and Keras's history: dictionary of lists, one number an epoch.
    """
    import keras

    print(f"\nRun {describe(run)}, seed {seed}")
    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = train_data, test_data
    scale = 1 / 255 if RUNS[run]["pixels"] == "0 to 1" else 1.0
    model = build_model(
        x_train.shape[1:], normalization=RUNS[run]["normalization"], momentum=momentum
    )
    history = model.fit(
        x_train * scale,
        y_train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(x_test * scale, y_test),
    ).history
    return model, history


def compare_with_keras(model, images):
    """Puts Keras's layer in the place of ours and measures what it changes.

    Args:
        model: the trained `keras.Sequential` of run D. Its moving statistics take
            one step, as in training.
        images: array of shape `(images, height, width)`, pixels from 0 to 255.

    Returns:
        The largest absolute difference of the logits at inference, and that of the
        normalization layers' outputs when one batch is passed in training mode.
    """
    import keras

    def replace(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.BatchNormalization.from_config(layer.get_config())
        return type(layer).from_config(layer.get_config())

    def normalized(network):
        outputs = [
            layer.output
            for layer in network.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        batch = images[:BATCH_SIZE]
        outputs = keras.Model(network.inputs[0], outputs)(batch, training=True)
        return [keras.ops.convert_to_numpy(output) for output in outputs]

    def difference(x, y):
        return float(abs(x - y).max())

    twin = keras.models.clone_model(model, clone_function=replace)
    twin.set_weights(model.get_weights())
    inference = difference(
        model.predict(images, verbose=0), twin.predict(images, verbose=0)
    )
    training = max(map(difference, normalized(model), normalized(twin)))
    return inference, training


def activations(model, images):
    """Returns the hidden layers' activations, arrays of shape `(images, units)`.

    Args:
        model: a trained `keras.Sequential`.
        images: array of shape `(images, height, width)`, in the model's pixels.
    """
    import keras

    outputs = [
        layer.output
        for layer in model.layers[:-1]
        if isinstance(layer, keras.layers.Dense)
    ]
    return keras.Model(model.inputs[0], outputs).predict(images, verbose=0)


def last(histories, name):
    """Returns the last epoch's number of each seed."""
    return [history[name][-1] for history in histories]


def results_table(results, *, article):
    """Returns the results as a table, a row for each run.

    Args:
        results: dictionary, of each run the seeds' histories.
        article: whether to put the article's figures beside.
    """
    header = ["run", "pixels", "normalization", "test accuracy in %", "test loss"]
    if article:
        header += ["article: accuracy", "loss"]
    rows = []
    for run, histories in results.items():
        mean, spread = mean_and_spread(last(histories, "val_loss"))
        row = [
            run,
            RUNS[run]["pixels"],
            "with" if RUNS[run]["normalization"] else "without",
            percent(last(histories, "val_accuracy"), digits=2),
            f"{mean:.4f}" + (f" ± {spread:.4f}" if len(histories) > 1 else ""),
        ]
        if article:
            accuracy, loss = RUNS[run]["article"]
            row += [f"{100 * accuracy:.2f}", f"{loss:.4f}"]
        rows.append(row)
    return format_table(header, rows)


def read_numbers(results, *, num_images):
    """Says in words what normalization and the scale changed.

    Args:
        results: dictionary, of each run the seeds' histories.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """
    lines = []
    for old, new in (("A", "B"), ("C", "D"), ("A", "C"), ("B", "D")):
        words = compare(
            *(last(results[run], "val_accuracy") for run in (old, new)),
            num_images=num_images,
        )
        loss = [
            mean_and_spread(last(results[run], "val_loss"))[0] for run in (old, new)
        ]
        first = [
            mean_and_spread([h["val_accuracy"][0] for h in results[run]])[0]
            for run in (old, new)
        ]
        if RUNS[old]["pixels"] == RUNS[new]["pixels"]:
            change = f"normalization on pixels {RUNS[old]['pixels']}"
        else:
            word = "with" if RUNS[old]["normalization"] else "without"
            change = f"raw pixels {word} normalization"
        lines.append(
            f"- {old} to {new}, {change}: accuracy {words}; "
            f"loss {loss[1] - loss[0]:+.4f}. "
            f"After the first epoch {first[0]:.1%} became {first[1]:.1%}."
        )
    return lines


def activations_table(hidden):
    """Returns the size of activations and the share of zeros, a row for each layer.

    Args:
        hidden: dictionary, of runs C and D what `activations` returns.
    """
    rows = []
    for i, (c, d) in enumerate(zip(hidden["C"], hidden["D"], strict=True)):
        rows.append(
            [
                f"layer {i + 1}, {c.shape[1]} units",
                *(f"{100 * (values == 0).mean():.1f}" for values in (c, d)),
                *(f"{values[values > 0].mean():.3g}" for values in (c, d)),
            ]
        )
    header = ["hidden", "zeros in C, %", "in D, %", "mean of others in C", "in D"]
    return format_table(header, rows)


def plot(results, path, *, title):
    """Draws the learning curves, accuracy and loss, means over the seeds."""
    figure, (accuracy, loss) = new_figure(title, size=(11, 5.6))
    for run, histories in results.items():
        style = {**LINES[run], "linewidth": 2.5, "markersize": 8}
        epochs = range(1, len(histories[0]["val_loss"]) + 1)

        def mean(name, histories=histories):
            return np.mean([history[name] for history in histories], axis=0)

        accuracy.plot(epochs, mean("val_accuracy"), label=describe(run), **style)
        loss.plot(epochs, mean("val_loss"), **style)
    accuracy.set_ylabel("test accuracy (%)", fontsize=15)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    loss.set_ylabel("test loss (nats, log scale)", fontsize=15)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch", fontsize=15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path, ncols=2, handlelength=3.5)


def plot_activations(hidden, path, *, title):
    """Draws the activations of the first image, sorted: each curve ends at its zeros.

    Args:
        hidden: dictionary, of runs C and D what `activations` returns.
        path: path of the PNG file.
        title: string.
    """
    figure, grid = new_figure(title, size=(11, 5.6), columns=3, sharey=True)
    for i, axes in enumerate(grid):
        for run in ("C", "D"):
            values = np.sort(hidden[run][i][0])[::-1]
            active = values[values > 0]
            axes.plot(
                100 * np.arange(1, len(active) + 1) / len(values),
                active,
                label=describe(run) if i == 0 else None,
                markevery=[-1],
                linewidth=2.5,
                markersize=8,
                **LINES[run],
            )
        axes.set_title(f"hidden layer {i + 1}: {len(values)} units", fontsize=15)
        axes.set_xlim(0, 100)
        axes.set_xticks((0, 25, 50, 75))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    grid[0].set_ylabel("activation (log scale)", fontsize=15)
    grid[1].set_xlabel("units, from the most active (%); the rest is zero", fontsize=15)
    save(figure, path, ncols=2, handlelength=3.5)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary: `results`, of each run the seeds' histories; `hidden`, of runs C
        and D the activations on test images; `differences`, what `compare_with_keras`
        returns for run D. The last two are the first seed's.
    """
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data",
        choices=MOMENTUM,
        help="the images; default: mnist, under --quick scikit-learn's 8x8 digits",
    )
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK)
    args.data = args.data or (QUICK["data"] if args.quick else "mnist")
    train_data, test_data = load_images(args.data)
    title = f"{IMAGES[args.data]}, Keras on {BACKENDS[args.backend]}"
    images = test_data[0]
    print(
        f"{title}: {len(train_data[0])} training images, {len(images)} test images, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )

    results, hidden = {run: [] for run in RUNS}, {}
    for seed in range(args.seeds):
        for run in RUNS:
            model, history = train(
                run,
                train_data,
                test_data,
                momentum=MOMENTUM[args.data],
                epochs=args.epochs,
                seed=seed,
            )
            results[run].append(history)
            if seed == 0 and run in ("C", "D"):
                hidden[run] = activations(model, images)
        if seed == 0:
            differences = compare_with_keras(model, images)

    curves, layers = (
        f"mnist_mlp_{args.data}.png",
        f"mnist_mlp_{args.data}_activations.png",
    )
    plot(results, args.output / curves, title=title)
    plot_activations(
        hidden,
        args.output / layers,
        title=f"Activations on the first test image, {title}",
    )
    write_report(
        args,
        "mnist_mlp",
        f"Normalization and pixel scales: {title}",
        [
            f"Test images after {args.epochs} epochs in batches of {BATCH_SIZE}, "
            f"mean ± standard deviation over seeds ({args.seeds}):",
            results_table(results, article=args.data == "mnist"),
            "\n".join(read_numbers(results, num_images=len(images))),
            "Activations of the hidden layers on the test images (seed 0):",
            activations_table(hidden),
            "D with keras.layers.BatchNormalization in place of ours: logits differ by "
            f"at most {differences[0]:.1e}, normalized values in training mode by "
            f"{differences[1]:.1e}.",
        ],
        {
            curves: "Learning curves of the four runs",
            layers: "Sorted activations of the hidden layers, runs C and D",
        },
    )
    return {"results": results, "hidden": hidden, "differences": differences}


if __name__ == "__main__":
    main()
