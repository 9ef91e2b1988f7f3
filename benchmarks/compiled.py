"""Whole networks under `torch.compile`: graphs, time to compile, time of a step.

    KERAS_BACKEND=torch python -m benchmarks.compiled [--quick]

A graph that breaks goes back to Python, which runs what can't be compiled, and starts
again: each piece is compiled and called on its own. Both networks have the same
weights; a step is the outputs in training mode, their sum, and the gradients of the
weights, by the code generator's default settings. Prints a table in Markdown.
"""

import sys
import time

import keras
import torch

# The code generator by its default settings, as a function that can be counted.
from torch._inductor.compile_fx import compile_fx

from benchmarks import frameworks, harness
from benchmarks.model import BATCH, MODELS, with_ours

NETWORKS = ("three convolutions, 32x32", "ResNet50, 64x64")


def compiled_step(model, x):
    """A step, how many graphs it is compiled to, and the seconds that took."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return compile_fx(graph, inputs)

    forward = torch.compile(lambda x: model(x, training=True), backend=counting)
    weights = [v.value for v in model.trainable_variables]

    def step():
        return torch.autograd.grad(forward(x).sum(), weights)

    torch.compiler.reset()
    # Keras creates a global at its first call, which the next one's guards miss.
    model(x, training=True)
    start = time.perf_counter()
    step()
    return step, len(graphs), time.perf_counter() - start


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    print(
        "| network | layer | graphs | seconds to compile | ms a step (20 % to 80 %) |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name in NETWORKS[:1] if arguments.quick else NETWORKS:
        kerass = MODELS[name]()
        x = torch.randn(BATCH, *kerass.input_shape[1:])
        models = {"ours": with_ours(kerass), "Keras": kerass}
        found = {key: compiled_step(model, x) for key, model in models.items()}
        samples = harness.interleave(
            {key: step for key, (step, *_) in found.items()},
            synchronize=frameworks.active().synchronize,
            **arguments.timing,
        )
        for key, (_, graphs, seconds) in found.items():
            times = harness.summary(samples[key])
            times = "{median_ms:.1f} ({p20_ms:.1f} to {p80_ms:.1f})".format(**times)
            row = f"| {name} | {key} | {graphs} | {seconds:.0f} | {times} |"
            print(row, flush=True)


if __name__ == "__main__":
    if keras.config.backend() != "torch":
        sys.exit("Only PyTorch has torch.compile: set KERAS_BACKEND=torch.")
    main()
