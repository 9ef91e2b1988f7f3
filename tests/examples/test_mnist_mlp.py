import importlib.util
from pathlib import Path

import keras
import pytest

PATH = Path(__file__).parents[2] / "examples" / "mnist_mlp.py"
spec = importlib.util.spec_from_file_location("mnist_mlp", PATH)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


def test_four_runs_a_table_and_a_figure(tmp_path, capsys):
    results = run("--epochs", "2", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert [r["run"] for r in results] == ["A", "B", "C", "D"]
    assert all(len(r["history"]["val_loss"]) == 2 for r in results)
    # Measured on training images after two epochs, on each backend: 0.81 to 0.91
    # without normalization, 0.99 with. B's moving averages lag on test images (0.80),
    # D's don't (0.97).
    a, b, c, d = (r["history"]["accuracy"][-1] for r in results)
    assert min(a, c) > 0.6 and min(b, d) > 0.95
    assert results[-1]["accuracy"] > 0.9
    # The same layer in other words: float32 rounding of values up to 255.
    assert max(results[-1]["differences"]) < 1e-3
    assert "test accuracy  test loss" in out and "Epoch 2/2" in out
    picture = (tmp_path / "new" / "mnist_mlp_digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seed", "-1"), "--seed -1"),
        (("--data", "letters"), "letters"),
        (("--output", str(PATH)), "mnist_mlp.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
