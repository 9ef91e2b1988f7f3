import io
import zipfile
from pathlib import Path

import devanagari_cnn as example
import keras
import numpy as np
import pytest
from PIL import Image


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_normalization_learns_faster(tmp_path, capsys):
    results = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert list(results) == ["without", "with"]
    (plain,), (normalized,) = results.values()

    # Measured with two seeds on each backend: after the first epoch 0.11 to 0.22
    # without and 0.82 to 0.89 with, after the last 0.32 to 0.66 and 0.96 to 0.97; a
    # seed's smallest difference 0.31. Training loss: 2.1 to 2.2, and 0.15 to 0.16.
    for epoch in (0, -1):
        old, new = (r["history"]["val_accuracy"][epoch] for r in (plain, normalized))
        assert new > old + 0.2
    assert normalized["history"]["loss"][-1] < plain["history"]["loss"][-1] / 2
    # From the same start.
    np.testing.assert_array_equal(plain["kernels"][0], normalized["kernels"][0])
    # The descent's height is the loss of what was trained, not of the start.
    for result in (plain, normalized):
        losses = result["losses"]
        assert len(losses) == len(result["kernels"]) == 6
        assert losses[-1] == min(losses)
        assert losses[-1] == pytest.approx(result["history"]["loss"][-1], rel=0.4)

    text = (tmp_path / "new" / "devanagari_cnn.md").read_text("utf-8")
    for line in ("| without ", "clearly more", "- After the first epoch: "):
        assert line in out and line in text
    for name in ("devanagari_cnn.png", "devanagari_cnn_descent.png"):
        picture = (tmp_path / "new" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
        assert f"]({name})" in text


def test_the_loss_is_the_batch_s_and_leaves_the_model():
    model = example.build_model((8, 8), normalization=True)
    rng = np.random.default_rng(0)
    images = rng.random((16, 8, 8), "float32")
    labels = rng.integers(0, 10, 16)
    before = model.get_weights()
    loss = example.measure_loss(model, images, labels)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)

    logits = keras.ops.convert_to_numpy(model(images, training=True))
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), labels]
    # Both in float32.
    assert loss == pytest.approx(losses.mean(), rel=1e-5)


def test_weights_are_chosen_that_travel_in_both_networks():
    kernels = np.zeros((2, 2, 3, 3, 16, 16))
    ways = {(0, 1, 2, 3): (5, 4), (2, 2, 0, 0): (3, 3), (1, 1, 1, 1): (9, 1)}
    for index, way in ways.items():
        kernels[:, -1, *index] = way
    results = {
        variant: {"kernels": one}
        for variant, one in zip(("without", "with"), kernels, strict=True)
    }
    weights = example.choose_weights(results)
    assert weights == [(0, 1, 2, 3), (2, 2, 0, 0)]
    np.testing.assert_array_equal(
        example.paths(results, weights)["with"], [[0, 0], [4, 3]]
    )


@pytest.fixture
def digits():
    """Returns images and labels of each part, two of each digit, sorted by class."""
    rng = np.random.default_rng(0)
    return {
        part: (
            rng.integers(0, 256, (20, 32, 32), dtype="uint8"),
            np.repeat(np.arange(10), 2),
        )
        for part in ("train", "test")
    }


def write_zip(path, digits):
    """Writes images as UCI's file has them, a letter's among them."""
    with zipfile.ZipFile(path, "w") as archive:

        def write(name, image):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            archive.writestr(f"Characters/{name}.png", file.getvalue())

        for part, (images, labels) in digits.items():
            folder = part.capitalize()
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                write(f"{folder}/digit_{label}/{i}", image)
            write(f"{folder}/character_1_ka/0", images[0])


def test_the_zip_and_the_npz_file_are_the_same_digits(tmp_path, digits):
    write_zip(tmp_path / "digits.zip", digits)
    arrays = {
        f"{kind}_{part}": array
        for part, pair in digits.items()
        for kind, array in zip("xy", pair, strict=True)
    }
    np.savez(tmp_path / "digits.npz", **arrays)

    def pairs(images, labels):
        return {
            (image.astype("float32").tobytes(), int(label))
            for image, label in zip(images, labels, strict=True)
        }

    for ending in ("zip", "npz"):
        loaded = example.load_devanagari(tmp_path / f"digits.{ending}")
        for (x, y), (images, labels) in zip(loaded, digits.values(), strict=True):
            assert x.dtype == "float32" and x.shape == (20, 32, 32)
            assert pairs(x, y) == pairs(images, labels)
            assert list(y) != list(labels)


def test_the_cache_is_looked_into(tmp_path, digits, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"uci\.edu/dataset/389"):
        example.load_devanagari()
    (tmp_path / "datasets").mkdir()
    (x_train, y_train), (x_test, y_test) = digits.values()
    np.savez(
        tmp_path / "datasets" / "devanagari_digits.npz",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
    )
    assert len(example.load_devanagari()) == 2


def test_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.zip").write_text("no zip file")
    for name, message in (
        ("empty.zip", "no images of digits under Train/"),
        ("other.npz", "x_train"),
        ("text.zip", "not a zip file"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            example.load_devanagari(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "0"), "--seeds 0"),
        (("--path", "nowhere.zip"), "--path nowhere.zip"),
        (("--path", str(Path(__file__))), "can't be read"),
        (("--output", str(Path(__file__))), "test_devanagari_cnn.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
