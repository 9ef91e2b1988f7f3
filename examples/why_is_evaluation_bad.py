"""Finds why evaluation is bad, three times, and cures it.

    python examples/why_is_evaluation_bad.py              # digits, in scikit-learn
    python examples/why_is_evaluation_bad.py --quick
    python examples/why_is_evaluation_bad.py --data mnist # 28x28, downloaded

Training is fine and evaluation isn't: in training a normalization takes the batch's
mean and variance, in evaluation its moving statistics. A convolutional network with
four of them learns digits; it is whole in the first row, broken in others:

| case                       | what is wrong                                           |
| -------------------------- | ------------------------------------------------------- |
| healthy                    | nothing: batches of 32, momentum 0.9                    |
| momentum 0.999             | after a few hundred steps most of the moving statistics |
|                            | are the initial 0 and 1                                 |
| shifted data               | the healthy network meets another camera's images: 30 % |
|                            | of the contrast, a grey ground, noise                   |
| batches of 4               | nothing else: at momentum 0.9 moving statistics look    |
|                            | back on ten batches, 40 images; not under `--quick`     |
| batches of 4, momentum 0.1 | 0.1 is PyTorch's number for Keras's 0.9; in Keras it is |
|                            | the old value's weight: 90 % are the last batch's       |

`statistics_report` is given the data and no labels, and names the layers whose moving
statistics are off; `recalibrate` takes the statistics of the same data. For momentum
and batches these are the training images. For shifted data they are training images
from the other camera, without labels; this is AdaBN (Li et al. 2016,
https://arxiv.org/abs/1603.04779).

Cases with the same batch size train the same weights from the same seed, since
training doesn't read moving statistics: they differ in these alone.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

from dataclasses import dataclass

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

DEFAULTS = {"epochs": 4, "seeds": 3}
QUICK = {"epochs": 2, "seeds": 1}
# The first of the training images, so that no batch is cut short.
NUM_IMAGES = {"digits": 1408, "mnist": 5632}
# Of SGD with momentum 0.9, for a batch of 4; in proportion for larger ones.
LEARNING_RATE = 0.01
# Of the report and of the cure: the larger, the nearer to inference.
BATCH_SIZE = 352
NUM_LAYERS = 4


@dataclass(frozen=True)
class Case:
    """How a network is trained, and on what it is evaluated."""

    batch_size: int
    momentum: float
    shifted: bool = False


CASES = {
    "healthy": Case(32, 0.9),
    "momentum 0.999": Case(32, 0.999),
    "shifted data": Case(32, 0.9, shifted=True),
    "batches of 4": Case(4, 0.9),
    "batches of 4, momentum 0.1": Case(4, 0.1),
}
QUICK_CASES = [name for name in CASES if name != "batches of 4"]
BROKEN = ("momentum 0.999", "shifted data", "batches of 4, momentum 0.1")
LINES = {
    "healthy": {"color": COLOURS["green"], "marker": "D", "linestyle": ":"},
    "momentum 0.999": {"color": COLOURS["blue"], "marker": "o", "linestyle": "-"},
    "shifted data": {"color": COLOURS["orange"], "marker": "s", "linestyle": "-."},
    "batches of 4": {"color": COLOURS["sky"], "marker": "v", "linestyle": "--"},
    "batches of 4, momentum 0.1": {
        "color": COLOURS["vermilion"],
        "marker": "^",
        "linestyle": "-",
    },
}
ACCURACIES = {
    "training": ("normalized as in training", COLOURS["sky"]),
    "before": ("evaluated", COLOURS["vermilion"]),
    "after": ("evaluated, recalibrated", COLOURS["green"]),
}


def build_model(image_shape, *, batch_size, momentum):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        batch_size: integer, that of training.
        momentum: float, of the normalizations.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    layers = [keras.Input((*image_shape, 1))]
    for i in range(NUM_LAYERS):
        layers += [
            # The normalization takes the mean out, and with it any bias.
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
            keras_bnx.BatchNormalization(momentum=momentum, name=f"normalization_{i}"),
            keras.layers.ReLU(),
        ]
        if i < NUM_LAYERS - 1:
            layers.append(keras.layers.MaxPooling2D())
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE * batch_size / 4, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def shift(images, seed):
    """Takes images, pixels from 0 to 1, by a worse camera on grey paper."""
    noise = np.random.default_rng(seed).normal(scale=0.05, size=images.shape)
    return (0.5 + 0.3 * images + noise).astype("float32")


def inference_accuracy(model, images, labels):
    """Returns the share of images that are recognized by moving statistics."""
    logits = model.predict(images, batch_size=1000, verbose=0)
    return float((logits.argmax(axis=-1) == labels).mean())


def training_accuracy(model, images, labels, *, batch_size):
    """Returns the share that is recognized by each batch's own statistics.

    The moving statistics stay. The last batch is left out if it isn't whole.
    """
    import keras

    weights, right = model.get_weights(), []
    for end in range(batch_size, len(images) + 1, batch_size):
        batch = slice(end - batch_size, end)
        logits = keras.ops.convert_to_numpy(model(images[batch], training=True))
        right.append(logits.argmax(axis=-1) == labels[batch])
    model.set_weights(weights)
    return float(np.mean(right))


def examine(model, case, train_images, test_data, *, seed, report_path=None):
    """Reports on a network and cures it.

    Args:
        model: the network, whose moving statistics are as before in the end.
        case: `Case`.
        train_images: images, of which the labels aren't needed.
        test_data: tuple of images and labels.
        seed: integer, of the noise of shifted images.
        report_path: optional path of the report's figure.

    Returns:
        Dictionary of the accuracies on test images `training`, `before` and `after`;
        the `report` as text; `worst`, the name of the layer on top of it; and `errors`
        and `ratios`, lists by layers: how far outputs are off, in deviations, and the
        moving deviation over the data's.
    """
    import keras_bnx

    images, labels = test_data
    if case.shifted:
        train_images, images = shift(train_images, seed), shift(images, seed + 1000)
    before = inference_accuracy(model, images, labels)
    # A small batch needs a call each: 2000 images are enough to see.
    training = training_accuracy(
        model, images[:2000], labels[:2000], batch_size=case.batch_size
    )
    report = keras_bnx.statistics_report(
        model, train_images, batch_size=BATCH_SIZE, verbose=0
    )
    if report_path is not None:
        report.plot(report_path)
    with keras_bnx.recalibrate(model, train_images, batch_size=BATCH_SIZE, verbose=0):
        after = inference_accuracy(model, images, labels)
    return {
        "training": training,
        "before": before,
        "after": after,
        "report": str(report),
        "worst": report.rows[0].layer,
        "errors": [row.error for row in report.in_order],
        "ratios": [
            float(np.exp(np.log(row.distance.ratio).mean())) for row in report.in_order
        ],
    }


def run(names, train_data, test_data, *, epochs, seed, report_path=None):
    """Trains each network, and examines it in its cases.

    Args:
        names: list of strings, the names of the cases.
        train_data, test_data: tuples of images and labels.
        epochs: integer.
        seed: integer, of the initial weights and the order of the images.
        report_path: optional path of the figure of the last case's report.

    Returns:
        Dictionary, of each case what `examine` returns.
    """
    import keras

    images, labels = train_data
    models, results = {}, {}
    for name in names:
        case = CASES[name]
        key = case.batch_size, case.momentum
        if key not in models:
            keras.utils.set_random_seed(seed)
            models[key] = build_model(
                images.shape[1:3], batch_size=case.batch_size, momentum=case.momentum
            )
            models[key].fit(
                images, labels, batch_size=case.batch_size, epochs=epochs, verbose=0
            )
        results[name] = examine(
            models[key],
            case,
            images,
            test_data,
            seed=seed,
            report_path=report_path if name == BROKEN[-1] else None,
        )
    return results


def results_table(results):
    """Returns accuracies and the worst layer, a row for each case.

    Args:
        results: dictionary, of each case the seeds' results.
    """
    rows = []
    for name, runs in results.items():
        worst = [max(run["errors"]) for run in runs]
        mean, spread = mean_and_spread(worst)
        rows.append(
            [
                name,
                *(percent([run[key] for run in runs]) for key in ACCURACIES),
                ", ".join(sorted({run["worst"] for run in runs})),
                f"{mean:.2f}" + (f" ± {spread:.2f}" if len(runs) > 1 else ""),
            ]
        )
    header = ["case", "as in training", "evaluated", "recalibrated"]
    return format_table([*header, "worst layer", "its outputs are off"], rows)


def layers_table(results):
    """Returns how far each layer's outputs are off, a row for each layer."""
    rows = [
        [
            f"normalization_{i}",
            *(
                f"{np.mean([run['errors'][i] for run in runs]):.2f}, "
                f"x {np.exp(np.mean([np.log(run['ratios'][i]) for run in runs])):.2f}"
                for runs in results.values()
            ),
        ]
        for i in range(NUM_LAYERS)
    ]
    return format_table(["layer", *results], rows)


