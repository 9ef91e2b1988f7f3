"""Converted networks: normalization is folded into the layer before, as Keras's is."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from keras_bnx import BatchNormalization


def image_network(normalization, **arguments):
    return keras.Sequential(
        [
            keras.Input((9, 8, 3)),
            layers.Conv2D(6, 3),
            normalization(**arguments),
            layers.ReLU(),
            layers.SeparableConv2D(5, 3),
            normalization(scale=False),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


def channels_first_network(normalization):
    return image_network(normalization, axis=1)


def sequence_network(normalization):
    return keras.Sequential(
        [
            keras.Input((12, 3)),
            layers.Conv1D(6, 3),
            normalization(),
            layers.ReLU(),
            layers.Conv1D(5, 3),
            normalization(center=False),
            layers.ReLU(),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
        ]
    )


def dense_network(normalization):
    """The first normalization has no layer before it."""
    return keras.Sequential(
        [
            keras.Input((7,)),
            normalization(),
            layers.Dense(6),
            normalization(),
            layers.ReLU(),
            layers.Dense(5),
            normalization(),
            layers.ReLU(),
            layers.Dense(2),
        ]
    )


NETWORKS = [image_network, channels_first_network, sequence_network, dense_network]


def filled(model):
    """Weights as after training: of channels whose means are a few deviations."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            if "kernel" not in weight.path:
                value = generator.uniform(0.5, 1.5, weight.shape)
                if "beta" in weight.path or "mean" in weight.path:
                    value -= 1.0
                weight.assign(value)
    return model


def to_onnx(model, inputs, path):
    """Returns the number of nodes, and the outputs."""
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return len(onnx.load(path).graph.node), outputs


def to_tflite(model, inputs, path):
    import tensorflow as tf

    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    # Without delegates, which hide operations in one of their own.
    resolvers = tf.lite.experimental.OpResolverType
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_op_resolver_type=resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    (given,) = interpreter.get_input_details()
    (found,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], inputs)
    interpreter.invoke()
    # There is no public list of operations.
    operations = interpreter._get_ops_details()
    return len(operations), interpreter.get_tensor(found["index"])


CONVERTERS = {
    "tensorflow": [to_onnx, to_tflite],
    "torch": [to_onnx],
    # Keras exports from JAX by a package that needs TensorFlow: not in this column.
    "jax": [],
}[keras.config.backend()]


if CONVERTERS:

    @pytest.mark.parametrize("convert", CONVERTERS)
    @pytest.mark.parametrize("network", NETWORKS)
    def test_as_few_operations_as_with_kerass_layer(network, convert, tmp_path):
        ours = filled(network(BatchNormalization))
        kerass = filled(network(layers.BatchNormalization))
        kerass.set_weights(ours.get_weights())
        inputs = np.random.default_rng(1).normal(size=(4, *ours.input_shape[1:]))
        inputs = inputs.astype("float32")
        # Keras exports what has been called.
        predicted = kerass.predict(inputs, verbose=0)
        ours.predict(inputs, verbose=0)
        allowed, _ = convert(kerass, inputs, tmp_path / "keras.onnx")
        operations, outputs = convert(ours, inputs, tmp_path / "ours.onnx")

        assert operations <= allowed
        np.testing.assert_allclose(outputs, predicted, rtol=0, atol=1e-5)
