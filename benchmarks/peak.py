"""Peak memory of a training step of networks: Keras's layer, ours, ours fused.

    KERAS_BACKEND=torch python -m benchmarks.peak [--quick] [--output DIR]

What grows with the batch, for 32 images: by the difference between the peaks of two
batch sizes, each in a process of its own, in the third `train_on_batch`; by then
everything is compiled. Weights, gradients and compiled code are the same in both.
`largest` is the largest batch for which that fits in 8 GiB, by proportion.
"""

import keras

from benchmarks import harness
from benchmarks.activation import BATCH, MODELS, PROVIDERS, data
from benchmarks.model import application

# By the size of the images in pixels; what is small needs more of them to be seen.
BATCHES = {64: (32, 96), 224: (16, 32)}
MEMORY = 2**33


def step_peak(name, size, provider, batch):
    """The most memory that this process has in a step, in bytes."""
    model = PROVIDERS[provider](application(name, size)())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    x, labels = data(batch, size)
    for _ in range(2):
        model.train_on_batch(x, labels)
    return harness.peak_memory(lambda: model.train_on_batch(x, labels))


def measure(name, size, provider):
    # A process that has run another network keeps some of its memory.
    peaks = {
        batch: harness.in_new_process(step_peak, name, size, provider, batch)
        for batch in BATCHES[size]
    }
    small, large = BATCHES[size]
    grows = (peaks[large] - peaks[small]) * BATCH // (large - small)
    print(f"{name:17} {size:4} {provider:6} {grows / 2**20:8.0f} MiB", flush=True)
    return {
        "model": name,
        "batch": BATCH,
        "size": size,
        "provider": provider,
        "bytes": grows,
        "peak": peaks[BATCH],
        "largest": MEMORY * BATCH // grows,
        "status": "ok",
    }


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    names, sizes = (MODELS[:1], [64]) if arguments.quick else (MODELS, BATCHES)
    rows = [
        measure(name, size, provider)
        for size in sizes
        for name in names
        for provider in PROVIDERS
    ]
    print(harness.write(arguments.output, "peak", rows))


if __name__ == "__main__":
    main()
