"""The test matrix of keras_bnx, and its demo.

    python -m nox                  lint and the three CPU columns
    python -m nox -t full          everything that needs no GPU, long and rare too
    python -m nox -s demo          a first run on real data
    python -m nox -t gpu           the three GPU columns
    python -m nox -s "tests(jax-cpu)" -- -k mask      one column, some tests
    python -m nox -s matrix        every behaviour on every column, NumPy's too
    python -m nox -s exchange      files of each backend, read by the others
    python -m nox -s examples      the examples' tests alone, all on all backends
    python -m nox -s minimums      the lowest Keras that is supported
    python -m nox -s coverage      what no CPU column runs of the package
    python -m nox -s docs          the site, built strictly
    python -m nox -s package       what is published: built, checked, installed, trained
    python -m nox -s latest        the newest versions that this Python takes
    python -m nox -s pythons       other Pythons, where they are
    python -m nox -s "fuzz(torch)" -- --seconds 600   random combinations, longer
    python -m nox -s soak          thousands of steps, kill -9, threads
    python -m nox -s mutants       the package, broken in many small ways
    python -m nox -s bench         the benchmarks, on a GPU where there is one
    python -m nox -l               this list

Each session has a virtual environment with one framework only, at the versions
that pyproject.toml pins. `--no-venv` runs in the current interpreter instead and
takes the packages it finds. Nothing is decided here: pytest alone makes a column
pass, fail or refuse to start.
"""

import argparse
import functools
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
# uv resolves torch from other places than pip does, to builds with CUDA.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
# A column that was asked for and isn't there is an error.
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")
BACKENDS = ("tensorflow", "jax", "torch")
COLUMNS = [
    nox.param(backend, device, id=f"{backend}-{device}", tags=[device])
    for device in ("cpu", "gpu")
    for backend in BACKENDS
]
# Keras's NumPy backend trains nothing: it has a column in the matrix, and no tests.
NUMPY = nox.param("numpy", "cpu", id="numpy-cpu", tags=["cpu"])


nox.options.sessions = ["lint", *(f"tests({c.id})" for c in COLUMNS if "cpu" in c.id)]


def prepare(session, *groups):
    """Installs dependency groups and the project; returns the interpreter.

    With `--no-venv` it installs nothing, and the interpreter is the running one.
    """
    if not session.virtualenv.is_sandboxed:
        return sys.executable
    # pip would take half a minute to compile modules of which few are imported.
    session.env["PYTHONDONTWRITEBYTECODE"] = None
    packages = nox.project.dependency_groups(PROJECT, *groups)
    session.install("--no-compile", *packages)
    session.install("--no-deps", "-e", ".")
    return "python"


def run_pytest(
    session, backend, device, *arguments, python=None, groups=(), **environment
):
    """Runs a column's tests, with arguments after -- as the last.

    Without `python`, an interpreter, it prepares the column's own.
    """
    if python is None:
        python = prepare(session, f"{backend}-{device}", f"test-{backend}", *groups)
    # Two at a time. On a GPU they would take each other's memory.
    workers = ["--numprocesses=2", "--dist=worksteal"] if device == "cpu" else []
    session.run(
        python,
        "-m",
        "pytest",
        f"--backend={backend}",
        f"--device={device}",
        *workers,
        *arguments,
        *session.posargs,
        env={"KERAS_BACKEND": backend, **environment},
    )


def record(session, name, backend, device="cpu", **kwargs):
    """Runs the matrix's cases as the column `name`; the pages follow at the end."""
    # Also after a column that fails: its failures belong there.
    session.notify("pages")
    run_pytest(
        session,
        backend,
        device,
        "--full",
        "-rfE",  # what Keras's layer does is on the page
        "tests/matrix/test_behaviours.py",
        f"--record=docs/matrix/{name}.json",
        **kwargs,
    )


def in_checkout(backend):
    """The environment of a script, which finds the package also with `--no-venv`."""
    path = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    return {"KERAS_BACKEND": backend, "PYTHONPATH": path, **quiet}


# `.pre-commit-config.yaml` has the same.
LINT = (
    "ruff check .",
    "ruff format --check --diff .",
    "mypy",
    "check_jsonschema --builtin-schema vendor.github-workflows"
    " .github/workflows/full.yml .github/workflows/tests.yml",
    "check_jsonschema --builtin-schema vendor.citation-file-format CITATION.cff",
)


@nox.session(tags=["full"])
def lint(session):
    """Style and unused code, by ruff; types, by mypy; files for others' tools."""
    python = prepare(session, "lint")
    for command in LINT:
        session.run(python, "-m", *command.split())
    session.run(python, "-m", "pre_commit", "validate-config")


@nox.session
@nox.parametrize(["backend", "device"], COLUMNS)
def tests(session, backend, device):
    """One column of the matrix; arguments after -- go to pytest."""
    run_pytest(session, backend, device)


@nox.session(tags=["full"])
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def full(session, backend):
    """A CPU column with all that the others leave out; after --: pytest's."""
    run_pytest(session, backend, "cpu", "--full")


