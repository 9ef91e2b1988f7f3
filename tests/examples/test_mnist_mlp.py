from pathlib import Path

import keras
import mnist_mlp as example
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full(except_on="torch")
def test_normalization_makes_the_pixels_scale_indifferent(tmp_path, capsys):
    found = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out
    results = {name: histories[0] for name, histories in found["results"].items()}

    assert list(results) == ["A", "B", "C", "D"]
    assert all(len(history["val_loss"]) == 5 for history in results.values())
    first, last = (
        {name: history["val_accuracy"][i] for name, history in results.items()}
        for i in (0, -1)
    )
    # Measured with two seeds on each backend, on test images: after the first epoch C
    # 0.60 to 0.80, D 0.93 to 0.97, the smallest difference of a seed 0.14; after the
    # last all four 0.95 to 0.99, and D's loss 0.23 to 0.50 of C's.
    assert first["D"] > first["C"] + 0.05
    assert min(last.values()) > 0.9
    assert results["D"]["val_loss"][-1] < 0.8 * results["C"]["val_loss"][-1]
    # The hidden layers behind a normalization have values of its scale: 1.5 to 1.6, and
    # 19 to 41 without; the first layer has the pixels' in both.
    sizes = {
        name: [values[values > 0].mean() for values in layers]
        for name, layers in found["hidden"].items()
    }
    assert [values.shape for values in found["hidden"]["D"]] == [
        (360, units) for units in (1024, 512, 256)
    ]
    assert min(sizes["C"]) > 10 and sizes["D"][0] > 10 and max(sizes["D"][1:]) < 3
    # The same layer in other words: float32 rounding of values up to 255.
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
