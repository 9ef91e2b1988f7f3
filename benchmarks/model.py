"""Whole models: a training step and an inference with our layer and with Keras's.

    KERAS_BACKEND=torch python -m benchmarks.model [--quick] [--output DIR]

What is timed are `train_on_batch` and `predict_on_batch` of models compiled with
Keras's defaults: eager on PyTorch, `jax.jit` on JAX, XLA on TensorFlow.
"""

import sys
import time

import keras
import numpy as np
from keras import layers

import keras_bnx
from benchmarks import frameworks, harness

BATCH = 32
# Of the largest output. float32 differs by 5e-5 in ResNet50; on GPUs, convolutions
# that round to TensorFloat-32 enlarge it. A wrong layer is off by the order of 1.
TOLERANCE = 1e-2


def convnet():
    """Three times convolution, normalization, ReLU and pooling, on 32x32 images."""
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for filters in (32, 64, 128):
        model.add(layers.Conv2D(filters, 3, use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


def application(name, size=64):
    return lambda: getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=10,
        classifier_activation=None,
    )


MODELS = {
    "three convolutions, 32x32": convnet,
    "ResNet50, 64x64": application("ResNet50"),
    "MobileNetV2, 64x64": application("MobileNetV2"),
}


def with_ours(model):
    """The same model, weights included, with our layer in the place of Keras's."""

    def clone(layer):
        cls = type(layer)
        if cls is layers.BatchNormalization:
            cls = keras_bnx.BatchNormalization
        return cls.from_config(layer.get_config())

    ours = keras.models.clone_model(model, clone_function=clone)
    ours.set_weights(model.get_weights())
    return ours


def disagreement(a, b, x):
    """The largest difference of two models' outputs, in parts of the largest output.

    At inference and in training, whose moving statistics it moves.
    """
    errors = []
    for training in (False, True):
        ya, yb = (
            keras.ops.convert_to_numpy(m(x, training=training)).astype("float64")
            for m in (a, b)
        )
        errors.append(np.abs(ya - yb).max() / np.abs(yb).max())
    return max(errors)


def data(model):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, *model.input_shape[1:])).astype("float32")
    return x, rng.integers(10, size=BATCH)


def calls(model, x, labels):
    """What is timed, by its mode."""
    model.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return {
        "training": lambda: model.train_on_batch(x, labels),
        "inference": lambda: model.predict_on_batch(x),
    }


def first_call(name, provider, mode):
    """The seconds of a call that traces and compiles."""
    model = MODELS[name]()
    model = with_ours(model) if provider == "ours" else model
    call = calls(model, *data(model))[mode]
    start = time.perf_counter()
    call()
    frameworks.active().synchronize()
    return time.perf_counter() - start


def measure(name, timing):
    keras_model = MODELS[name]()
    models = {"ours": with_ours(keras_model), "keras": keras_model}
    x, labels = data(keras_model)
    error = disagreement(models["ours"], keras_model, x)
    status = {"status": "ok", "error": ""}
    if not error < TOLERANCE:
        status = {"status": "failed", "error": f"outputs differ by {error:.2g}"}
        models = {}
    functions = {"training": {}, "inference": {}}
    for provider, model in models.items():
        for mode, call in calls(model, x, labels).items():
            functions[mode][provider] = call

    for mode, compared in functions.items():
        others = harness.others()
        samples = harness.interleave(
            compared, synchronize=frameworks.active().synchronize, **timing
        )
        taken = others()
        for provider in ("ours", "keras"):
            row = {"model": name, "batch": BATCH, "mode": mode, "provider": provider}
            row |= status
            if provider in samples:
                row |= harness.summary(samples[provider])
                row |= {"rounds": len(samples[provider]), "others": taken}
                # Elsewhere: here the others have warmed up what they share.
                first = harness.in_new_process(first_call, name, provider, mode)
                row["first_s"] = first
            print(describe(row), flush=True)
            yield row


def describe(row):
    """One line of a row, for those who watch."""
    name = f"{row['model']:26} {row['mode']:9} {row['provider']:6}"
    if row["status"] != "ok":
        return f"{name} {row['status']}: {row['error']}"
    return (
        f"{name} {row['median_ms']:9.1f} ms [{row['p20_ms']:.1f}, {row['p80_ms']:.1f}]"
        f", the first {row['first_s']:.1f} s"
    )


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    names = list(MODELS)[:1] if arguments.quick else MODELS
    rows = [row for name in names for row in measure(name, arguments.timing)]
    print(harness.write(arguments.output, "model", rows))
    if any(row["status"] != "ok" for row in rows):
        sys.exit("A model with our layer isn't the model; see the lines above.")


if __name__ == "__main__":
    main()
