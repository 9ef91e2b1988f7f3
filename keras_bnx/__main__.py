"""The command: tools over a model in a file, for people without a script.

    python -m keras_bnx report MODEL.keras --data FILE.npz --output FIGURE.png
    python -m keras_bnx check MODEL.keras --data FILE.npz
    python -m keras_bnx recalibrate MODEL.keras --data FILE.npz --output NEW.keras
    python -m keras_bnx convert MODEL.keras --output NEW.keras --set synchronized=true
    python -m keras_bnx revert MODEL.keras --output NEW.keras
    python -m keras_bnx fold MODEL.keras --output NEW.keras

It exits with 0; with 1 where `check` has found errors; with 2 where it couldn't do what
was asked. The backend is Keras's: KERAS_BACKEND, or what keras.json says.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys
import zipfile

import keras
import numpy as np

import keras_bnx
from keras_bnx.tools.models import written_whole

FAILED, IMPOSSIBLE = 1, 2


def main(argv=None):
    """Runs the command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("Interrupted. Nothing was written.", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"error: {error}", file=sys.stderr)
        return IMPOSSIBLE


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m keras_bnx",
        description="Looks at, cures and changes the batch normalizations of a model.",
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, reads, writes, example in (
        (_report, True, "FIGURE.png", "--data val.npz --output report.png"),
        (_check, True, None, "--data val.npz --batch-size 8"),
        (_recalibrate, True, "MODEL.keras", "--data train.npz --output cured.keras"),
        (_convert, False, "MODEL.keras", "--output ours.keras --set momentum=0.9"),
        (_revert, False, "MODEL.keras", "--output kerass.keras"),
        (_fold, False, "MODEL.keras", "--output folded.keras"),
    ):
        name = run.__name__.removeprefix("_")
        command = commands.add_parser(
            name,
            help=run.__doc__.partition("\n")[0],
            description=run.__doc__,
            epilog=f"For example: python -m keras_bnx {name} model.keras {example}",
        )
        command.set_defaults(run=run, data=None)
        command.add_argument("model", metavar="MODEL.keras", type=pathlib.Path)
        command.add_argument(
            "--import",
            dest="modules",
            metavar="MODULE",
            action="append",
            default=[],
            help="a module of Python that registers the model's own layers",
        )
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        if reads:
            command.add_argument(
                "--data",
                metavar="FILE.npz",
                type=pathlib.Path,
                required=run is _recalibrate,
                help="inputs: one array, or one named x, or one for each input's name",
            )
            command.add_argument("--batch-size", type=int, metavar="N")
        if run is _convert:
            command.add_argument(
                "--set",
                dest="changes",
                metavar="NAME=VALUE",
                action="append",
                default=[],
                help="an argument of the layers to change; values as in JSON",
            )
        if writes:
            command.add_argument(
                "--output",
                metavar=writes,
                type=pathlib.Path,
                required=run is not _report,
                help="the file to write",
            )
            command.add_argument(
                "--overwrite", action="store_true", help="replace OUTPUT if it exists"
            )
    return parser


def _report(arguments):
    """Prints how far moving statistics are from those of data."""
    _raise_unless_free(arguments, ".png")
    model = _load(arguments)
    report = keras_bnx.statistics_report(model, **_data(arguments, model))
    print(report)
    if arguments.output is not None:
        report.plot(arguments.output)


def _check(arguments):
    """Looks for what is known to go wrong; exits with 1 where there are errors."""
    model = _load(arguments)
    findings = keras_bnx.check(model, **_data(arguments, model))
    print(findings)
    return FAILED if findings.errors else 0


def _recalibrate(arguments):
    """Makes the moving statistics those of data."""
    _raise_unless_free(arguments)
    model = _load(arguments)
    print(keras_bnx.recalibrate(model, **_data(arguments, model)))
    _save(model, arguments.output)


def _convert(arguments):
    """Copies a model with keras_bnx's layers for Keras's."""
    _raise_unless_free(arguments)
    changes = dict(map(_change, arguments.changes))
    _save(keras_bnx.convert(_load(arguments), **changes), arguments.output)


def _revert(arguments):
    """Copies a model with Keras's own layers for keras_bnx's."""
    _raise_unless_free(arguments)
    _save(keras_bnx.revert(_load(arguments)), arguments.output)


def _fold(arguments):
    """Copies a model for inference, its normalizations folded into other layers."""
    _raise_unless_free(arguments)
    model, report = keras_bnx.fold(_load(arguments))
    print(report)
    _save(model, arguments.output)


def _change(text):
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(
            f"`--set` takes NAME=VALUE. Received: --set {text}. Write, say, "
            "--set momentum=0.9."
        )
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _load(arguments):
    path = arguments.model
    if not path.is_file():
        raise ValueError(
            f"There is no such file. Received: {path}. Pass a model that was saved by "
            "`model.save`."
        )
    # Keras's own message would ask for another version of it.
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ValueError(
            f"This isn't a file of Keras's. Received: {path}. Pass a model that was "
            "saved by `model.save`."
        )
    sys.path.insert(0, os.getcwd())
    for name in arguments.modules:
        importlib.import_module(name)
    try:
        return keras.models.load_model(path)
    except Exception as error:
        raise ValueError(
            f"The model can't be loaded. Received: {path}, of which Keras says: "
            f"{error} Pass --import MODULE where it has layers of your own."
        ) from error


def _data(arguments, model):
    """The arguments of a pass over data."""
    path, verbose = arguments.data, 0 if arguments.quiet else "auto"
    if path is None:
        return {"verbose": verbose}
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(
            f"The data can't be read. Received: {path}, of which NumPy says: {error} "
            "Pass a file that was saved by `numpy.savez`."
        ) from error
    inputs = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if len(inputs) > 1 and {*inputs} <= {*arrays}:
        x = {name: arrays[name] for name in inputs}
    elif len(inputs) <= 1 and ("x" in arrays or len(arrays) == 1):
        x = arrays.get("x", next(iter(arrays.values())))
    else:
        wanted = ", ".join(inputs) if len(inputs) > 1 else "x"
        raise ValueError(
            "The data don't have the arrays that the model takes. Received: "
            f"{', '.join(arrays) or 'none'} in {path}. Save arrays of the names "
            f"{wanted}."
        )
    return {"x": x, "batch_size": arguments.batch_size, "verbose": verbose}


def _raise_unless_free(arguments, suffix=".keras"):
    """Before anything takes time: whether the output can be written."""
    path = arguments.output
    if path is None:
        return
    if path.suffix != suffix:
        raise ValueError(
            f"The output is a {suffix} file. Received: --output {path}. Choose a name "
            f"that ends in {suffix}."
        )
    if path.exists() and not arguments.overwrite:
        raise ValueError(
            f"The output exists. Received: --output {path}. Choose another name, or "
            "pass --overwrite."
        )
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"The folder of the output can't be written to. Received: {path.parent}. "
            "Choose another one."
        )


def _save(model, path):
    with written_whole(path) as beside:
        model.save(beside)
    print(f"Wrote {path}.")


if __name__ == "__main__":
    sys.exit(main())
