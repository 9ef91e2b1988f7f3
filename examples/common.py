"""What the examples share: arguments, images, words for differences, and figures."""

import argparse
import importlib.metadata
import math
import os
import pathlib
import platform
import sys
import time

# keras is imported inside the functions that use it: the backend is fixed by the
# first import, and `--backend` has to come before.
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}

# Okabe and Ito (2008): told apart by the colour-blind as well.
COLOURS = {
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}

# The arguments that are counts.
COUNTS = {
    "epochs": "epochs of each run",
    "seeds": "runs of each kind",
    "images": "training images",
}

IMAGES = {
    "digits": "scikit-learn's digits (8x8)",
    "mnist": "MNIST (28x28)",
    "fashion_mnist": "Fashion-MNIST (28x28)",
}


def new_parser(doc):
    """Returns a parser for an example's own arguments, described as in its docstring.

    `parse` adds the shared ones.
    """
    return argparse.ArgumentParser(description=doc.partition("\n")[0])


def parse(parser, argv, *, defaults, quick=None, check=None):
    """Parses the command line, creates the output folder, and fixes the backend.

    Args:
        parser: what `new_parser` returns, with the example's own arguments.
        argv: list of strings, or `None` for the command line's.
        defaults: dictionary, for each argument that is a count (`epochs`, `seeds`,
            `images`) the value where it isn't given.
        quick: optional dictionary, the values instead under `--quick`.
        check: optional function of the arguments, which checks and completes the
            example's own before anything is done; its `ValueError` is the command
            line's.

    Returns:
        `argparse.Namespace`.
    """
    for name, value in defaults.items():
        parser.add_argument(
            f"--{name}", type=int, help=f"{COUNTS[name]}; default: {value}"
        )
    if quick is not None:
        parser.add_argument(
            "--quick",
            action="store_true",
            help="a run of less than a minute, to try it out: "
            + ", ".join(f"{name} {value}" for name, value in quick.items()),
        )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=os.environ.get("KERAS_BACKEND") or "jax",
        help="Keras's backend; default: KERAS_BACKEND, or jax where it isn't set",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("results"),
        help="folder of tables and figures, created if need be; default: %(default)s",
    )
    args = parser.parse_args(argv)
    args.command = " ".join(sys.argv[1:] if argv is None else argv)
    args.started = time.monotonic()
    for name, value in defaults.items():
        if getattr(args, name) is None:
            value = quick.get(name, value) if quick and args.quick else value
            setattr(args, name, value)
        elif getattr(args, name) < 1:
            parser.error(
                f"`--{name}` has to be at least 1. "
                f"Received: --{name} {getattr(args, name)}. "
                "Leave it out for the default."
            )
    if check is not None:
        try:
            check(args)
        except ValueError as error:
            parser.error(str(error))
    # argparse checks choices only where they are given, not the environment's.
    if args.backend not in BACKENDS:
        parser.error(
            f"The backend has to be one of {', '.join(BACKENDS)}. "
            f"Received: KERAS_BACKEND={args.backend}. Change it, or give `--backend`."
        )
    _create_output(parser, args)
    _fix_backend(parser, args)
    return args


def _create_output(parser, args):
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(
            f"`--output` can't be created as a folder: {error.strerror}. "
            f"Received: --output {args.output}. Name a folder, new or existing."
        )


def _fix_backend(parser, args):
    os.environ["KERAS_BACKEND"] = args.backend
    import keras

    if keras.config.backend() != args.backend:
        parser.error(
            f"Keras was imported before, with backend {keras.config.backend()}. "
            f"Received: --backend {args.backend}. Start a new process for it."
        )


def load_images(data):
    """Loads images and their labels.

    Args:
        data: `"digits"` (1797 images of 8x8 pixels, which scikit-learn brings along; a
            fifth of them for the test), `"mnist"` or `"fashion_mnist"` (70000 of
            28x28, downloaded by Keras, split as published).

    Returns:
        The tuples `(x_train, y_train), (x_test, y_test)`: float32 images of shape
        `(images, height, width)`, pixels from 0 to 255, and integer labels.
    """
    if data == "digits":
        digits = load_digits()
        # These pixels count 16 dots each; the others are bytes.
        x_train, x_test, y_train, y_test = train_test_split(
            digits.images * (255 / 16),
            digits.target,
            test_size=0.2,
            stratify=digits.target,
            random_state=0,
        )
    else:
        import keras

        module = getattr(keras.datasets, data)
        (x_train, y_train), (x_test, y_test) = module.load_data()
    x_train, x_test = x_train.astype("float32"), x_test.astype("float32")
    return (x_train, y_train), (x_test, y_test)


