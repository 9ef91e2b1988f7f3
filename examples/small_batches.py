"""Measures test accuracy against batch size, for four normalizations.

    python examples/small_batches.py                 # 8x8 digits, in scikit-learn
    python examples/small_batches.py --quick
    python examples/small_batches.py --data mnist --images 5632    # 28x28

A network of two hidden layers is trained at each batch size, with a normalization
after each of the two matrices:

| variant | normalizes in training by                      | and at inference by |
| ------- | ---------------------------------------------- | ------------------- |
| plain   | the batch                                      | moving statistics   |
| virtual | virtual batches of 8 examples                  | moving statistics   |
| renorm  | the batch, corrected towards moving statistics | moving statistics   |
| group   | 8 groups of the example's own channels         | the same            |

A virtual batch is at most the batch: up to batch size 8, `virtual` is `plain`, and
isn't trained again. Above, it tells apart the two things that the batch size decides:
how noisy the statistics are, and how many steps are taken.

The network has Dense layers because there a statistic is one of as many numbers as
the batch has examples. In a convolution it is one of batch x height x width: two
convolutional networks tried on the same digits had 96 and 98 % in batches of 2.

All runs see the same number of examples. The learning rate is proportional to the
batch size (Goyal et al. 2017, https://arxiv.org/abs/1706.02677), and falls to 0 along
a cosine, so that the last step of a run isn't a lucky one.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import math

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
from matplotlib.ticker import NullLocator

# 1408 = 22 x 64: no batch is cut short, up to 64.
NUM_IMAGES = {"digits": 1408, "mnist": 5632}
DEFAULTS = {"epochs": 5, "seeds": 3}
QUICK = {"epochs": 1, "seeds": 1, "images": 704}
BATCH_SIZES = (2, 4, 8, 16, 32, 64)
QUICK_BATCH_SIZES = (2, 16)

# Of SGD with momentum 0.9, for a batch of 32. Half and twice as much give the same
# picture: in batches of 2 plain 82 and 67 %, renorm 94 and 93 %, group 97 and 97 %;
# in batches of 64 97 and 97 %, 98 and 98 %, 96 and 94 % (two seeds, TensorFlow).
LEARNING_RATE = 0.1
VIRTUAL_BATCH_SIZE = 8
GROUPS = 8
# How many examples moving averages look back on: their momentum is
# 1 - batch size / MEMORY. At Keras's 0.99 they would look back on 200 examples in
# batches of 2, which is noise, and on 6400 in batches of 64, more than three epochs
# of changing weights. So the averages are equally good at each size, and what differs
# is what they are averages of.
MEMORY = 1000

LINES = {
    "plain": {"color": COLOURS["blue"], "marker": "o", "linestyle": "-"},
    "virtual": {"color": COLOURS["sky"], "marker": "v", "linestyle": "--"},
    "renorm": {"color": COLOURS["vermilion"], "marker": "s", "linestyle": "-"},
    "group": {"color": COLOURS["green"], "marker": "D", "linestyle": ":"},
}
LABELS = {
    "plain": "plain",
    "virtual": f"virtual batches of {VIRTUAL_BATCH_SIZE} (up to there: plain)",
    "renorm": "renorm, the paper's schedule",
    "group": "keras.layers.GroupNormalization",
}


def normalization(variant, *, batch_size, steps):
    """Returns a new normalization layer.

    Args:
        variant: `"plain"`, `"virtual"`, `"renorm"` or `"group"`.
        batch_size: integer, that of training.
        steps: integer, how many steps training will have.
    """
    import keras

    import keras_bnx

    if variant == "group":
        return keras.layers.GroupNormalization(groups=GROUPS)
    momentum = max(0.0, 1 - batch_size / MEMORY)
    if variant == "plain":
        return keras_bnx.BatchNormalization(momentum=momentum)
    if variant == "virtual":
        return keras_bnx.BatchNormalization(
            momentum=momentum, virtual_batch_size=VIRTUAL_BATCH_SIZE
        )
    # The paper's steps are 5000, 25000 and 40000 of 160000.
    start = steps // 32
    limits = keras_bnx.renorm_schedule(
        start=start,
        dmax_end=start + math.ceil(steps * 4 / 32),
        rmax_end=start + math.ceil(steps * 7 / 32),
    )
    # Debiased, renorm's averages are averages of batches from the first step on;
    # otherwise r and d would compare the first batches with the initial 0 and 1.
    return keras_bnx.BatchNormalization(
        momentum=momentum,
        renorm=True,
        renorm_clipping=limits,
        renorm_momentum=momentum,
        debias_moving_statistics=True,
    )


def build_model(image_shape, variant, *, batch_size, steps):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        variant, batch_size, steps: those of `normalization`.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    layers = [keras.Input(image_shape), keras.layers.Flatten()]
    for _ in range(2):
        layers += [
            # The normalization takes the mean out, and with it any bias.
            keras.layers.Dense(64, use_bias=False),
            normalization(variant, batch_size=batch_size, steps=steps),
            keras.layers.ReLU(),
        ]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE * batch_size / 32, decay_steps=steps
    )
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(data, *, num_train):
    """Loads images of handwritten digits.

    Args:
        data: `"digits"` or `"mnist"`.
        num_train: integer, how many images to train on.

    Returns:
        What `load_images` returns, with pixels from 0 to 1.
    """
    (x_train, y_train), (x_test, y_test) = load_images(data)
    return (x_train[:num_train] / 255, y_train[:num_train]), (x_test / 255, y_test)


def train(variant, train_data, test_data, *, batch_size, epochs, seed):
    """Trains the network once, and tests it.

    Args:
        variant: `"plain"`, `"virtual"`, `"renorm"` or `"group"`.
        train_data, test_data: tuples of images and labels.
        batch_size: integer.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        Dictionary of shares: `test`, the accuracy on test images; `inference`, that
        on training images; `training`, that of the last epoch as it was trained,
        normalized as in training; and, but for group normalization, `variance`, the
        first layer's moving variance over the variance of all training images, the
        mean of its channels.
    """
    import keras

    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = train_data, test_data
    steps = epochs * math.ceil(len(x_train) / batch_size)
    model = build_model(x_train.shape[1:], variant, batch_size=batch_size, steps=steps)
    history = model.fit(
        x_train, y_train, batch_size=batch_size, epochs=epochs, verbose=0
    ).history

    def accuracy(x, y):
        # In one batch: at inference an example's output doesn't depend on others.
        logits = model.predict(x, batch_size=len(x), verbose=0)
        return float((logits.argmax(axis=-1) == y).mean())

    result = {
        "test": accuracy(x_test, y_test),
        "inference": accuracy(x_train, y_train),
        "training": history["accuracy"][-1],
    }
    if variant != "group":
        dense, layer = model.layers[1:3]
        kernel, moving = map(
            keras.ops.convert_to_numpy, (dense.kernel, layer.moving_variance)
        )
        true = (x_train.reshape(len(x_train), -1) @ kernel).var(axis=0)
        result["variance"] = float((moving / true).mean())
    return result


def results_table(results, cell):
    """Returns a table, a row for each batch size, a column for each variant.

    Args:
        results: dictionary, of each batch size and variant the seeds' results.
        cell: function of a list of results that returns a string.
    """
    rows = []
    for size in sorted({size for size, _ in results}):
        cells = {variant: cell(results[size, variant]) for variant in LINES}
        if size <= VIRTUAL_BATCH_SIZE:
            cells["virtual"] = "as plain"
        rows.append([str(size), *cells.values()])
    return format_table(["batch size", *LINES], rows)


def read_numbers(results, *, num_images):
    """Says in words what the table shows.

    Args:
        results: dictionary, of each batch size and variant the seeds' results.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """
    sizes = sorted({size for size, _ in results})
    small, large = sizes[0], sizes[-1]

    def mean(size, variant, name):
        return mean_and_spread([r[name] for r in results[size, variant]])[0]

    def against(*keys):
        old, new = ([r["test"] for r in results[key]] for key in keys)
        return compare(old, new, num_images=num_images)

    lines = []
    if small < large:
        lines.append(
            f"Plain, from batches of {large} to {small}: "
            f"{against((large, 'plain'), (small, 'plain'))}."
        )
    for variant in ("renorm", "group"):
        lines.append(
            f"Batches of {small}, {variant} instead of plain: "
            f"{against((small, 'plain'), (small, variant))}."
        )
    if large > VIRTUAL_BATCH_SIZE:
        lines.append(
            f"Batches of {large}, virtual instead of plain: "
            f"{against((large, 'plain'), (large, 'virtual'))}. "
            "On training images in the last epoch: "
            f"{mean(large, 'virtual', 'training'):.1%} instead of "
            f"{mean(large, 'plain', 'training'):.1%}."
        )
    lines.append(
        f"Plain in batches of {small}, on training images: "
        f"{mean(small, 'plain', 'training'):.1%} normalized by the batch, in the last "
        f"epoch; {mean(small, 'plain', 'inference'):.1%} by moving statistics after it."
    )
    shares = (f"{size}: {mean(size, 'plain', 'variance'):.2f}" for size in sizes)
    lines.append(
        "Plain's moving variance over the variance of all training images, by batch "
        "size (1 - 1 / batch size is what divisor n makes of it, where the weights "
        f"stand still): {', '.join(shares)}."
    )
    return lines


