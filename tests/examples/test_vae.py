from pathlib import Path

import keras
import pytest
import vae as example


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_normalization_lowers_the_loss(tmp_path, capsys):
    found = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert list(found["results"]) == list(example.VARIANTS)
    plain, normalized = (
        histories[0]["val_loss"] for histories in found["results"].values()
    )
    # Measured with two seeds on each backend, in nats: after five epochs 26.9 to 27.3
    # without and 26.1 to 26.5 with, after ten 25.9 to 26.6 and 25.4 to 25.9. The
    # smallest differences of a seed were 0.58 and 0.22.
    assert len(plain) == len(normalized) == 10
    assert normalized[4] < plain[4] - 0.2
    assert normalized[-1] < plain[-1]
    # The first epoch has 28 to 33: pixels alone, at 0.69 each, would be 44.
    assert max(plain + normalized) < 44
    for reconstructed, drawn in found["drawn"].values():
        assert reconstructed.shape == drawn.shape == (36, 8, 8)
        assert reconstructed.min() >= 0 and drawn.max() <= 1
        # Different codes make different images: the decoder listens to them.
        assert drawn.std(axis=0).mean() > 0.05
    assert "Epoch 10/10" in out and "nats" in out
    report = (tmp_path / "new" / "vae.md").read_text(encoding="utf-8")
    assert "| with normalization " in report
    picture = (tmp_path / "new" / "vae.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "-1"), "--seeds -1"),
        (("--output", str(Path(__file__))), "test_vae.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
