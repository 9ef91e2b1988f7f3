"""Files of each backend and release load on each backend, predict and train on."""

import inspect
import os
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from exchange import OPTIONS, build, go_on

from keras_bnx import BatchNormalization

STORED = Path(__file__).parent / "data"
# `nox -s exchange` has written others just before.
ARCHIVES = sorted(Path(os.environ.get("EXCHANGED", STORED)).glob("*.zip"))


def options(archive):
    with zipfile.ZipFile(archive) as opened:
        return [n.removesuffix(".npz") for n in opened.namelist() if n.endswith(".npz")]


WRITTEN = [(archive, option) for archive in ARCHIVES for option in options(archive)]
IDS = [f"{archive.stem}, {option}" for archive, option in WRITTEN]
SUFFIXES = [
    "keras",
    # The same weights in another wrapping.
    pytest.param("weights.h5", marks=pytest.mark.full(except_on="torch")),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("archive", "option"), WRITTEN, ids=IDS)
def test_files_load_predict_and_train_on(archive, option, suffix, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        path = opened.extract(f"{option}.{suffix}", tmp_path)
        expected = dict(np.load(opened.extract(f"{option}.npz", tmp_path)))
    if suffix == "keras":
        model = keras.models.load_model(path, compile=False)
    else:
        model = build(option)
        model.load_weights(path)

    found = go_on(model)
    assert found.keys() == expected.keys()
    # What one backend rounds up, another rounds down: half a unit of the output.
    tolerance = 2.0**-7 if option == "mixed" else 1e-5
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=10 * tolerance, atol=tolerance, err_msg=name
        )
    # The step is seen.
    assert np.abs(expected["after"] - expected["before"]).max() > 10 * tolerance


def test_each_backend_has_written_each_release():
    names = {path.stem for path in STORED.glob("*.zip")}
    releases = {name.partition("-")[0] for name in names}
    backends = ("tensorflow", "jax", "torch")
    assert releases and names == {f"{r}-{b}" for r in releases for b in backends}


def test_the_options_are_all_arguments():
    """Each with another value than its default in one of them."""
    parameters = inspect.signature(BatchNormalization.__init__).parameters
    wanted = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ("self", "kwargs")
    }
    given = {name for arguments in OPTIONS.values() for name in arguments}
    assert given - {"dtype"} == set(wanted)
    for arguments in OPTIONS.values():
        for name, value in arguments.items():
            assert value != wanted.get(name, "float32"), name
