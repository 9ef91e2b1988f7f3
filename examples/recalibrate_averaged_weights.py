"""Gives averaged weights the statistics that are theirs.

    python examples/recalibrate_averaged_weights.py          # digits, in scikit-learn
    python examples/recalibrate_averaged_weights.py --quick
    python examples/recalibrate_averaged_weights.py --data mnist

With `use_ema=True` an optimizer keeps an exponential moving average of the weights, and
at the end of `fit` puts it in the model. Moving statistics aren't weights, and aren't
averaged with them: they are of what the last raw weights made of the last batches. No
batch has ever gone through the averaged ones. After stochastic weight averaging
Izmailov et al. (2018, https://arxiv.org/abs/1803.05407) take the statistics anew, by a
pass over the training images; here this is a callback:

    model.fit(x, y, callbacks=[keras_bnx.Recalibrate(x)])

Four networks of the same training are tested:

| network                | weights  | statistics                           |
| ---------------------- | -------- | ------------------------------------ |
| raw                    | the last | moving                               |
| raw, recalibrated      | the last | their own, of all training images    |
| averaged               | averaged | moving: of the raw weights           |
| averaged, recalibrated | averaged | their own, of all training images    |

The second tells apart what recalibration does for averaged weights from what it does
for any. All of it for several momenta of the weights' average: the longer it looks
back, the farther are its weights from the last ones.

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

DEFAULTS = {"epochs": 5, "seeds": 5}
QUICK = {"seeds": 1}
# The first of the training images, so that no batch is cut short.
NUM_IMAGES = {"digits": 1408, "mnist": 5632}
BATCH_SIZE = 32
# Of plain SGD, and constant: the average is there to do what a falling rate would.
LEARNING_RATE = 0.5
MOMENTUM = 0.9
# They look back on 10, 50 and 200 steps; digits have 44 steps an epoch, MNIST 176.
EMA_MOMENTA = (0.9, 0.98, 0.995)
QUICK_EMA_MOMENTA = (0.9, 0.995)
# Of the pass that takes statistics: the larger, the nearer to inference.
RECALIBRATION_BATCH_SIZE = 352
NUM_LAYERS = 2

NETWORKS = {
    "raw": {"color": COLOURS["orange"], "marker": "s"},
    "raw, recalibrated": {"color": COLOURS["sky"], "marker": "v"},
    "averaged": {"color": COLOURS["vermilion"], "marker": "o"},
    "averaged, recalibrated": {"color": COLOURS["green"], "marker": "D"},
}


def build_model(image_shape, ema_momentum):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        ema_momentum: float, of the weights' average.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    layers = [keras.Input(image_shape), keras.layers.Flatten()]
    for i, units in enumerate((128, 64)):
        layers += [
            # The normalization takes the mean out, and with it any bias.
            keras.layers.Dense(units, use_bias=False),
            keras_bnx.BatchNormalization(momentum=MOMENTUM, name=f"normalization_{i}"),
            keras.layers.ReLU(),
        ]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.SGD(
            LEARNING_RATE, use_ema=True, ema_momentum=ema_momentum
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(data):
    """Loads images, pixels from 0 to 1, and labels."""
    (x_train, y_train), (x_test, y_test) = load_images(data)
    num_train = NUM_IMAGES[data]
    return (x_train[:num_train] / 255, y_train[:num_train]), (x_test / 255, y_test)


def train(ema_momentum, train_data, test_data, *, epochs, seed):
    """Trains the network once, and tests raw and averaged weights in the end.

    Args:
        ema_momentum: float, of the weights' average.
        train_data, test_data: tuples of images and labels.
        epochs: integer.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        Dictionary: the accuracy of each of `NETWORKS`; `errors`, by layer how far
        outputs of averaged weights are off with moving statistics, in deviations; and
        `raw errors`, the same of raw weights.
    """
    import keras

    import keras_bnx

    keras.utils.set_random_seed(seed)
    x, y = train_data
    model = build_model(x.shape[1:], ema_momentum)
    result = {}

    def test(name):
        result[name] = model.evaluate(*test_data, batch_size=1000, verbose=0)[1]

    def measure_raw(epoch, logs):
        # Before `fit` ends, and puts the averaged weights in.
        if epoch == epochs - 1:
            result["raw errors"] = measure_both("raw")

    def measure_both(name):
        test(name)
        record = keras_bnx.recalibrate(
            model, x, batch_size=RECALIBRATION_BATCH_SIZE, verbose=0
        )
        with record:
            test(f"{name}, recalibrated")
        return [float(np.sqrt(np.mean(np.square(row.error)))) for row in record.rows]

    model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=measure_raw)],
    )
    result["errors"] = measure_both("averaged")
    return result


def results_table(results):
    """Returns accuracies, a row for each momentum of the weights' average.

    Args:
        results: dictionary, of each momentum the seeds' results.
    """
    rows = []
    for momentum, runs in results.items():
        gains = [run["averaged, recalibrated"] - run["averaged"] for run in runs]
        gain = percent(gains, digits=2)
        rows.append(
            [
                f"{momentum:g}",
                *(percent([run[name] for run in runs]) for name in NETWORKS),
                gain if gain.startswith("-") else f"+{gain}",
            ]
        )
    return format_table(["EMA's momentum", *NETWORKS, "by recalibration"], rows)


def errors_table(results):
    """Returns how far outputs are off, a row for each momentum."""
    rows = []
    for momentum, runs in results.items():
        errors, raw = (
            np.mean([run[key] for run in runs], axis=0)
            for key in ("errors", "raw errors")
        )
        rows.append([f"{momentum:g}", *(f"{value:.2f}" for value in (*raw, *errors))])
    return format_table(
        [
            "EMA's momentum",
            *(
                f"{weights}, normalization_{i}"
                for weights in ("raw", "averaged")
                for i in range(NUM_LAYERS)
            ),
        ],
        rows,
    )


def read_numbers(results, *, num_images):
    """Says in words what the tables show.

    Args:
        results: dictionary, of each momentum the seeds' results.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """
    lines = []
    for momentum, runs in results.items():

        def against(old, new, runs=runs):
            pair = ([run[name] for run in runs] for name in (old, new))
            return compare(*pair, num_images=num_images)

        better = sum(run["averaged, recalibrated"] > run["averaged"] for run in runs)
        lines += [
            f"Momentum {momentum:g}: averaged weights, recalibrated, "
            f"{against('averaged', 'averaged, recalibrated')}; better in {better} of "
            f"{len(runs)} seeds.",
            f"Momentum {momentum:g}: averaged instead of raw weights, each with moving "
            f"statistics, {against('raw', 'averaged')}; each recalibrated, "
            f"{against('raw, recalibrated', 'averaged, recalibrated')}.",
        ]
    return lines


