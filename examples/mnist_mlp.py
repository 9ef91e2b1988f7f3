"""Trains a digit classifier with and without normalization, on two pixel scales.

    python examples/mnist_mlp.py                     # 8x8 digits, in scikit-learn
    python examples/mnist_mlp.py --data mnist        # 28x28, downloaded by Keras
    python examples/mnist_mlp.py --backend torch

An article's experiment in small: a network of three hidden layers, with batch
normalization after the first and the second, is trained four times:

| run | pixels   | normalization |
| --- | -------- | ------------- |
| A   | 0 to 1   | without       |
| B   | 0 to 1   | with          |
| C   | 0 to 255 | without       |
| D   | 0 to 255 | with          |

All runs start from the same seed, and so from the same Dense weights. What comes out
is a table, a figure of the learning curves, and the difference that it makes to put
`keras.layers.BatchNormalization` in this layer's place.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import argparse

# keras and keras_bnx are imported inside the functions that use them: the backend is
# fixed by the first import of keras, and `--backend` has to come before.
from common import BACKENDS, COLOURS, compare, new_figure, parse, prepare, save
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH_SIZE = 128
EPOCHS = {"digits": 10, "mnist": 3}
# The weight of the old value in the moving averages, which inference uses. The digits
# have 12 batches an epoch: at Keras's default, 0.99, the averages would still be
# 0.99**12 = 89 % their initial values after one epoch, and 30 % after ten.
# MNIST has 469, where 0.9 is too restless: run D's test loss was 0.13 to 0.27 after
# three epochs (two seeds, JAX and TensorFlow), 0.09 to 0.10 at 0.99.
MOMENTUM = {"digits": 0.9, "mnist": 0.99}
TITLES = {"digits": "scikit-learn's digits (8x8)", "mnist": "MNIST (28x28)"}

RUNS = (
    {"run": "A", "pixels": "0 to 1", "normalization": False},
    {"run": "B", "pixels": "0 to 1", "normalization": True},
    {"run": "C", "pixels": "0 to 255", "normalization": False},
    {"run": "D", "pixels": "0 to 255", "normalization": True},
)

# Markers are hollow without normalization, round for scaled pixels, square for raw.
LINES = {
    "A": {
        "color": COLOURS["sky"],
        "linestyle": "--",
        "marker": "o",
        "fillstyle": "none",
    },
    "B": {"color": COLOURS["blue"], "linestyle": "-", "marker": "o"},
    "C": {
        "color": COLOURS["orange"],
        "linestyle": ":",
        "marker": "s",
        "fillstyle": "none",
    },
    "D": {"color": COLOURS["vermilion"], "linestyle": "-.", "marker": "s"},
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


def load_data(data):
    """Loads images of handwritten digits.

    Args:
        data: `"digits"` (1797 images of 8x8 pixels, a fifth of them for the test)
            or `"mnist"` (70000 of 28x28, split as published).

    Returns:
        The tuples `(x_train, y_train), (x_test, y_test)`: float32 images of shape
        `(images, height, width)`, pixels from 0 to 255, and integer labels.
    """
    if data == "mnist":
        import keras

        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    else:
        digits = load_digits()
        # These pixels count 16 dots each; MNIST's are bytes.
        x_train, x_test, y_train, y_test = train_test_split(
            digits.images * (255 / 16),
            digits.target,
            test_size=0.2,
            stratify=digits.target,
            random_state=0,
        )
    x_train, x_test = x_train.astype("float32"), x_test.astype("float32")
    return (x_train, y_train), (x_test, y_test)


def describe(run):
    """Returns a run in words: `"D: pixels 0 to 255, with normalization"`."""
    word = "with" if run["normalization"] else "without"
    return f"{run['run']}: pixels {run['pixels']}, {word} normalization"


def train(run, train_data, test_data, *, momentum, epochs, seed):
    """Trains the network of one run, and tests it after every epoch.

    The test images choose nothing (no early stopping, no best epoch), so that the
    last epoch's accuracy is the test accuracy.

    Args:
        run: dictionary, one of `RUNS`.
        train_data: tuple of images and labels, pixels from 0 to 255.
        test_data: tuple of images and labels, likewise.
        momentum: float in [0, 1], that of the normalization layers.
        epochs: integer, how often to go through the training images.
        seed: integer, of the initial weights and the order of the images.

    Returns:
        The model, and `run` with the items `accuracy` (0 to 1), `loss` (in nats)
        and `history` (dictionary of lists, one number an epoch).
    """
    import keras

    print(f"\nRun {describe(run)}")
    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = train_data, test_data
    scale = 1 / 255 if run["pixels"] == "0 to 1" else 1.0
    model = build_model(
        x_train.shape[1:], normalization=run["normalization"], momentum=momentum
    )
    history = model.fit(
        x_train * scale,
        y_train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(x_test * scale, y_test),
    ).history
    accuracy, loss = history["val_accuracy"][-1], history["val_loss"][-1]
    return model, {**run, "accuracy": accuracy, "loss": loss, "history": history}


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


def format_table(results):
    """Returns the results as a table of text, one line a run."""
    lines = [
        "run  pixels    normalization  test accuracy  test loss",
        "---  --------  -------------  -------------  ---------",
    ]
    for result in results:
        word = "with" if result["normalization"] else "without"
        lines.append(
            f"{result['run']:<3}  {result['pixels']:<8}  {word:<13}  "
            f"{result['accuracy']:>13.2%}  {result['loss']:>9.4f}"
        )
    return "\n".join(lines)


def read_numbers(plain, normalized, *, num_images):
    """Says in words what normalization changed between two runs.

    Args:
        plain: dictionary, the result of the run without normalization.
        normalized: dictionary, the result of the run with it.
        num_images: integer, how many images the runs were tested on.

    Returns:
        A string of one line.
    """
    words = compare(
        [plain["accuracy"]], [normalized["accuracy"]], num_images=num_images
    )
    p_first, q_first = (
        result["history"]["val_accuracy"][0] for result in (plain, normalized)
    )
    return (
        f"{plain['run']} to {normalized['run']}: accuracy {words}; "
        f"loss {normalized['loss'] - plain['loss']:+.4f}. "
        f"After the first epoch: {p_first:.1%} without, {q_first:.1%} with."
    )


def plot(results, path, *, title):
    """Draws the learning curves, accuracy and loss, into a PNG file."""
    figure, (accuracy, loss) = new_figure(title, size=(11, 5.6))
    for result in results:
        style = {**LINES[result["run"]], "linewidth": 2.5, "markersize": 8}
        history = result["history"]
        epochs = range(1, len(history["val_loss"]) + 1)
        accuracy.plot(epochs, history["val_accuracy"], label=describe(result), **style)
        loss.plot(epochs, history["val_loss"], **style)
    accuracy.set_ylabel("test accuracy (%)", fontsize=15)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    loss.set_ylabel("test loss (nats, log scale)", fontsize=15)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch", fontsize=15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path, ncols=2, handlelength=3.5)


def parse_arguments(argv):
    """Parses the command line, and creates the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data",
        choices=EPOCHS,
        default="digits",
        help="the images: scikit-learn's 8x8 digits (default), or MNIST",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="epochs of each run; default: "
        + ", ".join(f"{epochs} for {data}" for data, epochs in EPOCHS.items()),
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of each run; default: %(default)s"
    )
    args = parse(parser, argv, defaults={"epochs": None})
    if args.epochs is None:
        args.epochs = EPOCHS[args.data]
    # NumPy's generator, which keras.utils.set_random_seed seeds, takes 32 bits.
    if not 0 <= args.seed < 2**32:
        parser.error(
            "`--seed` has to be from 0 to 2**32 - 1. "
            f"Received: --seed {args.seed}. Choose another."
        )
    prepare(parser, args)
    return args


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        List of four dictionaries, as `train` returns them. Run D's has the item
        `differences` in addition, as `compare_with_keras` returns them.
    """
    args = parse_arguments(argv)
    train_data, test_data = load_data(args.data)
    title = f"{TITLES[args.data]}, Keras on {BACKENDS[args.backend]}"
    num_images = len(test_data[0])
    print(f"{title}: {len(train_data[0])} training images, {num_images} test images")

    results = []
    for run in RUNS:
        model, result = train(
            run,
            train_data,
            test_data,
            momentum=MOMENTUM[args.data],
            epochs=args.epochs,
            seed=args.seed,
        )
        results.append(result)
    inference, training = compare_with_keras(model, test_data[0])
    results[-1]["differences"] = (inference, training)

    a, b, c, d = results
    print(f"\n{format_table(results)}\n")
    print(read_numbers(a, b, num_images=num_images))
    print(read_numbers(c, d, num_images=num_images))
    print(
        "D with keras.layers.BatchNormalization in place of ours: logits differ by at "
        f"most {inference:.1e}, normalized values in training mode by {training:.1e}."
    )
    plot(results, args.output / f"mnist_mlp_{args.data}.png", title=title)
    return results


if __name__ == "__main__":
    main()