def read_numbers(results, *, num_images, steps):
    """Says in words what the tables show.

    Args:
        results: dictionary, of each case the seeds' results.
        num_images: integer, how many images were tested.
        steps: integer, of training in batches of 32.

    Returns:
        List of strings.
    """

    def seeds(name, key):
        return [run[key] for run in results[name]]

    lines = [
        f"{name.capitalize()}: recalibrated, "
        f"{compare(seeds(name, 'before'), seeds(name, 'after'), num_images=num_images)}"
        for name in results
    ]
    for name in BROKEN:
        healthy = "batches of 4" if "batches" in name else "healthy"
        if healthy not in results:
            continue
        words = compare(
            seeds(healthy, "after"), seeds(name, "after"), num_images=num_images
        )
        lines.append(f"Both recalibrated, {name!r} against {healthy!r}: {words}")
    lines.append(
        f"After {steps} steps at momentum 0.999, 0.999**{steps} = "
        f"{0.999**steps:.0%} of the moving statistics are initial values"
    )
    return [f"{line}." for line in lines]


def plot(results, path, *, title):
    """Draws accuracies, and how far layers are off along the depth."""
    figure, (accuracy, errors) = new_figure(title, size=(13, 6.6), width_ratios=(1, 1))
    places = np.arange(len(results))
    for i, (key, (label, colour)) in enumerate(ACCURACIES.items()):
        points = [
            mean_and_spread([100 * run[key] for run in runs])
            for runs in results.values()
        ]
        accuracy.barh(
            places + 0.27 * (i - 1),
            [mean for mean, _ in points],
            0.25,
            xerr=[spread for _, spread in points],
            capsize=3,
            color=colour,
            label=label,
        )
    names = [name.replace(", ", ",\n") for name in results]
    accuracy.set_yticks(places, names, fontsize=14)
    accuracy.invert_yaxis()
    accuracy.set_xlim(0, 100)
    accuracy.set_xlabel("test accuracy (%)", fontsize=15)
    accuracy.grid(visible=False, axis="y")
    for name, runs in results.items():
        values = np.mean([run["errors"] for run in runs], axis=0)
        errors.plot(
            range(NUM_LAYERS),
            values,
            linewidth=2.5,
            markersize=8,
            label=name,
            **LINES[name],
        )
    errors.set_yscale("log")
    errors.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    errors.set_xticks(range(NUM_LAYERS))
    errors.set_xlabel("normalization, from input to output", fontsize=15)
    errors.set_ylabel("outputs off (deviations, log scale)", fontsize=15)
    save(figure, path, ncols=3, handlelength=3)


