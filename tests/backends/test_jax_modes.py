"""What Keras can be besides its three backends, each in a process of its own.

Here because both need JAX: NNX is Flax's, and Keras's NumPy backend imports it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("mode_numpy.py", {"KERAS_BACKEND": "numpy"}),
        ("mode_nnx.py", {"KERAS_BACKEND": "jax", "KERAS_NNX_ENABLED": "true"}),
    ],
)
def test_the_layer_is_right_in_other_modes(name, environment):
    paths = [HERE.parents[1], HERE.parent, HERE.parent / "matrix"]
    paths = [*map(str, paths), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        # The columns' own checks are for the three backends.
        [sys.executable, "-m", "pytest", "--noconftest", "-q", name],
        cwd=HERE,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