def plot(results, path, *, title):
    """Draws accuracy against batch size, at inference and in training."""
    sizes = sorted({size for size, _ in results})
    figure, pair = new_figure(title, size=(11, 5.8), sharey=True)
    for i, (variant, style) in enumerate(LINES.items()):
        drawn = [s for s in sizes if variant != "virtual" or s > VIRTUAL_BATCH_SIZE]
        for axes, name in zip(pair, ("test", "training"), strict=True):
            points = [
                mean_and_spread([r[name] for r in results[size, variant]])
                for size in drawn
            ]
            # Side by side, or error bars would hide each other.
            axes.errorbar(
                [size * 2 ** (0.06 * (i - 1.5)) for size in drawn],
                [100 * mean for mean, _ in points],
                [100 * spread for _, spread in points],
                label=LABELS[variant] if name == "test" else None,
                linewidth=2.5,
                markersize=8,
                capsize=4,
                **style,
            )
    pair[0].set_title("test images, at inference", fontsize=15)
    pair[1].set_title("training images, in training", fontsize=15)
    pair[0].set_ylabel("accuracy (%), mean ± spread", fontsize=15)
    pair[1].tick_params(labelleft=True)
    for axes in pair:
        axes.set_xlabel("batch size (log scale)", fontsize=15)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, sizes)
        axes.xaxis.set_minor_locator(NullLocator())
    save(figure, path, ncols=2, handlelength=3.5)


