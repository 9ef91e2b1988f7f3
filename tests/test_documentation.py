"""The examples in the documents run, on every backend."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_bnx
from benchmarks import accuracy
from keras_bnx.tools.checks import RULES

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


@pytest.mark.parametrize("name", [n for n in keras_bnx.__all__ if n != "__version__"])
def test_docstring_examples_print_what_they_say(name):
    tests = [
        test
        for test in doctest.DocTestFinder().find(getattr(keras_bnx, name), name)
        if test.name == name
    ]
    assert len(tests) == 1 and tests[0].examples
    assert doctest.DocTestRunner().run(tests[0]).failed == 0


def blocks(path):
    """The code of a page that this backend can run, and that of no other backend."""
    pattern = r'```python(?: title="([^"]*)")?\n(.*?)```'
    found = re.findall(pattern, path.read_text(), flags=re.S)
    wanted = TITLES[keras.config.backend()]
    return [code for title, code in found if not title or title.startswith(wanted)]


PAGES = sorted(DOCS.glob("*.md"))
WITHOUT_CODE = {"api", "coverage", "differences", "matrix", "questions"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_code_of_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What torchrun sets.
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    for name, value in {**environment, "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    codes, names = blocks(page), {}
    assert bool(codes) != (page.stem in WITHOUT_CODE)
    try:
        for code in codes:
            exec(compile(code, page.name, "exec"), names)
    finally:
        keras.distribution.set_distribution(None)


def test_the_api_has_every_public_name():
    listed = re.findall(r"^::: keras_bnx\.(.*)$", (DOCS / "api.md").read_text(), re.M)
    public = {name for name in keras_bnx.__all__ if name != "__version__"}
    public |= {f"interop.{name}" for name in keras_bnx.interop.__all__}
    assert len(listed) == len(set(listed))
    assert {name for name in listed if not RESULTS.match(name)} == public
    for name in listed:
        thing = importlib.import_module("keras_bnx")
        for part in name.split("."):
            thing = getattr(thing, part)
        assert thing.__doc__


# What functions return lives where it is made.
RESULTS = re.compile(r"(tools|implementation)\.")


def test_the_page_on_migrating_has_the_defaults_of_what_is_installed():
    name = {"torch": "torch.nn", "jax": "flax.nnx"}.get(keras.config.backend())
    module = importlib.import_module(name or "keras.layers")
    cls = getattr(module, "BatchNormalization" if name is None else "BatchNorm", None)
    parameters = inspect.signature((cls or module.BatchNorm2d).__init__).parameters
    text = (DOCS / "migrating.md").read_text()
    if name is None:
        momentum, epsilon = (parameters[n].default for n in ("momentum", "epsilon"))
        assert momentum == 0.99 and epsilon == 1e-3
        assert text.count("| the old value | 0.99 | 1e-3 | n") == 2
        return
    for key in ("eps", "epsilon", "momentum", "affine", "use_bias", "axis_name"):
        if key in parameters:
            assert f"`{key}={parameters[key].default}`" in text, key


def codes():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def test_the_readmes_code_runs():
    code, more, _, _ = codes()
    names = {"x": np.ones((2, 784), "float32")}
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
    names = {"x": rng.normal(size=(40, 784)).astype("float32"), "y": np.zeros(40)}
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


def test_the_figure_of_accuracy_says_what_the_readme_does():
    found = accuracy.read()
    assert set(found) == {(b, p) for b in TITLES for p in accuracy.PROVIDERS}
    assert all([*errors] == accuracy.RATIOS for errors in found.values())
    worst = max(e for (_, p), es in found.items() if p == "ours" for e in es.values())
    assert worst < 5e-6 and "below 5e-6" in README.read_text()
    # And is so here, today.
    assert accuracy.error(keras_bnx.BatchNormalization, 1e4) < 5e-6


def test_the_readme_counts_the_rules():
    assert f"known to go wrong: {len(RULES)} rules" in README.read_text()


def test_links_and_commands_of_the_readme_exist():
    text = README.read_text()
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (README.parent / path).exists(), path
    ci = (README.parent / ".ci" / "run").read_text()
    assert "    python -m pip install nox && python -m nox\n" in text
    assert "python -m pip install nox && python -m nox\n" in ci
