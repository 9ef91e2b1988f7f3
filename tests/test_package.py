"""The architecture: who imports whom, and what is public."""

import ast
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_bnx
from keras_bnx import backends

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


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    found = imports(path)
    here = path.relative_to(ROOT)
    allowed = {here.stem} & FRAMEWORKS if here.parts[0] == "backends" else set()
    assert {name.split(".")[0] for name in found} & FRAMEWORKS <= allowed
    assert not [name for name in found if name.startswith("keras.src")]

    ours = {name for name in found if name.startswith("keras_bnx.")}
    if here.name == "reference.py":
        assert {name.split(".")[0] for name in found} == {"dataclasses", "numpy"}
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
