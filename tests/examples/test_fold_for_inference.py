from pathlib import Path

import fold_for_inference as example
import keras
import pytest


def run(*arguments):
    return example.main(["--backend", keras.config.backend(), *arguments])


@pytest.mark.full(except_on="torch")
def test_the_network_loses_its_normalizations_and_nothing_else(tmp_path, capsys):
    found = run("--quick", "--output", str(tmp_path / "new"))
    out = capsys.readouterr().out

    assert [(record.layer, record.into) for record in found["report"]] == [
        ("pixels", "conv_0"),
        ("norm_0", "conv_0"),
        ("norm_1", "conv_1"),
        ("norm_2", "conv_2"),
        ("last", "logits"),
    ]
    ((before, after),) = found["accuracies"]
    # Measured once on each backend: 0.97 to 0.98.
    assert before > 0.9
    # One image of 360 may lie on the edge of two digits.
    assert abs(after - before) <= 1 / 360
    # Float32, five times.
    assert found["difference"] < 1e-5
    assert all(time > 0 for time in found["milliseconds"])
    report = f"fold_for_inference_{keras.config.backend()}.md"
    text = (tmp_path / "new" / report).read_text(encoding="utf-8")
    assert "| norm_1 " in out and "| norm_1 " in text and "| folded " in text
    if keras.config.backend() == "jax":
        assert found["nodes"] is None and "Nothing was exported" in text
        return
    before, after = found["nodes"]
    # On PyTorch the exporter takes the layer apart, in multiplications and additions.
    assert after.total() < before.total() and "BatchNormalization" not in after
    assert after["Conv"] == 3 and not {"Mul", "Sub", "Div", "Sqrt"} & set(after)
    path = tmp_path / "new" / "fold_for_inference_folded.onnx"
    assert path.stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "--epochs 0"),
        (("--data", "letters"), "letters"),
        (("--output", str(Path(__file__))), "test_fold_for_inference.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
