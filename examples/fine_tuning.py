"""Fine-tunes on shifted data: normalization frozen right, wrong, and adapted.

    python examples/fine_tuning.py
    python examples/fine_tuning.py --quick --backend torch

A small network with two batch normalizations learns scikit-learn's digits. Then come
the same kind of digits photographed otherwise: tilted by 15 degrees and faded, to
30 % of the contrast on a grey ground. Of the new images 501 are there to train on, 40
of them with labels, 4 of each digit. Nine ways to go on from there:

| recipe                    | trained, in batches of 4   | statistics              |
| ------------------------- | -------------------------- | ----------------------- |
| none                      |                            | the old data's          |
| all, running              | everything                 | run along               |
| all, caught up            | everything                 | run, then the new's     |
| head, running             | the last layer             | run along               |
| head, frozen              | the last layer             | frozen: the old data's  |
| affine + head, frozen     | gamma, beta and last layer | frozen: the old data's  |
| all, frozen               | everything                 | frozen: the old data's  |
| AdaBN                     |                            | the new data's          |
| AdaBN, then affine + head | gamma, beta and last layer | frozen: the new data's  |

Two are the usual mistakes. `all, running` is `fit` and nothing else: training
normalizes by batches of 4, inference by moving statistics, which at momentum 0.99
are after 100 steps still `0.99**100` = 37 % the old data's. `all, caught up` shows how
much of the harm this is: the same training, and afterwards the moving statistics are
taken anew. `head, running` is what `trainable=False` meant before TensorFlow 2, and
what it means to freeze gamma and beta, but not the statistics.

`all, frozen` is what Keras 2's guides do by calling `bn(x, training=False)`.
AdaBN (Li et al. 2016, https://arxiv.org/abs/1603.04779) needs no labels.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import pathlib
import tempfile

import numpy as np
from common import (
    BACKENDS,
    COLOURS,
    compare,
    format_table,
    mean_and_spread,
    new_figure,
    new_parser,
    parse,
    percent,
    save,
    write_report,
)
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

DEFAULTS = {"epochs": 10, "seeds": 5}
QUICK = {"seeds": 1}
# 896 = 28 batches of 32. After 20 epochs `0.99**560` = 0.4 % of the moving statistics
# are initial values, so that Keras's default momentum does for the old data.
NUM_OLD, PRETRAIN_EPOCHS, PRETRAIN_BATCH_SIZE = 896, 20, 32
NUM_TEST, NUM_LABELLED, BATCH_SIZE = 400, 40, 4
ADAPT_BATCH_SIZE = 100


def build_model(momentum=0.99):
    """Builds the network; its outputs are logits.

    Args:
        momentum: that of the normalization layers; `None` for averages in which all
            batches have the same weight.
    """
    import keras

    import keras_bnx

    return keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, use_bias=False),
            keras_bnx.BatchNormalization(momentum=momentum),
            keras.layers.ReLU(),
            keras.layers.Dense(64, use_bias=False),
            keras_bnx.BatchNormalization(momentum=momentum),
            keras.layers.ReLU(),
            keras.layers.Dense(10),
        ]
    )


def fit(model, images, labels, *, batch_size, epochs):
    """Compiles, which settles what is trained, and trains."""
    import keras

    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(images, labels, batch_size=batch_size, epochs=epochs, verbose=0)


def fine_tune(model, labelled, epochs, *, kernels=False):
    """Trains what isn't frozen on the labelled images.

    Args:
        model: the network.
        labelled: tuple of images and labels.
        epochs: integer.
        kernels: whether to train the kernels below the last layer, too.
    """
    for layer in model.layers[:-1]:
        if not hasattr(layer, "gamma"):
            layer.trainable = kernels
    fit(model, *labelled, batch_size=BATCH_SIZE, epochs=epochs)


def adapt(model, images):
    """Takes the moving statistics of unlabelled images; gamma and beta stay.

    With `momentum=None` one pass is enough: the averages start anew, and weigh all
    batches alike. These are large, as in AdaBN the statistics are the domain's. Passes
    train nothing; where a `fit` is to adapt statistics alone, it takes
    `keras_bnx.freeze(model, statistics=False, affine=True)`.
    """
    for layer in model.layers:
        if hasattr(layer, "reset_moving_statistics"):
            layer.reset_moving_statistics()
    for start in range(0, len(images), ADAPT_BATCH_SIZE):
        model(images[start : start + ADAPT_BATCH_SIZE], training=True)


def none(model, labelled, unlabelled, epochs):
    pass


def all_running(model, labelled, unlabelled, epochs):
    fine_tune(model, labelled, epochs, kernels=True)


def all_caught_up(model, labelled, unlabelled, epochs):
    fine_tune(model, labelled, epochs, kernels=True)
    adapt(model, unlabelled)


def head_running(model, labelled, unlabelled, epochs):
    import keras_bnx

    keras_bnx.freeze(model, statistics=False, affine=True)
    fine_tune(model, labelled, epochs)


def head_frozen(model, labelled, unlabelled, epochs):
    import keras_bnx

    keras_bnx.freeze(model)
    fine_tune(model, labelled, epochs)


def affine_frozen(model, labelled, unlabelled, epochs):
    import keras_bnx

    keras_bnx.freeze(model, statistics=True, affine=False)
    fine_tune(model, labelled, epochs)


def all_frozen(model, labelled, unlabelled, epochs):
    import keras_bnx

    keras_bnx.freeze(model, statistics=True, affine=False)
    fine_tune(model, labelled, epochs, kernels=True)


def adabn(model, labelled, unlabelled, epochs):
    adapt(model, unlabelled)


def adabn_affine(model, labelled, unlabelled, epochs):
    adapt(model, unlabelled)
    affine_frozen(model, labelled, unlabelled, epochs)


RECIPES = {
    "none": none,
    "all, running": all_running,
    "all, caught up": all_caught_up,
    "head, running": head_running,
    "head, frozen": head_frozen,
    "affine + head, frozen": affine_frozen,
    "all, frozen": all_frozen,
    "AdaBN": adabn,
    "AdaBN, then affine + head": adabn_affine,
}
# Those that call `adapt`.
ADAPTED = {"all, caught up", "AdaBN", "AdaBN, then affine + head"}


def shift(images):
    """Tilts images of shape `(images, 8, 8)`, pixels from 0 to 1, and fades them."""
    tilted = ndimage.rotate(images, 15, axes=(2, 1), reshape=False, order=1)
    return 0.5 + 0.3 * tilted


def load_data(seed):
    """Loads the digits, and splits them by a seed.

    Returns:
        Dictionary of `old` and `labelled`, tuples of images and labels to train on;
        `unlabelled`, new images; `old_test` and `new_test`, tuples of images and
        labels, the same digits before and after the shift. Images are float32 of
        shape `(images, 8, 8)`.
    """
    digits = load_digits()
    images = (digits.images / 16).astype("float32")

    def split(x, y, size):
        return train_test_split(x, y, train_size=size, stratify=y, random_state=seed)

    x_old, x, y_old, y = split(images, digits.target, NUM_OLD)
    x_test, x, y_test, y = split(x, y, NUM_TEST)
    x = shift(x)
    x_labelled, _, y_labelled, _ = split(x, y, NUM_LABELLED)
    return {
        "old": (x_old, y_old),
        "labelled": (x_labelled, y_labelled),
        "unlabelled": x,
        "old_test": (x_test, y_test),
        "new_test": (shift(x_test), y_test),
    }


def measure(model, data):
    """Measures what a recipe has made of the network.

    Returns:
        Dictionary of shares: the accuracies `old` and `new`, and `moved`, how far the
        first normalization's moving mean has come from the old data's mean (0) to the
        new data's (1). The means are those of the layer's inputs in this network; of
        the vector between moving and old mean counts what points to the new one.
    """
    import keras

    def accuracy(images, labels):
        logits = model.predict(images, batch_size=len(images), verbose=0)
        return float((logits.argmax(axis=-1) == labels).mean())

    kernel, moving = map(
        keras.ops.convert_to_numpy,
        (model.layers[1].kernel, model.layers[2].moving_mean),
    )

    def mean(images):
        return (images.reshape(len(images), -1) @ kernel).mean(axis=0)

    old, new = mean(data["old"][0]), mean(data["unlabelled"])
    way = new - old
    return {
        "old": accuracy(*data["old_test"]),
        "new": accuracy(*data["new_test"]),
        "moved": float((moving - old) @ way / (way @ way)),
    }


def run(seed, *, epochs):
    """Trains on the old data, then each recipe from there.

    Args:
        seed: integer, of the split, the initial weights and the order of the images.
        epochs: integer, how often to go through the labelled images.

    Returns:
        Dictionary, of each recipe what `measure` returns.
    """
    import keras

    data, results = load_data(seed), {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "old.weights.h5"
        keras.utils.set_random_seed(seed)
        model = build_model()
        fit(
            model,
            *data["old"],
            batch_size=PRETRAIN_BATCH_SIZE,
            epochs=PRETRAIN_EPOCHS,
        )
        model.save_weights(path)
        for name, recipe in RECIPES.items():
            keras.utils.set_random_seed(seed)
            model = build_model(None if name in ADAPTED else 0.99)
            model.load_weights(path)
            recipe(model, data["labelled"], data["unlabelled"], epochs)
            results[name] = measure(model, data)
    return results


def results_table(results):
    """Returns the results as a table, a row for each recipe.

    Args:
        results: dictionary, of each recipe the seeds' results.
    """
    rows = [
        [
            name,
            *(percent([run[key] for run in runs]) for key in ("old", "new", "moved")),
        ]
        for name, runs in results.items()
    ]
    return format_table(
        ["recipe", "old digits", "new digits", "moving mean's way"], rows
    )


def read_numbers(results, *, epochs):
    """Says in words what the table shows.

    Args:
        results: dictionary, of each recipe the seeds' results.
        epochs: integer, of fine-tuning.

    Returns:
        List of strings.
    """

    def seeds(name, key="new"):
        return [run[key] for run in results[name]]

    def mean(name, key="new"):
        return mean_and_spread(seeds(name, key))[0]

    def against(name, other):
        words = compare(seeds(other), seeds(name), num_images=NUM_TEST)
        return f"{name!r} against {other!r}: {words}."

    steps = epochs * NUM_LABELLED // BATCH_SIZE
    best = max(RECIPES, key=mean)
    return [
        f"Before: {mean('none', 'old'):.1%} on old digits, {mean('none'):.1%} on new. "
        f"Best on new is {best!r}: {mean(best):.1%}, and {mean(best, 'old'):.1%} on "
        "old.",
        f"After {steps} steps the running mean has come "
        f"{mean('all, running', 'moved'):.0%} of the way; momentum 0.99 makes it "
        f"1 - 0.99**{steps} = {1 - 0.99**steps:.0%}.",
        *(
            f"On new digits, {against(*pair)}"
            for pair in (
                ("all, caught up", "all, running"),
                ("all, frozen", "all, running"),
                ("head, running", "head, frozen"),
                ("affine + head, frozen", "head, frozen"),
                ("AdaBN", "all, frozen"),
                ("AdaBN, then affine + head", "AdaBN"),
            )
        ),
    ]


def plot(results, path, *, title):
    """Draws accuracies, and the moving mean's way, into a PNG file."""
    figure, (accuracy, way) = new_figure(
        title, size=(11, 7), sharey=True, width_ratios=(3, 2)
    )
    places = np.arange(len(results))

    def bars(axes, key, offset, height, color, label=None):
        points = [
            mean_and_spread([run[key] for run in runs]) for runs in results.values()
        ]
        axes.barh(
            places + offset,
            [100 * mean for mean, _ in points],
            height,
            xerr=[100 * spread for _, spread in points],
            capsize=3,
            color=color,
            label=label,
        )

    bars(accuracy, "old", -0.2, 0.4, COLOURS["sky"], "old digits")
    bars(accuracy, "new", 0.2, 0.4, COLOURS["vermilion"], "new digits")
    bars(
        way,
        "moved",
        0.0,
        0.6,
        COLOURS["green"],
        "moving mean: 0 = old, 100 = new data's",
    )
    accuracy.set_yticks(places, list(results), fontsize=14)
    accuracy.invert_yaxis()
    accuracy.set_xlabel("test accuracy (%)", fontsize=15)
    way.set_xlabel("moving mean's way (%)", fontsize=15)
    accuracy.set_xlim(0, 100)
    way.set_xlim(-5, 110)
    for axes in (accuracy, way):
        axes.grid(visible=False, axis="y")
    save(figure, path, ncols=3)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each recipe the list of what `measure` returns.
    """
    args = parse(new_parser(__doc__), argv, defaults=DEFAULTS, quick=QUICK)
    title = f"Fine-tuning to shifted digits, Keras on {BACKENDS[args.backend]}"
    print(
        f"{title}: {NUM_LABELLED} labelled images, {args.epochs} epochs, "
        f"{args.seeds} seeds, {NUM_TEST} test images"
    )
    results = {name: [] for name in RECIPES}
    for seed in range(args.seeds):
        for name, result in run(seed, epochs=args.epochs).items():
            results[name].append(result)
        print(f"seed {seed} is done", flush=True)

    figure = "fine_tuning.png"
    plot(results, args.output / figure, title=title)
    write_report(
        args,
        "fine_tuning",
        title,
        [
            f"In %, mean ± standard deviation over seeds ({args.seeds}):",
            results_table(results),
            "\n".join(
                f"- {line}" for line in read_numbers(results, epochs=args.epochs)
            ),
        ],
        {figure: "Accuracy on old and new digits, and the moving mean's way"},
    )
    return results


if __name__ == "__main__":
    main()