@nox.session(tags=["full"])
@nox.parametrize(["backend", "device"], [*COLUMNS, NUMPY])
def matrix(session, backend, device):
    """The behaviours on each column of this machine's, NumPy's too; docs/matrix.*."""
    session.notify("pages")
    if device == "gpu" and not shutil.which("nvidia-smi"):
        session.skip("There is no GPU here: the page says that this column wasn't run.")
    record(session, f"{backend}-{device}", backend, device)
    if (backend, device) == ("jax", "cpu"):
        record(session, "nnx-jax", backend, KERAS_NNX_ENABLED="true")


@nox.session
def pages(session):
    """Writes docs/matrix.* of the columns recorded, and looks at it in Chromium."""
    python = prepare(session, "pages")
    session.run(python, "tests/matrix/page.py")
    session.run(python, "-m", "pytest", "--noconftest", "tests/matrix/browser.py")


@nox.session(tags=["full"])
def exchange(session):
    """Each backend writes files with every option, and every one reads them all."""
    # All frameworks in one environment, but one of them in a process.
    python = prepare(session, *(f"{backend}-cpu" for backend in BACKENDS), "test")
    folder = session.create_tmp()
    for backend in BACKENDS:
        session.run(python, "tests/exchange.py", folder, env=in_checkout(backend))
    for backend in BACKENDS:
        session.run(
            python,
            "-m",
            "pytest",
            f"--backend={backend}",
            "--full",
            "tests/test_exchange.py",
            *session.posargs,
            env={"KERAS_BACKEND": backend, "EXCHANGED": folder},
        )


# The least that pyproject.toml's `dependencies` allow, with the smallest backend.
MINIMUM_KERAS = "keras==3.14.0"
NEWEST_PYTHON = "3.14"


@nox.session(tags=["full"])
def minimums(session):
    """The lowest Keras that is supported, on JAX, also on the matrix's cases."""
    python = prepare(session, "jax-cpu", "test-jax")
    if session.virtualenv.is_sandboxed:
        session.install(MINIMUM_KERAS)
    session.run(
        python,
        "-m",
        "pytest",
        "--backend=jax",
        "--numprocesses=2",
        "tests/test_batch_normalization.py",
        "tests/test_files.py",
        "tests/tools/test_conversion.py",
        "tests/tools/test_recalibration.py",
        "tests/test_training.py",
        "-k",
        "not compiled",
        *session.posargs,
        env={"KERAS_BACKEND": "jax"},
    )
    if session.virtualenv.is_sandboxed:
        record(session, "minimums-jax", "jax", python=python)


def prepare_without_pins(session, backend):
    """Installs a CPU column and its tests, in the newest versions but torch's."""
    if not session.virtualenv.is_sandboxed:
        session.error("Other versions need an environment: omit --no-venv.")
    groups = f"{backend}-cpu", f"test-{backend}"
    packages = nox.project.dependency_groups(PROJECT, *groups)
    packages = [
        p if p.startswith("torch==") else p.partition("==")[0] for p in packages
    ]
    session.install("--upgrade", *packages)
    session.install("--no-deps", "-e", ".")


@nox.session(tags=["full"])
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def latest(session, backend):
    """The behaviours with the newest versions that this Python takes, but torch's."""
    prepare_without_pins(session, backend)
    package = {"tensorflow": "tensorflow-cpu"}.get(backend, backend)
    # What another Python would get: this one's newest may not be the newest.
    found = session.run(
        *("python", "-m", "pip", "index", "versions", package),
        *("--python-version", NEWEST_PYTHON, "--only-binary", ":all:"),
        silent=True,
        success_codes=[0, 1],  # 1 where there is none
    )
    newest = re.search(r"^\S+ \(\S+\)", found, flags=re.M)
    note = f"pip finds no {package} for Python {NEWEST_PYTHON}"
    if newest:
        note = f"on Python {NEWEST_PYTHON} the newest would be {newest.group()}"
    name = f"latest-{backend}"
    record(session, name, backend, python="python", MATRIX_NOTE=note)


@nox.session(python=["3.12", "3.13"])
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def pythons(session, backend):
    """The behaviours on newer Pythons, with the newest versions, but torch's."""
    prepare_without_pins(session, backend)
    record(session, f"python{session.python}-{backend}", backend, python="python")


@nox.session
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def coverage(session, backend):
    """A CPU column, and what of the package it runs; after --: pytest's."""
    # Of each column a file; after the last of them, what all leave out. Names with a
    # dot coverage.py would take for parts of one measurement, and remove.
    env = {"COVERAGE_FILE": f".coverage-{backend}"}
    arguments = ("--cov", "--cov-report=")
    run_pytest(session, backend, "cpu", *arguments, groups=("coverage",), **env)
    if backend == BACKENDS[-1]:
        session.notify("coverage_page", posargs=[])