def plot(results, path, *, title):
    """Draws accuracies, and how far outputs are off, against the momentum."""
    figure, (accuracy, errors) = new_figure(title, size=(13, 6), width_ratios=(3, 2))
    places = np.arange(len(results))
    for i, (name, style) in enumerate(NETWORKS.items()):
        values = [[100 * run[name] for run in runs] for runs in results.values()]
        points = [mean_and_spread(seeds) for seeds in values]
        accuracy.errorbar(
            places + 0.16 * (i - 1.5),
            [mean for mean, _ in points],
            [spread for _, spread in points],
            label=f"{name} (mean, spread, seeds)",
            linestyle="none",
            markersize=10,
            capsize=5,
            linewidth=2.5,
            **style,
        )
        for place, seeds in zip(places + 0.16 * (i - 1.5), values, strict=True):
            accuracy.plot(
                [place + 0.05] * len(seeds), seeds, ".", color="0.5", markersize=7
            )
    for layer, style in zip(range(NUM_LAYERS), ("-", "--"), strict=True):
        for key, name in (("raw errors", "raw"), ("errors", "averaged")):
            errors.plot(
                places,
                [
                    np.mean([run[key][layer] for run in runs])
                    for runs in results.values()
                ],
                style,
                marker=NETWORKS[name]["marker"],
                color=NETWORKS[name]["color"],
                label=f"{name}, normalization_{layer}",
                linewidth=2.5,
                markersize=9,
            )
    for axes in (accuracy, errors):
        axes.set_xticks(places, [f"{momentum:g}" for momentum in results])
        axes.set_xlim(-0.5, len(results) - 0.5)
        axes.set_xlabel("momentum of the weights' average", fontsize=15)
    accuracy.set_ylabel("test accuracy (%)", fontsize=15)
    errors.set_ylabel("outputs off (deviations)", fontsize=15)
    errors.set_ylim(bottom=0)
    save(figure, path, ncols=2, handlelength=3)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each momentum the list of what `train` returns.
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
    momenta = QUICK_EMA_MOMENTA if args.quick else EMA_MOMENTA
    results = {momentum: [] for momentum in momenta}
    for momentum, runs in results.items():
        for seed in range(args.seeds):
            runs.append(
                train(momentum, train_data, test_data, epochs=args.epochs, seed=seed)
            )
        print(f"momentum {momentum:g} is done", flush=True)

    suffix = "" if args.data == "digits" else f"_{args.data}"
    picture = f"recalibrate_averaged_weights{suffix}.png"
    plot(results, args.output / picture, title=f"Averaged weights, {title}")
    write_report(
        args,
        "recalibrate_averaged_weights",
        f"Averaged weights and their statistics: {title}",
        [
            "Test accuracy in %, mean ± standard deviation over seeds "
            f"({args.seeds}), after {args.epochs} epochs of {num_train} images; and "
            "what recalibration adds to averaged weights, seed by seed, in points:",
            results_table(results),
            "How far outputs of the normalizations are off with moving statistics, in "
            "deviations:",
            errors_table(results),
            "\n".join(
                f"- {line}" for line in read_numbers(results, num_images=num_images)
            ),
        ],
        {picture: "Accuracy of raw and averaged weights, and how far outputs are off"},
        suffix=suffix,
    )
    return results


if __name__ == "__main__":
    main()
