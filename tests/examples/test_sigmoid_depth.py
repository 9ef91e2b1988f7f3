from pathlib import Path

import keras
import numpy as np
import pytest
import sigmoid_depth as example


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_normalization_trains_sigmoids_and_keeps_gradients(tmp_path, capsys):
    results = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    (without,), (normalized,) = results["training"].values()
    np.testing.assert_array_equal(without["steps"], 24 * np.arange(1, 21))
    # Measured with two seeds on each backend: accuracy 0.10 to 0.16 without, 0.96 to
    # 0.97 with normalization; the median travels 4.5 to 9.6 widths (means of seeds) and
    # 0.1 to 0.2.
    assert normalized["accuracy"][-1] > without["accuracy"][-1] + 0.5
    still, moved = (
        np.median(example.travel(result["training"]))
        for result in (normalized, without)
    )
    assert still < moved / 4
    for mode in ("training", "inference"):
        assert normalized[mode].shape == (20, 3, 100)
        assert (np.diff(normalized[mode], axis=1) > 0).all()
    # Without normalization both modes are the same, up to the order of sums.
    np.testing.assert_allclose(
        without["training"], without["inference"], rtol=1e-5, atol=1e-5
    )

    # The first kernel's gradient was 1.7e-8 to 3.1e-8 at depth 12 without, and with
    # normalization 0.51 to 0.63 at both depths.
    gradients = results["gradients"]
    for depth in (3, 12):
        (norms,) = gradients[depth, "with"]
        assert len(norms) == depth + 1
        assert 0.2 < norms[0] < 2
    assert gradients[12, "without"][0][0] < 1e-6
    # Three layers below a sigmoid's quarter, and the weights' share of about 1.
    assert 1e-3 < gradients[3, "without"][0][0] < 1e-1

    assert "clearly more" in out and "without normalization, seed 0" in out
    report = (tmp_path / "new" / "sigmoid_depth.md").read_text(encoding="utf-8")
    assert "| without       |" in report and "Made by `" in report
    for part in ("training", "gradients"):
        picture = (tmp_path / "new" / f"sigmoid_depth_{part}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_a_step_reveals_the_gradient():
    images = np.random.default_rng(0).uniform(size=(60, 8, 8)).astype("float32")
    labels = np.arange(60) % 10
    norms = example.gradient_norms(
        (images, labels), depth=1, normalization="without", seed=0
    )

    keras.utils.set_random_seed(0)
    model = example.build_model(
        (8, 8), depth=1, normalization="without", learning_rate=1.0
    )
    hidden, last = (
        [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
        for layer in (model.layers[1], model.layers[3])
    )
    # The gradient of softmax and cross-entropy, by hand, in float64.
    x = images.reshape(60, 64).astype("float64")
    h = 1 / (1 + np.exp(-(x @ hidden[0] + hidden[1])))
    logits = h @ last[0] + last[1]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    d = exponentials / exponentials.sum(axis=1, keepdims=True)
    d = (d - np.eye(10)[labels]) / 60
    below = (d @ last[0].T) * h * (1 - h)
    expected = [np.linalg.norm(x.T @ below), np.linalg.norm(h.T @ d)]
    # A sum of 60 products, each rounded by some 2**-24.
    np.testing.assert_allclose(norms, expected, rtol=60 * 2.0**-24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "0"), "--seeds 0"),
        (("--learning-rate", "0"), "--learning-rate 0.0"),
        (("--learning-rate", "inf"), "--learning-rate inf"),
        (("--output", str(Path(__file__))), "test_sigmoid_depth.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
