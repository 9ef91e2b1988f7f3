"""What the matrix keeps of a run of pytest's: a column, as JSON."""

import datetime
import importlib
import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TITLES = {
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "torch": "PyTorch",
    "numpy": "NumPy",
}


def entry(report):
    """What the page needs of one report of pytest's."""
    found = dict(report.user_properties)
    worst = found.pop("worst", None)
    # Of Keras's layer a failure is expected, which pytest reports as skipped.
    failed = report.failed or (report.skipped and hasattr(report, "wasxfail"))
    outcome = "failed" if failed else report.outcome
    return {
        **found,
        "outcome": outcome,
        # Two digits: the rest differs from machine to machine.
        "worst": worst if worst is None else f"{worst:.2g}",
        "problem": problem(report) if outcome != "passed" else None,
    }


def problem(report):
    """What went wrong in a line, without this machine's paths."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    if report.skipped and not crash:
        # A path, a line and the reason.
        text = report.longrepr[-1].removeprefix("Skipped: ")
    text = re.sub(r"\x1b\[\d*m", "", text)
    # Keras puts a line of its own before what a layer raises.
    text = re.sub(r"Exception encountered when calling .*\s+", "", text)
    text = re.sub(r"^(AssertionError|RuntimeError(?=: \w+Error)): ", "", text.strip())
    first, *others = text.splitlines() or [""]
    # Some say where before they say what.
    line = f"{first} {others[-1].strip()}" if first.endswith(":") and others else first
    line = re.sub(r"(/[\w.-]+){2,}/", "", line)
    return line if len(line) <= 300 else line[:300] + " ..."


def where(backend):
    """What a column ran on."""
    import keras

    import keras_bnx

    version = importlib.import_module(backend).__version__
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="minutes").removesuffix("+00:00"),
        "commit": git("rev-parse", "--short=10", "HEAD"),
        "modified": bool(git("status", "--porcelain", "keras_bnx", "tests")),
        "versions": {
            "keras_bnx": keras_bnx.__version__,
            TITLES[backend]: version,
            "Keras": keras.__version__,
            "NumPy": importlib.import_module("numpy").__version__,
            "Python": platform.python_version(),
        },
        # What whoever prepared the environment has to say about it.
        "note": os.environ.get("MATRIX_NOTE", ""),
    }


def git(*arguments):
    """What git says, or an empty string where there is no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
