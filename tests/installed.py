"""An installed wheel, in an environment that holds it and one framework only.

    python -I installed.py

`nox -s package` runs it where no checkout can be imported. It tells what a user would
notice first: a module or dependency that is missing, and a layer that doesn't train.
"""

import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_bnx

BACKENDS = {"tensorflow", "jax", "torch"}


def import_all():
    """Imports every module but those of other backends and the command."""
    there = Path(keras_bnx.__file__).resolve()
    assert there.is_relative_to(Path(sys.prefix).resolve()), there
    assert importlib.metadata.version("keras-bnx") == keras_bnx.__version__
    count = 0
    for module in pkgutil.walk_packages(keras_bnx.__path__, "keras_bnx."):
        last = module.name.rpartition(".")[2]
        if last != "__main__" and last not in BACKENDS - {keras.config.backend()}:
            importlib.import_module(module.name)
            count += 1
    return count


def train():
    """One step of `fit`, after which the moving mean is where the formula has it."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (32, 4)).astype("float32")
    layers = [keras_bnx.BatchNormalization(momentum=0.9), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse")
    before = keras.ops.convert_to_numpy(layers[0].beta)
    model.fit(x, x[:, :1], batch_size=32, verbose=0)

    moving_mean = keras.ops.convert_to_numpy(layers[0].moving_mean)
    np.testing.assert_allclose(moving_mean, 0.1 * x.mean(axis=0), rtol=1e-5)
    assert (keras.ops.convert_to_numpy(layers[0].beta) != before).all()
    assert keras_bnx.explain_implementation(layers[0], x).implementation == "native"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
        command = [sys.executable, "-I", "-m", "keras_bnx", "report", str(path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert layers[0].name in out, out
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


if __name__ == "__main__":
    count = import_all()
    train()
    print(
        f"keras-bnx {keras_bnx.__version__} on {keras.config.backend()}: "
        f"{count} modules imported, one step trained."
    )
