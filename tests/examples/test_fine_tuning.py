from pathlib import Path

import fine_tuning as example
import keras
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full
def test_recipes_do_what_they_say(tmp_path, capsys):
    results = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert list(results) == list(example.RECIPES)
    new, moved = (
        {name: runs[0][key] for name, runs in results.items()}
        for key in ("new", "moved")
    )
    # Measured with two seeds on each backend: none 0.11 to 0.31, all, running 0.20 to
    # 0.42, all, caught up 0.88 to 0.93, all, frozen 0.62 to 0.82, AdaBN 0.84 to 0.88.
    # The smallest differences of a seed were 0.51, 0.34 and 0.54, in this order.
    assert new["all, caught up"] > new["all, running"] + 0.3
    assert new["all, frozen"] > new["all, running"] + 0.1
    assert new["AdaBN"] > new["none"] + 0.4
    assert results["none"][0]["old"] > 0.95
    # 100 steps at momentum 0.99, and what the labelled images' mean differs.
    for name in ("all, running", "head, running"):
        assert abs(moved[name] - (1 - 0.99**100)) < 0.1
    for name in ("none", "head, frozen", "affine + head, frozen", "all, frozen"):
        assert abs(moved[name]) < 0.1
    for name in example.ADAPTED:
        assert abs(moved[name] - 1) < 0.05
    assert "moving mean's way" in out and "points, clearly more" in out
    assert "| AdaBN " in (tmp_path / "new" / "fine_tuning.md").read_text("utf-8")
    picture = (tmp_path / "new" / "fine_tuning.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--seeds", "-1"), "--seeds -1"),
        (("--output", str(Path(__file__))), "test_fine_tuning.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
