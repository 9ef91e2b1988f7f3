"""The examples in the documents run, on every backend."""

import doctest
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_bnx
from keras_bnx.tools.checks import RULES

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", [n for n in keras_bnx.__all__ if n != "__version__"])
def test_docstring_examples_print_what_they_say(name):
    tests = [
        test
        for test in doctest.DocTestFinder().find(getattr(keras_bnx, name), name)
        if test.name == name
    ]
    assert len(tests) == 1 and tests[0].examples
    assert doctest.DocTestRunner().run(tests[0]).failed == 0


def codes():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_the_readmes_code_runs():
    code, more, _, _ = codes()
    names = {"x": np.ones((2, 4), "float32")}
    exec(code, names)
    exec(more, names)
    y = names["model"](names["x"])

    assert tuple(y.shape) == (2, 10)
    assert isinstance(names["model"].layers[1], keras_bnx.BatchNormalization)
    assert isinstance(names["model"].layers[1], keras.layers.BatchNormalization)


def test_the_readmes_tools_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, tools, exchange = codes()
    rng = np.random.default_rng(0)
    names = {"x": rng.normal(size=(40, 4)).astype("float32"), "y": np.zeros(40)}
    exec(code, names)
    names["model"](names["x"])
    names["model"].compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    exec(tools, names)

    assert len(names["folded"].layers) == len(names["model"].layers) - 1
    assert type(names["kerass"].layers[1]) is keras.layers.BatchNormalization
    assert (tmp_path / "report.png").exists()
    if keras.config.backend() == "torch":
        exec(exchange, names)
        assert names["module"].num_features == 8


def test_the_readme_counts_the_rules():
    assert f"known to go wrong: {len(RULES)} rules" in README.read_text()


def test_links_and_commands_of_the_readme_exist():
    text = README.read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (README.parent / path).exists(), path
    ci = (README.parent / ".ci" / "run").read_text()
    assert "    python -m pip install nox && python -m nox\n" in text
    assert "python -m pip install nox && python -m nox\n" in ci
