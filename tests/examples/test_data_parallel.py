import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import data_parallel as example
import keras
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


def test_synchronized_replicas_train_as_one(tmp_path):
    # A process of its own: on TensorFlow the collectives of two strategies would meet.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        results = pool.submit(run, "--quick", "--output", str(tmp_path / "new"))
        results = results.result()

    assert list(results) == list(example.VARIANTS)
    # Measured: JAX 6e-8 and 5e-3, TensorFlow 1e-5 and 6e-3, PyTorch 8e-5 and 3e-3.
    assert example.largest_difference(results, "synchronized") < 5e-4
    assert example.largest_difference(results, "local") > 1e-3
    assert all(result["accuracy"][-1] > 0.85 for result in results.values())
    name = f"data_parallel_{keras.config.backend()}"
    assert "nats of rounding" in (tmp_path / "new" / f"{name}.md").read_text()
    picture = (tmp_path / "new" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--images", "31"), "--images 31"),
        (("--path", "nowhere.npz"), "nowhere.npz"),
        (("--output", str(Path(__file__))), "test_data_parallel.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
