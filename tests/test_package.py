"""The architecture: who imports whom, and what is public."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_bnx
from keras_bnx import backends, interop
from keras_bnx.implementation import Explanation
from keras_bnx.tools.checks import Finding, Findings
from keras_bnx.tools.distance import Distance
from keras_bnx.tools.folding import Folding, FoldingReport
from keras_bnx.tools.recalibration import Recalibration
from keras_bnx.tools.report import LayerStatistics, StatisticsReport

ROOT = Path(keras_bnx.__file__).parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}
# Modules beside the layer's that only hand on to the tools.
TOOLS_OUTSIDE = {"__init__.py", "__main__.py", "interop.py"}
SOURCES = sorted(ROOT.rglob("*.py"))


def imports(path):
    """The dotted names that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_public_names_are_these():
    assert keras_bnx.__all__ == [
        "BatchNormalization",
        "Ramp",
        "Recalibrate",
        "__version__",
        "check",
        "convert",
        "explain_implementation",
        "fold",
        "force_implementation",
        "freeze",
        "keep_moving_statistics",
        "recalibrate",
        "renorm_schedule",
        "revert",
        "statistics_report",
        "unfreeze",
    ]
    registered = keras.saving.get_registered_name(keras_bnx.BatchNormalization)
    assert registered == "keras_bnx>BatchNormalization"


PUBLIC = [getattr(keras_bnx, n) for n in keras_bnx.__all__ if n != "__version__"]
PUBLIC += [getattr(interop, name) for name in interop.__all__]
# What public functions return.
RESULTS = [
    *(Distance, Explanation, Finding, Findings, Folding, FoldingReport),
    *(LayerStatistics, Recalibration, StatisticsReport),
]


def methods(cls):
    """The methods and properties of a class that are its own and for users."""
    found = {n: m for n, m in vars(cls).items() if not n.startswith("_")}
    found = {n: getattr(m, "fget", None) or m for n, m in found.items()}
    found = {n: getattr(m, "__func__", m) for n, m in found.items()}
    # A setter alone leaves the getter Keras's.
    own = (m for m in found.values() if inspect.isfunction(m))
    return {m.__name__: m for m in own if m.__module__.startswith("keras_bnx")}


def callables(things):
    """Functions, and of classes the constructor, if it has its own, and methods."""
    found = []
    for thing in things:
        if not inspect.isclass(thing):
            found.append(pytest.param(thing, id=thing.__name__))
            continue
        own = methods(thing)
        if inspect.isfunction(vars(thing).get("__init__")):
            own["__init__"] = thing.__init__
        found += [pytest.param(m, id=f"{thing.__name__}.{n}") for n, m in own.items()]
    return found


def parameters(function):
    found = inspect.signature(function, follow_wrapped=True).parameters
    return {name: p for name, p in found.items() if name not in ("self", "cls")}


@pytest.mark.parametrize("function", callables([*PUBLIC, *RESULTS]))
def test_what_is_public_has_type_hints(function):
    assert "return" in function.__annotations__
    for name, parameter in parameters(function).items():
        assert parameter.annotation is not parameter.empty, name


def sections(docstring):
    """The text of each section of a docstring, by its title."""
    parts = re.split(r"^(\w[\w ]*):\n(?=\n| )", docstring, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def raised(function):
    """The exceptions that a function raises itself, in its own lines."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    nodes = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {n.func.id for n in nodes if isinstance(n, ast.Call)} & {"ValueError"}


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_docstrings_have_each_argument_what_is_returned_and_an_example(thing):
    is_class = inspect.isclass(thing)
    function = thing.__init__ if is_class else thing
    found = sections(inspect.getdoc(thing))
    assert documented(found) == list(parameters(function))
    assert ("Returns" in found) == (not is_class and not returns_nothing(function))
    assert raised(function) <= set(re.findall(r"^ +(\w+): ", found.get("Raises", "")))
    assert ">>> " in found["Example"]


@pytest.mark.parametrize(
    "method",
    [p for p in callables([*PUBLIC, *RESULTS]) if "." in p.id and "__" not in p.id],
)
def test_docstrings_of_methods_have_each_argument(method):
    """Those that aren't Keras's: its methods do here what its documents say."""
    keras_has_it = hasattr(keras.layers.BatchNormalization, method.__name__)
    if keras_has_it or hasattr(keras.callbacks.Callback, method.__name__):
        return
    found = sections(inspect.getdoc(method))
    assert documented(found) == list(parameters(method))
    assert raised(method) <= set(re.findall(r"^ +(\w+): ", found.get("Raises", "")))


def documented(found):
    """The names in `Args`, where several may share a line."""
    lines = re.findall(r"^    (\S[\w*, ]*): ", found.get("Args", ""), flags=re.M)
    return [name.strip(" *") for line in lines for name in line.split(",")]


def returns_nothing(function):
    return function.__annotations__.get("return") is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    found = imports(path)
    here = path.relative_to(ROOT)
    allowed = {here.stem} & FRAMEWORKS if here.parts[0] == "backends" else set()
    assert {name.split(".")[0] for name in found} & FRAMEWORKS <= allowed
    assert not [name for name in found if name.startswith("keras.src")]

    ours = {name for name in found if name.startswith("keras_bnx.")}
    if here.name == "reference.py":
        assert {name.split(".")[0] for name in found} == {
            "dataclasses",
            "math",
            "numpy",
        }
    elif here.parts[0] == "backends":
        assert all(name.startswith("keras_bnx.backends") for name in ours)
    elif here.parts[0] == "ops":
        assert all(
            name.startswith(("keras_bnx.backends", "keras_bnx.ops")) for name in ours
        )
    elif here.parts[0] != "tools" and here.name not in TOOLS_OUTSIDE:
        # Tools see layers; the layer knows none of them.
        assert not [name for name in ours if name.startswith("keras_bnx.tools")]
    assert "keras_bnx.reference" not in ours


def test_the_backend_provides_the_contract():
    for name in backends.CONTRACT:
        assert hasattr(backends.active(), name), name
    assert backends.active().__name__.endswith(keras.config.backend())


def test_the_citation_names_this_version():
    citation = (ROOT.parent / "CITATION.cff").read_text()
    assert f"\nversion: {keras_bnx.__version__}\n" in citation


def test_importing_loads_one_framework_only():
    code = (
        "import keras_bnx, sys; keras_bnx.BatchNormalization();"
        "print(*{'tensorflow', 'jax', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    # Keras on PyTorch or JAX may look for TensorFlow on its own, not through us.
    plain = subprocess.run(
        [
            sys.executable,
            "-c",
            code.replace(
                "keras_bnx, sys; keras_bnx.BatchNormalization()", "keras, sys"
            ),
        ],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sorted(out) == sorted(plain)
    assert keras.config.backend() in out
