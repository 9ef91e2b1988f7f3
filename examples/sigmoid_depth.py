"""Trains sigmoid networks as the paper did, and measures how gradients pass them.

    python examples/sigmoid_depth.py                 # MNIST, downloaded by Keras
    python examples/sigmoid_depth.py --quick         # 8x8 digits, in scikit-learn
    python examples/sigmoid_depth.py --learning-rate 1

The paper's own experiment (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167,
figure 1): three hidden layers of 100 sigmoids, small random Gaussian weights, batches
of 60, 50000 steps, with a normalization before each sigmoid and without any. Shown are
the test accuracy, and how the input of a sigmoid of the last hidden layer is
distributed over the test images: its 15th, 50th and 85th percentile. The paper drew
curves and printed no numbers, and doesn't say how small the weights nor what the
learning rate were; nor whether the images were normalized as in training, by their own
statistics, or as at inference, by moving averages. Both are measured.

The second part is why sigmoids were stacked three high, and not twelve: each passes on
at most a quarter of its gradient. Before any training, the gradient of every kernel is
measured in networks of 3 to 12 hidden layers.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import math

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

# MNIST has 1000 batches of 60: 50 epochs are the paper's 50000 steps, its one run.
DEFAULTS = {"epochs": 50, "seeds": 1}
QUICK = {"epochs": 20}
UNITS, HIDDEN, BATCH_SIZE = 100, 3, 60
DEPTHS, QUICK_DEPTHS = (3, 6, 9, 12), (3, 12)
# Of the weights. With 0.01 the network without normalization had learned nothing after
# 3000 steps on MNIST (10 % of the test images), and the variance before a sigmoid,
# 100 * 0.01**2 * 0.04, would be less than the epsilon, 0.001, that is added to it.
STDDEV = 0.1
# Here the curves are the paper's: without normalization thousands of steps behind.
# After 6000 steps on MNIST (one seed, JAX) 0.1 has 92.5 % without and 95.3 % with, 0.3
# 96.3 and 96.6, 1 97.1 and 97.0, 3 96.7 and 97.4: it is the small rate that
# normalization makes up for.
LEARNING_RATE = 0.1
# Of the step that reveals a gradient, see `gradient_norms`.
REVEALING_RATE = 2.0**30
PERCENTILES = (15, 50, 85)
TARGETS = (0.9, 0.95)
MODES = ("training", "inference")

LINES = {
    "without": {"color": COLOURS["orange"], "linestyle": "--", "marker": "o"},
    "with": {"color": COLOURS["blue"], "linestyle": "-", "marker": "s"},
}


def build_model(image_shape, *, depth, normalization, learning_rate):
    """Builds the network, ready to be trained by plain gradient descent.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        depth: integer, how many hidden layers.
        normalization: `"with"` or `"without"`.
        learning_rate: float > 0.

    Returns:
        A compiled `keras.Sequential`, whose outputs are logits.
    """
    import keras

    import keras_bnx

    def dense(units, **kwargs):
        initializer = keras.initializers.RandomNormal(stddev=STDDEV)
        return keras.layers.Dense(units, kernel_initializer=initializer, **kwargs)

    layers = [keras.Input(image_shape), keras.layers.Flatten()]
    for _ in range(depth):
        if normalization == "with":
            # The normalization takes the mean out, and with it any bias.
            layers += [
                dense(UNITS, use_bias=False),
                # An epoch of the digits is 24 steps, after which Keras's moving
                # averages would still be 0.99**24 = 79 % the initial 0 and 1.
                keras_bnx.BatchNormalization(debias_moving_statistics=True),
            ]
        else:
            layers.append(dense(UNITS))
        layers.append(keras.layers.Activation("sigmoid"))
    model = keras.Sequential([*layers, dense(10)])
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(normalization, train_data, test_data, *, learning_rate, epochs, seed):
    """Trains the network, and looks at it after every epoch.

    Args:
        normalization: `"with"` or `"without"`.
        train_data, test_data: tuples of images and labels, pixels from 0 to 1.
        learning_rate: float > 0.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        Dictionary of arrays whose first axis is the epochs: `steps`, how many were
        done after each; `accuracy`, the share of test images; `training` and
        `inference`, of shape `(epochs, 3, 100)`, percentiles of the inputs of the last
        hidden layer's sigmoids over the test images, in either mode.
    """
    import keras

    import keras_bnx

    print(f"\n{normalization} normalization, seed {seed}")
    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = train_data, test_data
    model = build_model(
        x_train.shape[1:],
        depth=HIDDEN,
        normalization=normalization,
        learning_rate=learning_rate,
    )
    # It shares the layers: what it shows is the model as it stands.
    probe = keras.Model(model.inputs[0], [model.layers[-2].input, model.outputs[0]])
    accuracy, training, inference = [], [], []
    for epoch in range(epochs):
        model.fit(
            x_train,
            y_train,
            batch_size=BATCH_SIZE,
            initial_epoch=epoch,
            epochs=epoch + 1,
        )
        inputs, logits = probe.predict(x_test, batch_size=1000, verbose=0)
        accuracy.append((logits.argmax(axis=-1) == y_test).mean())
        inference.append(np.percentile(inputs, PERCENTILES, axis=0))
        with keras_bnx.keep_moving_statistics():
            inputs, _ = probe(x_test, training=True)
        inputs = keras.ops.convert_to_numpy(inputs)
        training.append(np.percentile(inputs, PERCENTILES, axis=0))
    steps = math.ceil(len(x_train) / BATCH_SIZE)
    return {
        "steps": steps * np.arange(1, epochs + 1),
        "accuracy": np.array(accuracy),
        "training": np.array(training),
        "inference": np.array(inference),
    }


def travel(percentiles):
    """Returns how far each neuron's median moves, in widths of its distribution.

    The sum of the steps that the median takes between looks, over the mean distance
    from the 15th to the 85th percentile. Where it is small, the layer below speaks to
    the sigmoid in one scale all the time, which the paper calls stable.
    """
    low, median, high = np.moveaxis(percentiles, 1, 0)
    return np.abs(np.diff(median, axis=0)).sum(axis=0) / (high - low).mean(axis=0)


def typical_neuron(percentiles):
    """Returns the index of the neuron whose median's travel is the layer's median."""
    order = np.argsort(travel(percentiles))
    return order[len(order) // 2]


def typical_travel(runs, mode):
    """Returns the travel of typical neurons, the mean of the seeds."""
    return np.mean([np.median(travel(run[mode])) for run in runs])


def gradient_norms(train_data, *, depth, normalization, seed):
    """Measures the loss's gradient before any training, on the first batch.

    A step of plain gradient descent changes a weight by the learning rate times the
    gradient, on every backend. A step of rate 1 would be lost where the gradient is
    below a weight's last digit: 0.1 * 2**-24 = 6e-9, and at depth 12 it is. The step
    is huge instead, and by a power of two, which rounds nothing.

    Args:
        train_data: tuple of images and labels, pixels from 0 to 1.
        depth: integer, how many hidden layers.
        normalization: `"with"` or `"without"`.
        seed: integer, of the initial weights.

    Returns:
        List of floats, from the first Dense layer to the last: the Euclidean norm of
        the kernel's gradient.
    """
    import keras

    keras.utils.set_random_seed(seed)
    images, labels = (array[:BATCH_SIZE] for array in train_data)
    model = build_model(
        images.shape[1:],
        depth=depth,
        normalization=normalization,
        learning_rate=REVEALING_RATE,
    )
    # One step isn't worth compiling: 4.4 s on TensorFlow at depth 12, instead of 0.6.
    model.run_eagerly = True

    def kernels():
        return [
            np.array(keras.ops.convert_to_numpy(layer.kernel))
            for layer in model.layers
            if isinstance(layer, keras.layers.Dense)
        ]

    before = kernels()
    model.train_on_batch(images, labels)
    return [
        float(np.linalg.norm((old - new) / REVEALING_RATE))
        for old, new in zip(before, kernels(), strict=True)
    ]


def steps_to(run, target):
    """Returns after how many steps the accuracy was first seen; `None` if never."""
    reached = run["steps"][run["accuracy"] >= target]
    return int(reached[0]) if len(reached) else None


def training_table(training):
    """Returns what training came to, a row with and a row without normalization."""
    header = ["normalization", "test accuracy in %"]
    header += [f"steps to {target:.0%}" for target in TARGETS]
    rows = []
    for normalization, runs in training.items():
        row = [normalization, percent([run["accuracy"][-1] for run in runs], digits=2)]
        for target in TARGETS:
            steps = [steps_to(run, target) for run in runs]
            row.append(" / ".join("never" if s is None else f"{s}" for s in steps))
        row += [f"{typical_travel(runs, mode):.1f}" for mode in MODES]
        rows.append(row)
    header += [f"median's travel, {mode}" for mode in MODES]
    return format_table(header, rows)


def gradients_table(gradients):
    """Returns the gradient norms of the first and the last layer, a row a depth."""

    def norm(depth, normalization, layer):
        norms = [seed[layer] for seed in gradients[depth, normalization]]
        return math.exp(np.log(norms).mean())

    header = ["hidden layers", "first, without", "last, without"]
    rows = [
        [
            f"{depth}",
            *(f"{norm(depth, 'without', layer):.1e}" for layer in (0, -1)),
            *(f"{norm(depth, 'with', layer):.1e}" for layer in (0, -1)),
        ]
        for depth in sorted({depth for depth, _ in gradients})
    ]
    return format_table([*header, "first, with", "last, with"], rows)


def factor_per_layer(norms):
    """Returns what a gradient is multiplied by from one hidden kernel to the one below.

    The geometric mean of the kernels between hidden layers: the first and the last
    kernel have other shapes.
    """
    hidden = norms[1:-1]
    return (hidden[0] / hidden[-1]) ** (1 / (len(hidden) - 1))


def read_numbers(training, gradients, *, num_images):
    """Says in words what the tables show.

    Args:
        training: dictionary, with and without normalization what `train` returned for
            each seed.
        gradients: dictionary, of each depth, with and without, what `gradient_norms`
            returned for each seed.
        num_images: integer, how many images were tested.

    Returns:
        List of strings.
    """
    final = [[run["accuracy"][-1] for run in runs] for runs in training.values()]
    best = max(run["accuracy"][-1] for run in training["without"])
    overtaken = [steps_to(run, best) for run in training["with"]]
    lines = [f"- Normalization: {compare(*final, num_images=num_images)}."]
    if None not in overtaken:
        lines.append(
            f"- The accuracy that the network without it ends at, {best:.1%}, has "
            f"the one with it after {np.mean(overtaken):.0f} steps of "
            f"{training['with'][0]['steps'][-1]}."
        )
    moved = typical_travel(training["without"], "training")
    still = {mode: typical_travel(training["with"], mode) for mode in MODES}
    words = (
        f"{still[mode]:.1f} normalized as in {mode}, "
        f"{'more' if still[mode] > moved else 'less'}"
        for mode in MODES
    )
    lines.append(
        "- From the first epoch on the median of a typical sigmoid's input travels "
        f"{moved:.1f} widths of its distribution without normalization; with it "
        f"{', and '.join(words)}."
    )
    depth = max(depth for depth, _ in gradients)
    factors = {
        name: math.exp(
            np.log([factor_per_layer(norms) for norms in gradients[depth, name]]).mean()
        )
        for name in LINES
    }
    lines.append(
        f"- Of {depth} hidden layers each multiplies the gradient on its way down by "
        f"{factors['without']:.2f} without and by {factors['with']:.2f} with "
        "normalization."
    )
    return lines


def plot_training(training, path, *, title):
    """Draws accuracy, and the percentiles of a typical neuron, against steps."""
    figure, (accuracy, *inputs) = new_figure(title, size=(14, 5.4), columns=3)
    scale = 1000 if training["with"][0]["steps"][-1] >= 10_000 else 1
    for axes, (name, runs) in zip(inputs, training.items(), strict=True):
        style = {**LINES[name], "marker": None, "linewidth": 2.5}
        for i, run in enumerate(runs):
            label = f"{name} normalization" if i == 0 else None
            steps = run["steps"] / scale
            accuracy.plot(steps, 100 * run["accuracy"], label=label, **style)
        percentiles = runs[0]["training"]
        low, median, high = percentiles[..., typical_neuron(percentiles)].T
        axes.plot(steps, median, **style)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.25)
        axes.set_title(f"a sigmoid's input, {name}", fontsize=15)
    # The last axes have room for the names of the percentiles.
    for percentile, values in zip(PERCENTILES, (low, median, high), strict=True):
        inputs[-1].annotate(
            f"{percentile}th",
            (steps[-1], values[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=13,
        )
    inputs[1].sharey(inputs[0])
    inputs[0].set_ylabel("input, percentiles of test images", fontsize=15)
    # The paper's axis, unless a network hasn't come that far.
    worst = min(run["accuracy"][-1] for runs in training.values() for run in runs)
    accuracy.set_ylim(70 if worst > 0.7 else 0, 100)
    accuracy.set_title("test images", fontsize=15)
    accuracy.set_ylabel("accuracy (%)", fontsize=15)
    for axes in (accuracy, *inputs):
        axes.set_xlabel("thousand steps" if scale > 1 else "steps", fontsize=15)
    save(figure, path, ncols=2, handlelength=3.5)


def plot_gradients(gradients, path, *, title):
    """Draws the gradient norm of each kernel, an axes for each depth."""
    depths = sorted({depth for depth, _ in gradients})
    figure, grid = new_figure(
        title,
        size=(14, 5.4),
        columns=len(depths),
        sharey=True,
        width_ratios=[depth + 3 for depth in depths],
    )
    for axes, depth in zip(grid, depths, strict=True):
        for name, style in LINES.items():
            for i, norms in enumerate(gradients[depth, name]):
                first = depth == depths[0] and i == 0
                axes.plot(
                    range(1, len(norms) + 1),
                    norms,
                    label=f"{name} normalization" if first else None,
                    linewidth=2.5,
                    markersize=7,
                    **style,
                )
        axes.set_yscale("log")
        axes.set_title(f"{depth} hidden layers", fontsize=15)
        axes.set_xticks(range(1, depth + 2, 1 if depth < 6 else 3))
    grid[0].set_ylabel("gradient norm (log scale)", fontsize=15)
    for axes in grid:
        axes.set_xlabel("kernel", fontsize=15)
    grid[-1].set_xlabel("kernel (1: the image's)", fontsize=15)
    save(figure, path, ncols=2, handlelength=3.5)


def check(args):
    """Checks the example's own argument."""
    if not 0 < args.learning_rate < math.inf:
        raise ValueError(
            "`--learning-rate` has to be above 0. "
            f"Received: --learning-rate {args.learning_rate}. Leave it out for the "
            "default."
        )


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary: `training`, of `"without"` and `"with"` the list of what `train`
        returns; `gradients`, of each depth and either of these the list of what
        `gradient_norms` returns.
    """
    parser = new_parser(__doc__)
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=LEARNING_RATE,
        help="that of gradient descent; default: %(default)s",
    )
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK, check=check)
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

    gradients = {
        (depth, name): [
            gradient_norms(train_data, depth=depth, normalization=name, seed=seed)
            for seed in range(args.seeds)
        ]
        for depth in (QUICK_DEPTHS if args.quick else DEPTHS)
        for name in LINES
    }
    training = {
        name: [
            train(
                name,
                train_data,
                test_data,
                learning_rate=args.learning_rate,
                epochs=args.epochs,
                seed=seed,
            )
            for seed in range(args.seeds)
        ]
        for name in LINES
    }

    curves, norms = (f"sigmoid_depth_{part}.png" for part in ("training", "gradients"))
    plot_training(
        training,
        args.output / curves,
        title=f"Three layers of {UNITS} sigmoids, {title}",
    )
    plot_gradients(
        gradients,
        args.output / norms,
        title=f"Gradients before training, layers of {UNITS} sigmoids, {title}",
    )
    steps = training["with"][0]["steps"][-1]
    write_report(
        args,
        "sigmoid_depth",
        f"Sigmoids, deep and normalized: {title}",
        [
            f"Three hidden layers after {steps} steps of {BATCH_SIZE} images, seeds: "
            f"{args.seeds}. They were looked at after every epoch. The travel of a "
            "sigmoid's median input is in widths of its distribution.",
            training_table(training),
            "Euclidean norm of a kernel's gradient before training (geometric mean of "
            "seeds):",
            gradients_table(gradients),
            "\n".join(read_numbers(training, gradients, num_images=num_images)),
        ],
        {
            curves: "Test accuracy and percentiles of a sigmoid's input over training",
            norms: "Gradient norm of each kernel, with and without normalization",
        },
    )
    return {"training": training, "gradients": gradients}


if __name__ == "__main__":
    main()
