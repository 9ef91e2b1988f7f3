import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import data_parallel as example
import keras
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_synchronized_replicas_train_as_one(tmp_path):
    # A process of its own: on TensorFlow the collectives of two strategies would meet.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        results = pool.submit(run, "--quick", "--output", str(tmp_path / "new"))
        results = results.result()

    assert list(results) == list(example.VARIANTS)
    # Measured on JAX: 1e-4 and 0.54 nats, 93.6 and 67.8 %.
    assert example.largest_difference(results, "synchronized") < 5e-3
    assert example.largest_difference(results, "local") > 0.1
    one, synchronized, local = (results[v]["accuracy"][-1] for v in example.VARIANTS)
    assert abs(synchronized - one) < 0.03 and local < one - 0.1
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
