"""ONNX: its own cases of BatchNormalization, and exported models."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from frameworks import statistics, to_numpy
from onnx.backend.test.loader import load_model_tests

from keras_bnx import BatchNormalization


def load_cases():
    """Attributes, inputs and outputs of each case, by name."""
    cases = {}
    for case in load_model_tests(kind="node"):
        if not case.name.startswith("test_batchnorm_"):
            continue
        (node,) = case.model.graph.node
        attributes = {
            a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
        }
        cases[case.name] = (attributes, *case.data_sets[0])
    return cases


def test_onnx_cases_pass(subtests):
    # Loaded here: it takes seconds, which each worker would spend on a parameter.
    cases = load_cases()
    assert len(cases) >= 4, sorted(cases)
    for name, case in cases.items():
        with subtests.test(name):
            assert_case_passes(*case)


def assert_case_passes(attributes, inputs, outputs):
    x, scale, bias, mean, variance = inputs
    layer = BatchNormalization(
        axis=1,
        epsilon=attributes.get("epsilon", 1e-5),
        momentum=attributes.get("momentum", 0.9),
    )
    layer.build(x.shape)
    layer.set_weights([scale, bias, mean, variance])

    y = to_numpy(layer(x, training=bool(attributes.get("training_mode", 0))))

    found = [y]
    if len(outputs) > 1:
        found += [
            statistics(layer)["moving_mean"],
            statistics(layer)["moving_variance"],
        ]
    for ours, theirs in zip(found, outputs, strict=True):
        # The tolerances of ONNX's own runner.
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)


# Keras exports from JAX by a package that needs TensorFlow: not in this column.
if keras.config.backend() != "jax":

    @pytest.mark.parametrize("axis", [-1, 1])
    @pytest.mark.parametrize("renorm", [False, True])
    def test_exported_models_keep_their_numbers(axis, renorm, tmp_path):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6, 5, 3), batch_size=4),
                keras.layers.Conv2D(4, 3),
                BatchNormalization(axis=axis, renorm=renorm),
            ]
        )
        x = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype("float32")
        for _ in range(3):
            model(x, training=True)
        path = tmp_path / "model.onnx"
        model.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path)
        (y,) = session.run(None, {session.get_inputs()[0].name: x})

        expected = model.predict(x, batch_size=4, verbose=0)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
