from pathlib import Path

import keras
import pytest
import recalibrate_averaged_weights as example


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_averaged_weights_are_off_until_recalibrated(tmp_path, capsys):
    results = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert list(results) == list(example.QUICK_EMA_MOMENTA)
    (near,), (far,) = results.values()
    # Measured with one seed on each backend: outputs are off by 0.02 to 0.05 near, by
    # 0.15 to 0.37 far; recalibrated, far has 0.01 to 0.03 more, and near -0.003 to
    # 0.003.
    assert min(far["errors"]) > 2 * max(near["errors"])
    assert far["averaged, recalibrated"] > far["averaged"]
    # The last weights are of the same training, which rounding alone tells apart.
    assert abs(near["raw"] - far["raw"]) < 0.05
    assert "|          0.995 | " in out and "points, " in out
    report = tmp_path / "new" / "recalibrate_averaged_weights.md"
    assert "by recalibration" in report.read_text("utf-8")
    picture = report.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "0"), "--seeds 0"),
        (("--data", "letters"), "letters"),
        (("--output", str(Path(__file__))), "test_recalibrate_averaged_weights.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
