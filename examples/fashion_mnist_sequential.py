"""Compares places of normalization in a sequential model: slower epochs, but fewer.

    python examples/fashion_mnist_sequential.py               # downloaded by Keras
    python examples/fashion_mnist_sequential.py --quick       # 8x8 digits

An article's experiment on Fashion-MNIST: Dense layers of 300, 200 and 100 units with
ReLU, trained by SGD with Nesterov's momentum. The first 5000 training images are for
validation. Three variants:

| variant | each hidden layer                            |
| ------- | -------------------------------------------- |
| before  | Dense without bias, BatchNormalization, ReLU |
| after   | Dense without bias, ReLU, BatchNormalization |
| none    | Dense with bias, ReLU                        |

The article's claim: with normalization an epoch takes longer, and fewer of them get to
the same accuracy. So this measures both, and their product, the seconds it takes.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import time

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

DEFAULTS = {"epochs": 60, "seeds": 3}
QUICK = {"epochs": 10, "seeds": 1}
WIDTHS = (300, 200, 100)
# Keras's defaults for SGD and fit.
LEARNING_RATE, BATCH_SIZE = 0.01, 32
# The first training images; of the digits as many as leave 38 whole batches.
NUM_VALIDATION = {"fashion_mnist": 5000, "digits": 221}
# The weight of the old value in the moving averages. The digits have 38 batches an
# epoch: at Keras's default, 0.99, the averages would still be 0.99**38 = 68 % their
# initial values after one. Fashion-MNIST has 1719.
MOMENTUM = {"fashion_mnist": 0.99, "digits": 0.9}
# Epochs are timed in turn, by parts of so many batches. Timed in the runs, which come
# one after the other, beside other programs the layer took 0.9 of the time without it.
NUM_TIMED, ROUNDS = 200, 8
# Validation accuracies to be reached, in percent.
GOALS = {"fashion_mnist": (85, 87, 89), "digits": (80, 90, 95)}

LINES = {
    "before": {"color": COLOURS["blue"], "linestyle": "-"},
    "after": {"color": COLOURS["vermilion"], "linestyle": "-."},
    "none": {"color": COLOURS["orange"], "linestyle": "--"},
}
LABELS = {
    "before": "normalization before ReLU",
    "after": "normalization after ReLU",
    "none": "no normalization",
}


def build_model(image_shape, variant, *, momentum=0.99):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        variant: `"before"`, `"after"` or `"none"`.
        momentum: float in [0, 1], that of the normalization layers.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    model = keras.Sequential([keras.Input(image_shape), keras.layers.Flatten()])
    for width in WIDTHS:
        # The normalization takes the mean out, and with it any bias, where it comes
        # before ReLU. After it a bias would count, but there beta is one.
        model.add(keras.layers.Dense(width, use_bias=variant == "none"))
        if variant == "before":
            model.add(keras_bnx.BatchNormalization(momentum=momentum))
        model.add(keras.layers.ReLU())
        if variant == "after":
            model.add(keras_bnx.BatchNormalization(momentum=momentum))
    model.add(keras.layers.Dense(10))
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(variant, train_data, valid_data, test_data, *, momentum, epochs, seed):
    """Trains the network once, and tests it at the end.

    Args:
        variant: `"before"`, `"after"` or `"none"`.
        train_data, valid_data, test_data: tuples of images, pixels from 0 to 1, and
            labels.
        momentum: float in [0, 1], that of the normalization layers.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        The model, and the dictionary of `test`, the test accuracy, and `history`,
        Keras's (dictionary of lists, one number an epoch).
    """
    import keras

    print(f"\nVariant: {LABELS[variant]}, seed {seed}")
    keras.utils.set_random_seed(seed)
    model = build_model(train_data[0].shape[1:], variant, momentum=momentum)
    history = model.fit(
        *train_data,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=valid_data,
    ).history
    _, accuracy = model.evaluate(*test_data, verbose=0)
    return model, {"test": float(accuracy), "history": history}


def time_epochs(models, images, labels):
    """Measures the seconds of an epoch's training, the variants in turn.

    Args:
        models: dictionary, of each variant the trained model, which is trained on.
        images, labels: arrays, the training data.

    Returns:
        Dictionary, of each variant the median.
    """
    size = min(len(images), NUM_TIMED * BATCH_SIZE)
    seconds = {variant: [] for variant in models}
    for _ in range(ROUNDS):
        for variant, model in models.items():
            start = time.perf_counter()
            model.fit(images[:size], labels[:size], batch_size=BATCH_SIZE, verbose=0)
            seconds[variant].append(time.perf_counter() - start)
    return {
        variant: float(np.median(times)) * len(images) / size
        for variant, times in seconds.items()
    }


def variables_table(model):
    """Returns the variables of the first normalization, a row for each."""
    import keras

    layer = next(
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    rows = [
        [variable.name, str(tuple(variable.shape)), str(variable.trainable)]
        for variable in layer.variables
    ]
    return format_table([f"variable of {layer.name}", "shape", "trainable"], rows)


def epochs_to(goal, run):
    """Returns after how many epochs a run first reached a validation accuracy.

    Args:
        goal: number, in percent.
        run: dictionary, what `train` returns.

    Returns:
        An integer, or `None` where it didn't.
    """
    reached = np.flatnonzero(np.array(run["history"]["val_accuracy"]) >= goal / 100)
    return int(reached[0]) + 1 if len(reached) else None


def results_table(results, seconds, *, goals):
    """Returns the results as a table, a row for each variant.

    Args:
        results: dictionary, of each variant the seeds' results.
        seconds: dictionary, of each variant what an epoch takes.
        goals: tuple of validation accuracies in percent.
    """
    header = ["normalization", "test accuracy in %", "seconds per epoch"]
    header += [f"epochs to {goal} %" for goal in goals]
    rows = []
    for variant, runs in results.items():
        counts = [[epochs_to(goal, run) for run in runs] for goal in goals]
        rows.append(
            [
                variant,
                percent([run["test"] for run in runs]),
                f"{seconds[variant]:.3g}",
                *(", ".join(str(n or "never") for n in seeds) for seeds in counts),
            ]
        )
    return format_table(header, rows)


def read_numbers(results, seconds, *, goals, num_images):
    """Says in words what the table shows.

    Args:
        results: dictionary, of each variant the seeds' results.
        seconds: dictionary, of each variant what an epoch takes.
        goals: tuple of validation accuracies in percent.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """

    def test(variant):
        return [run["test"] for run in results[variant]]

    def mean(variant, name, epoch):
        values = [run["history"][name][epoch] for run in results[variant]]
        return mean_and_spread(values)[0]

    lines = []
    for old, new in (("none", "before"), ("none", "after"), ("before", "after")):
        words = compare(test(old), test(new), num_images=num_images)
        lines.append(f"- Test accuracy, from {old} to {new}: {words}.")
    for name, words in (
        ("val_accuracy", "Validation accuracy after the first epoch"),
        ("accuracy", "Accuracy on training images in the last"),
    ):
        epoch = 0 if name == "val_accuracy" else -1
        shares = (f"{variant} {mean(variant, name, epoch):.1%}" for variant in results)
        lines.append(f"- {words}: {', '.join(shares)}.")

    ratios = (
        f"{seconds[variant] / seconds['none']:.2f} times that ({variant})"
        for variant in ("before", "after")
    )
    lines.append(
        f"- An epoch takes {seconds['none']:.3g} s without normalization, and "
        f"{' and '.join(ratios)} with it."
    )
    for goal in goals:
        ways = []
        for variant, runs in results.items():
            counts = [epochs_to(goal, run) for run in runs]
            if None in counts:
                ways.append(f"{variant} not in each run")
            else:
                needed, _ = mean_and_spread(counts)
                each = seconds[variant]
                product = f"{needed:.3g} x {each:.3g} s = {needed * each:.3g} s"
                ways.append(f"{variant} {product}")
        lines.append(f"- Epochs to {goal} % on validation: {'; '.join(ways)}.")
    return lines


def plot(results, path, *, title):
    """Draws validation accuracy and training loss: the seeds' mean and range."""
    figure, (accuracy, loss) = new_figure(title, size=(11, 5.8))
    for variant, runs in results.items():
        for axes, name in ((accuracy, "val_accuracy"), (loss, "loss")):
            curves = np.array([run["history"][name] for run in runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(
                epochs,
                curves.mean(axis=0),
                label=LABELS[variant] if axes is loss else None,
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
    accuracy.set_ylabel("validation accuracy (%)", fontsize=15)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    loss.set_ylabel("training loss (nats, log scale)", fontsize=15)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch", fontsize=15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    save(figure, path, ncols=3, handlelength=3)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary: `results`, of each variant the seeds' results, as `train` returns
        them; `seconds`, what `time_epochs` returns.
    """
    args = parse(new_parser(__doc__), argv, defaults=DEFAULTS, quick=QUICK)
    data = "digits" if args.quick else "fashion_mnist"
    (x, y), test_data = ((x / 255, y) for x, y in load_images(data))
    size = NUM_VALIDATION[data]
    valid_data, train_data = (x[:size], y[:size]), (x[size:], y[size:])
    title = f"{IMAGES[data]}, Keras on {BACKENDS[args.backend]}"
    num_images = len(test_data[0])
    print(
        f"{title}: {len(train_data[0])} training images, {size} validation images, "
        f"{num_images} test images, {args.epochs} epochs, {args.seeds} seeds"
    )

    results, models = {variant: [] for variant in LINES}, {}
    for seed in range(args.seeds):
        for variant, runs in results.items():
            models[variant], result = train(
                variant,
                train_data,
                valid_data,
                test_data,
                momentum=MOMENTUM[data],
                epochs=args.epochs,
                seed=seed,
            )
            runs.append(result)

    seconds, goals = time_epochs(models, *train_data), GOALS[data]
    parts = [
        f"{title}: {args.epochs} epochs. Mean ± standard deviation over seeds: "
        f"{args.seeds}. An epoch's seconds are those of training, timed in turn.",
        results_table(results, seconds, goals=goals),
        "\n".join(read_numbers(results, seconds, goals=goals, num_images=num_images)),
        "The variables of the first normalization:",
        variables_table(models["before"]),
    ]
    print()
    plot(results, args.output / "fashion_mnist_sequential.png", title=title)
    write_report(
        args,
        "fashion_mnist_sequential",
        "Fashion-MNIST: normalization before and after the activation, and none",
        parts,
        {
            "fashion_mnist_sequential.png": "Validation accuracy and training loss "
            "over epochs: normalization before ReLU, after it, and none"
        },
    )
    return {"results": results, "seconds": seconds}


if __name__ == "__main__":
    main()
