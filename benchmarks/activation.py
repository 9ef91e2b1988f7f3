"""Networks with their activations fused: bytes and time of a training step.

    KERAS_BACKEND=torch python -m benchmarks.activation [--quick] [--output DIR]

Bytes are those of a training step of 32 images of 64x64: on PyTorch what autograd
keeps for the backward pass, weights left out; on JAX the temporary memory of the
compiled step; on TensorFlow, which doesn't say, none. `benchmarks.peak` has what the
whole process takes.
"""

import functools
import sys

import keras
import numpy as np

import keras_bnx
from benchmarks import frameworks, harness
from benchmarks.folding import disagreement
from benchmarks.model import TOLERANCE, application
from keras_bnx.tools.models import activation_of, batch_normalizations

BATCH, SIZE = 32, 64
MODELS = (
    "MobileNetV2",
    "MobileNetV3Large",
    "EfficientNetB0",
    "DenseNet121",
    "ResNet50",
    "ResNet50V2",
)
# What makes a model's other forms.
PROVIDERS = {
    "keras": lambda model: model,
    "ours": keras_bnx.convert,
    "fused": functools.partial(keras_bnx.convert, fuse_activations=True),
}


def data(batch, size):
    """Images of `size` pixels each way, and labels."""
    rng = np.random.default_rng(0)
    # MobileNetV3 rescales from 0..255, EfficientNet normalizes.
    x = rng.uniform(0.0, 255.0, (batch, size, size, 3)).astype("float32")
    return x, rng.integers(10, size=batch)


def measure(name, timing):
    model = application(name, SIZE)()
    models = {provider: convert(model) for provider, convert in PROVIDERS.items()}
    x, labels = data(BATCH, SIZE)
    # At inference: in training some of them drop at random.
    error = disagreement(models["ours"], models["fused"], x)
    layers = batch_normalizations(models["fused"])
    fused = [layer for layer in layers if activation_of(layer) is not None]
    for each in models.values():
        each.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    functions = {
        provider: lambda m=m: m.train_on_batch(x, labels)
        for provider, m in models.items()
    }
    sizes = {k: frameworks.active().model_bytes(m, x) for k, m in models.items()}
    others = harness.others()
    samples = harness.interleave(
        functions, synchronize=frameworks.active().synchronize, **timing
    )
    taken = others()
    for provider, size in sizes.items():
        right = error < TOLERANCE
        row = {
            "model": name,
            "batch": BATCH,
            "size": SIZE,
            "provider": provider,
            "fused": len(fused),
            "bytes": size,
            "status": "ok" if right else "failed",
            "error": "" if right else f"outputs differ by {error:.2g}",
            **harness.summary(samples[provider]),
            "rounds": len(samples[provider]),
            "others": taken,
        }
        print(
            f"{name:17} {provider:6} {size / 2**20 if size else 0:8.1f} MiB "
            f"{row['median_ms']:8.1f} ms [{row['p20_ms']:.1f}, {row['p80_ms']:.1f}] "
            f"{row['error']}",
            flush=True,
        )
        yield row


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    names = MODELS[:1] if arguments.quick else MODELS
    rows = [row for name in names for row in measure(name, arguments.timing)]
    print(harness.write(arguments.output, "activation", rows))
    if any(row["status"] != "ok" for row in rows):
        sys.exit("A fused model isn't the model; see the lines above.")


if __name__ == "__main__":
    main()