def load_data(data):
    """Loads images with a channel axis, pixels from 0 to 1, and labels."""
    (x_train, y_train), (x_test, y_test) = load_images(data)
    num_train = NUM_IMAGES[data]
    return (
        (x_train[:num_train, ..., None] / 255, y_train[:num_train]),
        (x_test[..., None] / 255, y_test),
    )


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each case the list of what `examine` returns.
    """
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data",
        choices=NUM_IMAGES,
        default="digits",
        help="the images: scikit-learn's 8x8 digits (default), or MNIST",
    )
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK)
    train_data, test_data = load_data(args.data)
    title = f"{IMAGES[args.data]}, Keras on {BACKENDS[args.backend]}"
    num_train, num_images = len(train_data[0]), len(test_data[0])
    print(
        f"{title}: {num_train} training images, {num_images} test images, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )
    suffix = "" if args.data == "digits" else f"_{args.data}"
    own = f"why_is_evaluation_bad{suffix}_report.png"
    results = {name: [] for name in (QUICK_CASES if args.quick else CASES)}
    for seed in range(args.seeds):
        path = args.output / own if seed == 0 else None
        done = run(
            list(results),
            train_data,
            test_data,
            epochs=args.epochs,
            seed=seed,
            report_path=path,
        )
        for name, result in done.items():
            results[name].append(result)
        print(f"seed {seed} is done", flush=True)

    picture = f"why_is_evaluation_bad{suffix}.png"
    plot(results, args.output / picture, title=f"Why is evaluation bad? {title}")
    pictures = {
        picture: "Accuracy before and after the cure, and how far each layer is off",
        own: f"The report's own figure of {BROKEN[-1]!r}",
    }
    reports = []
    for name in BROKEN:
        text = results[name][0]["report"]
        reports += [f"What the report prints of {name!r}, seed 0:", _verbatim(text)]
    steps = args.epochs * num_train // 32
    write_report(
        args,
        "why_is_evaluation_bad",
        f"Why is evaluation bad? {title}",
        [
            "Test accuracy in %, mean ± standard deviation over seeds "
            f"({args.seeds}), after {args.epochs} epochs of {num_train} images. "
            "Outputs of a normalization are off in deviations:",
            results_table(results),
            "By layer, outputs off and the moving deviation over the data's:",
            layers_table(results),
            "\n".join(
                f"- {line}"
                for line in read_numbers(results, num_images=num_images, steps=steps)
            ),
            *reports,
        ],
        pictures,
        suffix=suffix,
    )
    return results


def _verbatim(text):
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    main()
