"""Files that one backend writes and the others read: each option of the layer.

    KERAS_BACKEND=torch python tests/exchange.py FOLDER

writes `FOLDER/<version>-torch.zip`: of each option a model as `.keras` and as
`.weights.h5`, what it predicts, and what it is after one training step more.
`tests/test_exchange.py` reads such files, those of releases from `tests/data/`.
"""

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np

import keras_bnx
from keras_bnx import BatchNormalization, renorm_schedule

X = np.random.default_rng(0).normal(2.0, 3.0, (8, 4, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")

# Together they give each argument another value than its default.
OPTIONS = {
    "plain": {},
    "keras": {
        "axis": 1,
        "momentum": 0.7,
        "epsilon": 1e-5,
        "beta_initializer": "ones",
        "gamma_initializer": keras.initializers.Constant(0.5),
        "moving_mean_initializer": keras.initializers.Constant(2.0),
        "moving_variance_initializer": keras.initializers.Constant(9.0),
        "beta_regularizer": "l2",
        "gamma_regularizer": keras.regularizers.L1(0.01),
        "beta_constraint": "max_norm",
        "gamma_constraint": "non_neg",
    },
    "no affine": {"center": False, "scale": False, "momentum": None},
    "renorm": {
        "renorm": True,
        "renorm_clipping": {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0},
        "renorm_momentum": 0.8,
    },
    "all": {
        "activation": "silu",
        "renorm": True,
        "renorm_clipping": renorm_schedule(start=2, rmax_end=9, dmax_end=5),
        "virtual_batch_size": 3,
        "unbiased_moving_variance": True,
        "debias_moving_statistics": True,
        "synchronized": 2,
        "axis_name": "replicas",
    },
    "axes": {"axis": [1, 2], "unbiased_moving_variance": True},
    "frozen statistics": {"debias_moving_statistics": True},
    "frozen affine": {"momentum": None},
    "mixed": {"dtype": "mixed_bfloat16"},
}


def build(option):
    """An untrained model, the same on each backend but for its random weights."""
    layer = BatchNormalization(name="bn", **OPTIONS[option])
    if option.startswith("frozen"):
        kind = option.partition(" ")[2]
        layer.freeze(kind == "statistics", kind == "affine")
    model = keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2, dtype="float32"),
        ]
    )
    return model


def compile_(model):
    """Compiles anew, also a model that was loaded.

    A file that PyTorch has written names an optimizer of Keras's that other backends
    load and can't run. This one has no state to go on from.
    """
    model.compile(keras.optimizers.SGD(0.05), keras.losses.MeanSquaredError())


def go_on(model):
    """One training step; what the model predicts before and after, its weights."""
    before = predict(model)
    compile_(model)
    model.train_on_batch(X[::-1] + 1, Y)
    found = {"before": before, "after": predict(model)}
    # By number: a layer's name counts those that came before it.
    return found | {f"weight {i}": w for i, w in enumerate(model.get_weights())}


def predict(model):
    return keras.ops.convert_to_numpy(model(X, training=False)).astype("float32")


def write(path):
    """Writes files of each option to a zip file."""
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for option in OPTIONS:
            keras.utils.set_random_seed(3)
            model = build(option)
            compile_(model)
            for _ in range(3):
                model.train_on_batch(X, Y)
            for suffix in ("keras", "weights.h5"):
                file = Path(folder) / f"{option}.{suffix}"
                save = model.save if suffix == "keras" else model.save_weights
                save(file)
                archive.write(file, file.name)
            found = io.BytesIO()
            np.savez(found, **go_on(model))
            archive.writestr(f"{option}.npz", found.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{keras_bnx.__version__}-{keras.config.backend()}.zip"
    write(folder / name)
    print(folder / name)
