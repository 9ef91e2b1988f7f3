from pathlib import Path

import keras
import numpy as np
import population_statistics as example
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_estimates_near_the_population_where_their_averages_do(tmp_path, capsys):
    results = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert list(results) == list(example.ESTIMATES)
    assert results["exact"][0]["steps"] == [3, 10, 30, 100, 230]
    mean = {
        name: example.mean_distances(results, name, "mean")
        for name in ("moving", "debiased", "cumulative")
    }
    bias = example.mean_distances(results, "debiased", "bias")
    accuracy = {name: runs[0]["accuracy"] for name, runs in results.items()}
    # Measured with two seeds on each backend, means of seeds: after 30 steps the
    # distance is 0.59 to 0.65 moving, 0.047 to 0.057 debiased; after 230 it is 0.094
    # to 0.099 moving, 0.059 to 0.065 debiased, 0.102 to 0.112 cumulative. Accuracies
    # are 0.86 to 0.89, then 0.97 to 0.98, with exact statistics; 0.67 to 0.79, then
    # 0.95 to 0.97, with moving ones. The debiased variance ends 2.7 to 2.8 % too small.
    assert mean["moving"][2] > 0.4
    assert mean["debiased"][2] < 0.1
    assert mean["debiased"][4] < mean["cumulative"][4] - 0.02
    assert mean["debiased"][4] < mean["moving"][4]
    assert -0.06 < bias[4] < 0
    assert accuracy["exact"][2] > accuracy["moving"][2]
    assert accuracy["exact"][4] > accuracy["moving"][4] - 0.03
    assert accuracy["exact"][4] > 0.9

    assert "After 230 steps:" in out and "in place of exact" in out
    report = (tmp_path / "new" / "population_statistics.md").read_text("utf-8")
    assert "| exact      |" in report and "Made by `" in report
    picture = (tmp_path / "new" / "population_statistics.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_population_statistics_are_algorithm_2():
    images = np.random.default_rng(0).uniform(size=(180, 8, 8)).astype("float32")
    keras.utils.set_random_seed(0)
    model, twin = (example.build_model((8, 8), name) for name in ("moving", "exact"))
    # Statistics of other batches before don't count.
    twin(images[:7] + 1, training=True)
    example.take_population_statistics(twin, model, images)
    mean, variance = example.statistics(twin, "exact", 3)

    kernel = keras.ops.convert_to_numpy(model.layers[1].kernel).astype("float64")
    batches = images.reshape(3, 60, 64).astype("float64") @ kernel
    expected = batches.mean(axis=(0, 1)), batches.var(axis=1, ddof=1).mean(axis=0)
    # Rounded by 2**-24 in 64 + 60 additions, of values up to 5.
    for found, value in zip((mean[:100], variance[:100]), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=5 * 124 * 2.0**-24)
    # The network in training keeps its own, which nothing has moved yet.
    np.testing.assert_array_equal(example.statistics(model, "moving", 0)[0], 0)


def test_debiased_statistics_are_those_of_inference():
    images = np.random.default_rng(0).uniform(size=(60, 8, 8)).astype("float32")
    keras.utils.set_random_seed(0)
    model = example.build_model((8, 8), "debiased")
    for start in (0, 20, 40):
        model(images[start : start + 20], training=True)
    mean, variance = example.statistics(model, "debiased", 3)

    outputs = keras.Model(
        model.inputs[0], [model.layers[2].input, model.layers[3].input]
    )
    x, y = (keras.ops.convert_to_numpy(output) for output in outputs(images))
    expected = (x - mean[:100]) / np.sqrt(variance[:100] + 1e-3)
    # Three averages of about 1 are rounded by 2**-24 each. With the initial value out,
    # 3 % of a variance of 0.065 are left, 9e-5 of it wrong; outputs up to 5 half that.
    np.testing.assert_allclose(y, expected, rtol=0, atol=2.4e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "0"), "--seeds 0"),
        (("--output", str(Path(__file__))), "test_population_statistics.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
