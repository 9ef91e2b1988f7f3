from pathlib import Path

import keras
import mnist_mlp as example
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


def test_normalization_makes_the_pixels_scale_indifferent(tmp_path, capsys):
    found = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out
    results = {name: histories[0] for name, histories in found["results"].items()}

    assert list(results) == ["A", "B", "C", "D"]
    assert all(len(history["val_loss"]) == 5 for history in results.values())
    MEASURED
    assert max(found["differences"]) < 1e-3
    assert "| D   | 0 to 255 | with " in out and "Epoch 5/5" in out
    # The article's figures are MNIST's.
    assert "article" not in out
    report = (tmp_path / "new" / "mnist_mlp.md").read_text(encoding="utf-8")
    assert "| C   | 0 to 255 | without " in report and "no clear difference" in report
    for name in ("mnist_mlp_digits.png", "mnist_mlp_digits_activations.png"):
        picture = (tmp_path / "new" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
        assert f"]({name})" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "-1"), "--seeds -1"),
        (("--data", "letters"), "letters"),
        (("--output", str(Path(__file__))), "test_mnist_mlp.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
