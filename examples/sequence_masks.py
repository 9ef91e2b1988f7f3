"""Trains on padded sequences: the mask reaches normalization, or is lost before it.

    python examples/sequence_masks.py                # MNIST, downloaded by Keras
    python examples/sequence_masks.py --quick        # 8x8 digits, in scikit-learn

A recurrent network reads digits row by row, a row being a time step. They are drawn in
pencil on white paper, pixels from 0.7 to 1, and each is cut from below to a random
length, from half of its rows to all. Batches need one length, so that zeros are padded
at the end. Three networks:

| variant | layers                                   | statistics are those of |
| ------- | ---------------------------------------- | ----------------------- |
| none    | Masking, GRU, Dense                      |                         |
| masked  | Masking, BatchNormalization, GRU, Dense  | the sequences           |
| lost    | the same, but normalization has no mask  | sequences and padding   |

The GRU has the mask in each. `lost` is what happens where a layer in between drops the
mask, as a custom one does that doesn't say `supports_masking`; there the GRU would read
the padding, too, and this tells apart what normalization has of it.

The sequences are the same whatever is padded to them: up to 1, 2 and 4 times the
image's height, as one long sequence would do to all. Features far from 0, like these or
degrees in kelvin, are where zeros do harm: padding isn't the mean of anything.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import numpy as np
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

DEFAULTS = {"epochs": 5, "seeds": 3}
QUICK = {"data": "digits", "seeds": 1, "padding": "1 4"}
# The padded length in heights of an image.
PADDING = (1, 2, 4)
QUICK_PADDING = (1, 4)
# Enough of MNIST for what is measured here; a GRU takes its time.
NUM_TRAIN = 6000
BATCH_SIZE, UNITS = 64, 32
# Other rates give the same order. Masked, lost and none, on digits with 24 % padding,
# have 86, 72 and 42 %; at 0.03 90, 80 and 42 %; at Keras's 0.001, for which 5 epochs
# aren't enough, 44, 33 and 19 % (one seed, JAX).
LEARNING_RATE = 0.01
# The weight of the old value in the moving averages. The digits' 5 epochs have 115
# batches: at Keras's default 0.99 the averages would still be 31 % initial values.
MOMENTUM = 0.9

LINES = {
    "none": {"color": COLOURS["orange"], "linestyle": "--", "marker": "o"},
    "masked": {"color": COLOURS["blue"], "linestyle": "-", "marker": "s"},
    "lost": {"color": COLOURS["vermilion"], "linestyle": "-.", "marker": "D"},
}
LABELS = {
    "none": "without normalization",
    "masked": "with, the mask reaches it",
    "lost": "with, the mask is lost",
}


def pad(images, *, times, seed):
    """Makes padded sequences of images.

    Args:
        images: array of shape `(images, height, width)`, ink from 0 to 255.
        times: integer, the padded length in heights of an image.
        seed: integer, of the lengths.

    Returns:
        Float32 array of shape `(images, times * height, width)`.
    """
    num_images, height, width = images.shape
    lengths = np.random.default_rng(seed).integers(
        height // 2, height, size=num_images, endpoint=True
    )
    real = np.arange(height) < lengths[:, None]
    sequences = np.zeros((num_images, times * height, width), "float32")
    sequences[:, :height] = np.where(real[..., None], 1 - 0.3 * images / 255, 0)
    return sequences


def build_model(shape, variant):
    """Builds the network, ready to be trained; its outputs are logits.

    Args:
        shape: tuple of integers, `(time, features)`.
        variant: `"none"`, `"masked"` or `"lost"`.
    """
    import keras

    import keras_bnx

    # What a Masking layer would pass on in a Sequential model. Here it is passed by
    # hand, since `lost` takes it from one layer and not from the next.
    inputs = keras.Input(shape)
    mask = keras.ops.any(keras.ops.not_equal(inputs, 0.0), axis=-1)
    x = inputs
    if variant != "none":
        normalization = keras_bnx.BatchNormalization(momentum=MOMENTUM)
        x = normalization(x, mask=mask if variant == "masked" else None)
    x = keras.layers.GRU(UNITS)(x, mask=mask)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(variant, train_data, test_data, *, epochs, seed):
    """Trains the network once, and tests it.

    Args:
        variant: `"none"`, `"masked"` or `"lost"`.
        train_data, test_data: tuples of sequences and labels.
        epochs: integer, how often to go through the training sequences.
        seed: integer, of the initial weights and the order of the sequences.

    Returns:
        Dictionary of `test`, the accuracy on test sequences, and, with normalization,
        `mean`: the moving mean as a share of the real steps' mean, the length of the
        one along the other.
    """
    import keras

    import keras_bnx

    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = train_data, test_data
    model = build_model(x_train.shape[1:], variant)
    model.fit(x_train, y_train, batch_size=BATCH_SIZE, epochs=epochs)
    logits = model.predict(x_test, batch_size=BATCH_SIZE, verbose=0)
    result = {"test": float((logits.argmax(axis=-1) == y_test).mean())}
    for layer in model.layers:
        if isinstance(layer, keras_bnx.BatchNormalization):
            moving = keras.ops.convert_to_numpy(layer.moving_mean)
            true = x_train[x_train.any(axis=-1)].mean(axis=0)
            result["mean"] = float(moving @ true / (true @ true))
    return result


def results_table(results, shares):
    """Returns a table, a row for each padded length.

    Args:
        results: dictionary, of each padded length and variant the seeds' results.
        shares: dictionary, of each padded length the share of padding.
    """
    rows = [
        [
            f"{100 * share:.1f}",
            *(percent([r["test"] for r in results[times, name]]) for name in LINES),
            *(
                percent([r["mean"] for r in results[times, name]])
                for name in ("masked", "lost")
            ),
        ]
        for times, share in shares.items()
    ]
    header = ["padding", *LINES, "moving mean: masked", "lost"]
    return format_table(header, rows)


def read_numbers(results, shares, *, num_images):
    """Says in words what the table shows.

    Args:
        results: dictionary, of each padded length and variant the seeds' results.
        shares: dictionary, of each padded length the share of padding.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """

    def seeds(times, variant):
        return [r["test"] for r in results[times, variant]]

    lines = []
    for times, share in shares.items():
        words = compare(
            seeds(times, "masked"), seeds(times, "lost"), num_images=num_images
        )
        lines.append(f"Mask lost, {share:.0%} padding: {words}.")
    most = max(shares)
    words = compare(seeds(most, "none"), seeds(most, "lost"), num_images=num_images)
    lines.append(f"That against no normalization at all: {words}.")
    accuracies = [
        [results[times, "masked"][i]["test"] for times in shares]
        for i in range(len(seeds(most, "masked")))
    ]
    change = max(max(values) - min(values) for values in accuracies)
    lines.append(
        "With the mask, padding changes a seed's accuracy by at most "
        f"{100 * change:.2f} points."
    )
    ratio = mean_and_spread([r["mean"] for r in results[most, "lost"]])[0]
    lines.append(
        f"Without it, {shares[most]:.1%} padding leaves {ratio:.1%} of the mean: "
        "zeros count as steps."
    )
    return lines


def plot(results, shares, path, *, title):
    """Draws accuracy and moving mean against the share of padding."""
    figure, (accuracy, mean) = new_figure(title, size=(11, 5.6))
    places = [100 * share for share in shares.values()]
    for variant, style in LINES.items():
        for axes, name in ((accuracy, "test"), (mean, "mean")):
            if variant == "none" and name == "mean":
                continue
            points = [
                mean_and_spread([r[name] for r in results[times, variant]])
                for times in shares
            ]
            axes.errorbar(
                places,
                [100 * value for value, _ in points],
                [100 * spread for _, spread in points],
                label=LABELS[variant] if name == "test" else None,
                linewidth=2.5,
                markersize=8,
                capsize=4,
                **style,
            )
    accuracy.set_ylabel("test accuracy (%), mean ± spread", fontsize=15)
    mean.set_ylabel("moving mean (% of real steps')", fontsize=15)
    for axes in (accuracy, mean):
        axes.set_ylim(0, 105)
        axes.set_xlabel("padding (% of all steps)", fontsize=15)
        axes.set_xlim(0, 100)
    save(figure, path, ncols=3, handlelength=3.5)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each padded length (in heights of an image) and variant the list
        of what `train` returns.
    """
    args = parse(new_parser(__doc__), argv, defaults=DEFAULTS, quick=QUICK)
    data = QUICK["data"] if args.quick else "mnist"
    (x_train, y_train), (x_test, y_test) = load_images(data)
    x_train, y_train = x_train[:NUM_TRAIN], y_train[:NUM_TRAIN]
    title = f"Rows of {IMAGES[data]}, Keras on {BACKENDS[args.backend]}"
    print(
        f"{title}: {len(x_train)} training sequences, {len(x_test)} test sequences, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )

    results, shares = {}, {}
    for times in QUICK_PADDING if args.quick else PADDING:
        train_data = pad(x_train, times=times, seed=0), y_train
        test_data = pad(x_test, times=times, seed=1), y_test
        shares[times] = float(1 - train_data[0].any(axis=-1).mean())
        for variant in LINES:
            # Nothing in `none` sees the padding: it is trained once.
            if variant == "none" and len(shares) > 1:
                results[times, variant] = results[min(shares), variant]
                continue
            print(f"\n{shares[times]:.0%} padding, {LABELS[variant]}")
            results[times, variant] = [
                train(variant, train_data, test_data, epochs=args.epochs, seed=seed)
                for seed in range(args.seeds)
            ]

    figure = "sequence_masks.png"
    plot(results, shares, args.output / figure, title=title)
    write_report(
        args,
        "sequence_masks",
        f"Masks and normalization: {title}",
        [
            f"Test accuracy after {args.epochs} epochs of {len(x_train)} sequences, "
            "and the moving mean as a share of the real steps' mean; all in %, mean ± "
            f"standard deviation over seeds ({args.seeds}):",
            results_table(results, shares),
            "\n".join(
                f"- {line}"
                for line in read_numbers(results, shares, num_images=len(x_test))
            ),
        ],
        {figure: "Accuracy and moving mean against the share of padding"},
    )
    return results


if __name__ == "__main__":
    main()