def check(args):
    """Checks and completes the example's own arguments."""
    most = {"digits": 1437, "mnist": 60000}[args.data]
    if args.images is None:
        args.images = QUICK["images"] if args.quick else NUM_IMAGES[args.data]
    if not 10 <= args.images <= most:
        raise ValueError(
            f"`--images` has to be from 10 to {most} of {args.data}. "
            f"Received: --images {args.images}. "
            f"Leave it out for {NUM_IMAGES[args.data]}."
        )
    args.batch_sizes = args.batch_sizes or (
        QUICK_BATCH_SIZES if args.quick else BATCH_SIZES
    )
    for size in args.batch_sizes:
        if not 2 <= size <= args.images:
            raise ValueError(
                "`--batch-sizes` have to be from 2, as one example has no variance, "
                f"to the {args.images} training images. "
                f"Received: --batch-sizes {size}. Leave it out."
            )


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each batch size and variant the list of what `train` returns.
    """
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data",
        choices=NUM_IMAGES,
        default="digits",
        help="the images: scikit-learn's 8x8 digits (default), or MNIST",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="training images; default: "
        + ", ".join(f"{number} of {data}" for data, number in NUM_IMAGES.items()),
    )
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        help=f"default: {' '.join(map(str, BATCH_SIZES))}; "
        f"under --quick {' '.join(map(str, QUICK_BATCH_SIZES))}",
    )
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK, check=check)
    train_data, test_data = load_data(args.data, num_train=args.images)
    title = f"{IMAGES[args.data]}, Keras on {BACKENDS[args.backend]}"
    num_images = len(test_data[0])
    print(
        f"{title}: {len(train_data[0])} training images, {num_images} test images, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )

    results = {}
    for size in sorted(set(args.batch_sizes)):
        for variant in LINES:
            if variant == "virtual" and size <= VIRTUAL_BATCH_SIZE:
                results[size, variant] = results[size, "plain"]
                continue
            results[size, variant] = [
                train(
                    variant,
                    train_data,
                    test_data,
                    batch_size=size,
                    epochs=args.epochs,
                    seed=seed,
                )
                for seed in range(args.seeds)
            ]
            test = percent([r["test"] for r in results[size, variant]])
            print(f"batch size {size}, {variant}: {test} %", flush=True)

    figure = f"small_batches_{args.data}.png"
    plot(results, args.output / figure, title=title)
    write_report(
        args,
        "small_batches",
        f"Small batches: {title}",
        [
            "Test accuracy in %, mean ± standard deviation over seeds "
            f"({args.seeds}), after {args.epochs} epochs of {args.images} images:",
            results_table(results, lambda cell: percent([r["test"] for r in cell])),
            "Training images in %: in the last epoch, and at inference after it:",
            results_table(
                results,
                lambda cell: " / ".join(
                    f"{100 * mean_and_spread([r[name] for r in cell])[0]:.1f}"
                    for name in ("training", "inference")
                ),
            ),
            "\n".join(
                f"- {line}" for line in read_numbers(results, num_images=num_images)
            ),
        ],
        {figure: "Accuracy against batch size, at inference and in training"},
    )
    return results


if __name__ == "__main__":
    main()
