"""Peak memory of a training step of networks: Keras's layer, ours, ours fused.

    KERAS_BACKEND=torch python -m benchmarks.peak [--quick] [--output DIR]

Each is measured in a process of its own, on the third `train_on_batch` of 32 images:
by then everything is compiled, and weights and gradients have their memory. What the
step takes beyond that grows with the batch. `largest` is the largest batch for which
that fits in 8 GiB, by proportion.
"""

import concurrent.futures
import multiprocessing

import keras
import numpy as np

from benchmarks import harness
from benchmarks.activation import BATCH, MODELS, PROVIDERS
from benchmarks.model import application

SIZES = (64, 224)  # pixels
MEMORY = 2**33


def step_peak(name, size, provider):
    """The bytes that a step takes at most, in this process."""
    model = PROVIDERS[provider](application(name, size)())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 255.0, (BATCH, size, size, 3)).astype("float32")
    labels = rng.integers(10, size=BATCH)
    for _ in range(2):
        model.train_on_batch(x, labels)
    return harness.peak_memory(lambda: model.train_on_batch(x, labels))


def measure(name, size, provider):
    # A process that has run another network keeps some of its memory.
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as process:
        peak = process.submit(step_peak, name, size, provider).result()
    print(f"{name:17} {size:4} {provider:6} {peak / 2**20:8.0f} MiB", flush=True)
    return {
        "model": name,
        "batch": BATCH,
        "size": size,
        "provider": provider,
        "bytes": peak,
        "largest": MEMORY * BATCH // peak,
        "status": "ok",
    }


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    names, sizes = (MODELS[:1], SIZES[:1]) if arguments.quick else (MODELS, SIZES)
    rows = [
        measure(name, size, provider)
        for size in sizes
        for name in names
        for provider in PROVIDERS
    ]
    print(harness.write(arguments.output, "peak", rows))


if __name__ == "__main__":
    main()