def mean_and_spread(values):
    """Returns the mean of seeds' values and their standard deviation.

    The divisor is n - 1, seeds being a sample; one seed has the spread NaN.
    """
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance)


def compare(old, new, *, num_images):
    """Says in words whether accuracies differ by more than chance.

    An accuracy p on n images has the standard error `sqrt(p * (1 - p) / n)`; more
    seeds on the same images don't lower it. The mean of k seeds has `spread / sqrt(k)`
    besides. Less than two of them all, of the difference, would come by chance in 95
    of 100 cases: this is called no clear difference.

    Args:
        old, new: lists of floats from 0 to 1, the accuracies of each seed.
        num_images: integer, how many images each was measured on.

    Returns:
        A string: `"+1.23 points, clearly more (chance makes up to 1.00)"`.
    """
    variance, means = 0.0, []
    for values in (old, new):
        mean, spread = mean_and_spread(values)
        means.append(mean)
        variance += mean * (1 - mean) / num_images
        variance += 0.0 if len(values) == 1 else spread**2 / len(values)
    difference, margin = means[1] - means[0], 2 * math.sqrt(variance)
    if abs(difference) <= margin:
        verdict = "no clear difference"
    else:
        verdict = "clearly more" if difference > 0 else "clearly less"
    return (
        f"{100 * difference:+.2f} points, {verdict} "
        f"(chance makes up to {100 * margin:.2f})"
    )


def percent(values, *, digits=1):
    """Returns `"97.3 ± 0.4"`: mean and spread of shares, in percent."""
    mean, spread = mean_and_spread(values)
    text = f"{100 * mean:.{digits}f}"
    return text if math.isnan(spread) else f"{text} ± {100 * spread:.{digits}f}"


def format_table(header, rows):
    """Returns a table in Markdown, aligned for the screen too.

    Args:
        header: list of strings.
        rows: list of lists of strings; a column is aligned to the right where all of
            its cells start with a digit or a sign.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [all(c[:1] in "+-0123456789" for c in column[1:]) for column in columns]

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    def pad(cells):
        sides = zip(cells, widths, right, strict=True)
        return [f"{cell:{'>' if r else '<'}{width}}" for cell, width, r in sides]

    rule = [
        "-" * (width - 1) + ":" if r else "-" * width
        for width, r in zip(widths, right, strict=True)
    ]
    return "\n".join(line(cells) for cells in (pad(header), rule, *map(pad, rows)))


def write_report(args, name, title, parts, figures, *, suffix=""):
    """Prints the results and writes them to `NAME[SUFFIX].md` in the output folder.

    Args:
        args: what `parse` returned.
        name: string, the example's file name without its ending.
        title: string.
        parts: list of strings in Markdown, paragraphs and tables.
        figures: dictionary, of each figure's file name its text alternative.
        suffix: string, for examples whose runs are to stand beside each other.
    """
    text = "\n\n".join(parts)
    print(f"\n{text}")
    minutes = (time.monotonic() - args.started) / 60
    command = f"python examples/{name}.py {args.command}".strip()
    distribution = importlib.metadata.packages_distributions()[args.backend][0]
    made = (
        f"Made by `{command}` in {minutes:.1f} minutes: "
        f"Keras {importlib.metadata.version('keras')}, "
        f"{BACKENDS[args.backend]} {importlib.metadata.version(distribution)}, "
        f"Python {platform.python_version()}, {_num_cores()} CPU cores."
    )
    pictures = [f"![{text}]({file})" for file, text in figures.items()]
    path = args.output / f"{name}{suffix}.md"
    path.write_text(
        "\n\n".join([f"# {title}", *parts, *pictures, made]) + "\n", encoding="utf-8"
    )
    print(f"\nReport: {path}")


def _num_cores():
    # Those that this process may use, where the system can say.
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count()


def new_figure(title, *, size, rows=1, columns=2, **kwargs):
    """Returns a figure and the list of its axes, in type legible at half size."""
    # A Figure made without pyplot needs no display: it saves PNG files by Agg.
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=17)
    grid = list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for axes in grid:
        axes.tick_params(labelsize=13)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def save(figure, path, **legend):
    """Saves a PNG file, with the legend of all labels below; says where.

    A line that is drawn in several axes is labelled in one of them.
    """
    figure.legend(loc="outside lower center", fontsize=14, frameon=False, **legend)
    figure.savefig(path, dpi=150)
    print(f"Figure: {path}")
