"""What the examples share: arguments, words for differences, and figures."""

import math
import os
import pathlib

# keras is imported inside the functions that use it: the backend is fixed by the
# first import, and `--backend` has to come before.
from matplotlib.figure import Figure

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


def parse(parser, argv, *, defaults, quick=None):
    """Parses the command line; `prepare` comes after the example's own checks.

    Args:
        parser: `argparse.ArgumentParser` with the example's own arguments, which
            are `None` where they aren't given.
        argv: list of strings, or `None` for the command line's.
        defaults: dictionary, for each argument that is a count the value where it
            isn't given; `None` leaves that to the example.
        quick: optional dictionary, the values instead under `--quick`.

    Returns:
        `argparse.Namespace`.
    """
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
        help="folder of the figure, created if need be; default: %(default)s",
    )
    args = parser.parse_args(argv)
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
    return args


def prepare(parser, args):
    """Creates the output folder, and fixes the backend."""
    # argparse checks choices only where they are given, not the environment's.
    if args.backend not in BACKENDS:
        parser.error(
            f"The backend has to be one of {', '.join(BACKENDS)}. "
            f"Received: KERAS_BACKEND={args.backend}. Change it, or give `--backend`."
        )
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(
            f"`--output` can't be created as a folder: {error.strerror}. "
            f"Received: --output {args.output}. Name a folder, new or existing."
        )

    os.environ["KERAS_BACKEND"] = args.backend
    import keras

    if keras.config.backend() != args.backend:
        parser.error(
            f"Keras was imported before, with backend {keras.config.backend()}. "
            f"Received: --backend {args.backend}. Start a new process for it."
        )


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


def percent(values):
    """Returns `"97.3 ± 0.4"`: mean and spread of shares, in percent."""
    mean, spread = mean_and_spread(values)
    text = f"{100 * mean:.1f}"
    return text if math.isnan(spread) else f"{text} ± {100 * spread:.1f}"


def new_figure(title, *, size, **kwargs):
    """Returns a figure and its two axes, in type legible at half size."""
    # A Figure made without pyplot needs no display: it saves PNG files by Agg.
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=17)
    pair = figure.subplots(1, 2, **kwargs)
    for axes in pair:
        axes.tick_params(labelsize=13)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, pair


def save(figure, path, **legend):
    """Saves a PNG file, with the legend below; says where."""
    figure.legend(loc="outside lower center", fontsize=14, frameon=False, **legend)
    figure.savefig(path, dpi=150)
    print(f"Figure: {path}")