@nox.session
def coverage_page(session):
    """What no CPU column runs, with reasons, as docs/coverage.md; `coverage` first."""
    python = prepare(session, "coverage")
    files = [f".coverage-{backend}" for backend in BACKENDS]
    missing = [file for file in files if not Path(file).exists()]
    if missing:
        session.error(f"There is no {', '.join(missing)}. Run `nox -s coverage`.")
    run = functools.partial(session.run, python, "-m", "coverage")
    run("combine", "--keep", "--data-file=.coverage", *files)
    # Tests of the mutants run copies of the package, which are gone.
    only = "--include=keras_bnx/*"
    run("json", "--data-file=.coverage", "-o", ".coverage.json", "--quiet", only)
    session.run(python, "tests/gaps.py", ".coverage.json", "docs/coverage.md")


@nox.session(tags=["full"])
def docs(session):
    """Builds the site into site/; a link that is broken fails; after --: serve."""
    python = prepare(session, "docs")
    session.run(python, "-m", "doctest", "docs/hooks.py")
    command = session.posargs or ["build"]
    # MkDocs's theme warns of another generator at each start.
    env = {"NO_MKDOCS_2_WARNING": "1"}
    session.run(python, "-m", "mkdocs", *command, "--strict", env=env)


@nox.session(tags=["full"])
def package(session):
    """Builds what is published, and trains with it; after --: backends, or all."""
    if not session.virtualenv.is_sandboxed:
        session.error("A wheel is installed in environments of its own: no --no-venv.")
    unknown = set(session.posargs) - {*BACKENDS}
    if unknown:
        session.error(f"There are no such backends. Received: {sorted(unknown)}.")
    prepare(session, "package")
    distributions = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(distributions, ignore_errors=True)
    # The source distribution first, and from it the wheel: so it's whole.
    session.run("python", "-m", "build", "--outdir", str(distributions), ".")
    (wheel,), (source,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    session.run("python", "-m", "twine", "check", "--strict", str(wheel), str(source))
    session.run("python", "tests/distributions.py", str(distributions))
    script = Path("tests/installed.py").resolve()
    for backend in session.posargs or BACKENDS:
        # Away from the checkout, with the framework and nothing else; a gigabyte,
        # so it doesn't stay.
        with tempfile.TemporaryDirectory() as folder:
            session.run("python", "-m", "venv", folder)
            python = str(Path(folder) / "bin" / "python")
            pins = nox.project.dependency_groups(PROJECT, f"{backend}-cpu")
            pip = [python, "-I", "-m", "pip", "install", "--quiet", "--no-compile"]
            session.run(*pip, str(wheel), *pins, external=True)
            session.run(python, "-I", "-m", "pip", "check", external=True)
            with session.chdir(folder):
                session.run(
                    *(python, "-I", str(script)),
                    env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
                    external=True,
                )


@nox.session(tags=["full"])
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def fuzz(session, backend):
    """Random combinations against the oracle; after --: --seconds 600, --first 0."""
    python = prepare(session, f"{backend}-cpu", "fuzz")
    session.run(
        python,
        "tests/fuzz.py",
        *(session.posargs or ["--seconds", "120"]),
        env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


@nox.session(tags=["full"])
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def soak(session, backend):
    """10,000 steps, killed processes, threads; after --: --steps, --kills, --seed."""
    python = prepare(session, f"{backend}-cpu")
    session.run(python, "tests/soak.py", *session.posargs, env=in_checkout(backend))


@nox.session
def demo(session):
    """Trains on handwritten digits; after --: --backend, --data mnist, --help."""
    # The script reads its own arguments; these decide what to install, and whether
    # it is the quick form, on the digits that need no download.
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--data")
    chosen = parser.parse_known_args(session.posargs)[0]
    backend = chosen.backend
    if backend not in BACKENDS:
        session.error(
            f"There is no such backend. Received: --backend {backend}. "
            "Choose tensorflow, jax or torch."
        )
    python = prepare(session, f"{backend}-cpu", "demo")
    session.run(
        python,
        "examples/mnist_mlp.py",
        *([] if chosen.data else ["--quick"]),
        *session.posargs,
        env=in_checkout(backend),
    )


@nox.session
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def examples(session, backend):
    """Runs the examples' quick forms and their assertions; after --: pytest's."""
    run_pytest(session, backend, "cpu", "--full", "tests/examples")


@nox.session
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def bench(session, backend):
    """Times the layer and models; after --: --quick, --output DIR."""
    # One command for every machine: a GPU is what people have it for.
    device = "gpu" if shutil.which("nvidia-smi") else "cpu"
    python = prepare(session, f"{backend}-{device}", f"bench-{backend}")
    for script in (
        "layer",
        "growth",
        "model",
        "folding",
        "activation",
        "peak",
        "recalibration",
        "report",
    ):
        session.run(
            python,
            "-m",
            f"benchmarks.{script}",
            *session.posargs,
            env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )


@nox.session(tags=["full"])
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def mutants(session, backend):
    """Breaks the package and lists what no test notices; after --: -k NAME, --jobs."""
    python = prepare(session, f"{backend}-cpu", f"test-{backend}")
    session.run(
        python,
        "tests/mutants.py",
        f"--backend={backend}",
        *session.posargs,
        env={"KERAS_BACKEND": backend},
    )
