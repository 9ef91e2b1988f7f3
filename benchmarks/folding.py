"""Models of keras.applications for inference, folded: how much, how exactly, how fast.

    KERAS_BACKEND=torch python -m benchmarks.folding [--quick] [--output DIR]

What is timed is `predict_on_batch`, by Keras's defaults: eager on PyTorch, `jax.jit` on
JAX, XLA on TensorFlow.
"""

import sys
from collections import Counter

import keras
import numpy as np

import keras_bnx
from benchmarks import frameworks, harness
from keras_bnx.tools.models import batch_normalizations

SIZE, BATCH = 96, 8
# Of the largest output: what the issue of folding asks for.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
MODELS = (
    "MobileNetV2",
    "MobileNetV3Small",
    "ResNet50",
    "ResNet50V2",
    "InceptionV3",
    "Xception",
    "DenseNet121",
    "EfficientNetB0",
    "NASNetMobile",
)


def application(name):
    """A model of random weights, and statistics that its inputs have."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None,
        input_shape=(SIZE, SIZE, 3),
        classes=10,
        classifier_activation=None,
    )
    rng = np.random.default_rng(0)
    layers = batch_normalizations(model)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.5
        # Betas of about 1 leave most ReLUs open, as in a network that has learned to be
        # smooth. With betas about 0 a random one is chaotic: the model's own rounding
        # in float32 is 1e-5 in ResNet50, and 3e-5 in InceptionV3.
        if layer.scale:
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(rng.uniform(0.5, 1.5, layer.beta.shape))
    for _ in range(6):
        model(images(rng), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model


def images(rng):
    """Random images with large and small structures."""
    coarse = rng.normal(size=(BATCH, 6, 6, 3)).repeat(SIZE // 6, 1).repeat(SIZE // 6, 2)
    fine = rng.normal(size=(BATCH, SIZE, SIZE, 3))
    return (0.5 * coarse + 0.2 * fine).astype("float32")


def disagreement(a, b, x):
    """The largest difference of two models' outputs, in parts of the largest output."""
    ya, yb = (
        keras.ops.convert_to_numpy(m(x, training=False)).astype("float64")
        for m in (a, b)
    )
    return np.abs(ya - yb).max() / np.abs(ya).max()


def disagreement_in_float64(name, model, x):
    """The same for the model in float64; `""` where Keras doesn't compute in it.

    On JAX and PyTorch, Keras 3.15 takes averages, batch normalizations and matrix
    products in float32, or has float64 only where JAX's x64 is enabled.
    """
    if keras.config.backend() != "tensorflow":
        return ""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        wide = getattr(keras.applications, name)(
            weights=None,
            input_shape=(SIZE, SIZE, 3),
            classes=10,
            classifier_activation=None,
        )
        wide.set_weights(model.get_weights())
        return disagreement(wide, keras_bnx.fold(wide)[0], x.astype("float64"))
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def measure(name, timing):
    model = application(name)
    folded, report = keras_bnx.fold(model)
    x = images(np.random.default_rng(1))
    errors = {
        "float32": disagreement(model, folded, x),
        "float64": disagreement_in_float64(name, model, x),
    }
    wrong = [k for k, e in errors.items() if e != "" and not e < TOLERANCES[k]]
    functions = {
        provider: lambda m=m: m.predict_on_batch(x)
        for provider, m in {"before": model, "folded": folded}.items()
    }
    others = harness.others()
    samples = harness.interleave(
        functions, synchronize=frameworks.active().synchronize, **timing
    )
    taken = others()
    kept = Counter(record.reason for record in report if record.into is None)
    for provider in functions:
        row = {
            "model": name,
            "batch": BATCH,
            "size": SIZE,
            "provider": provider,
            "normalizations": len(report),
            "folded": len(report.folded),
            "error_float32": errors["float32"],
            "error_float64": errors["float64"],
            "status": "failed" if wrong else "ok",
            "error": f"outputs differ in {', '.join(wrong)}" if wrong else "",
            **harness.summary(samples[provider]),
            "rounds": len(samples[provider]),
            "others": taken,
        }
        print(describe(row), flush=True)
        yield row
    for reason, count in kept.most_common(3):
        print(f"    {count} kept, such as: {reason}")


def describe(row):
    """One line of a row, for those who watch."""
    return (
        f"{row['model']:17} {row['folded']:3} of {row['normalizations']:3} "
        f"{row['error_float32']:.1e} {row['error_float64'] or 0:.1e} "
        f"{row['provider']:7} {row['median_ms']:8.1f} ms "
        f"[{row['p20_ms']:.1f}, {row['p80_ms']:.1f}] {row['error']}"
    )


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    names = MODELS[:1] if arguments.quick else MODELS
    if keras.config.backend() == "torch":
        # Keras 3.15 has it on the other backends only.
        names = [name for name in names if name != "NASNetMobile"]
    rows = [row for name in names for row in measure(name, arguments.timing)]
    print(harness.write(arguments.output, "folding", rows))
    if any(row["status"] != "ok" for row in rows):
        sys.exit("A folded model isn't the model; see the lines above.")


if __name__ == "__main__":
    main()
