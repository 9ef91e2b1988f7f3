"""What synchronizing costs on PyTorch: two processes beside each other.

    KERAS_BACKEND=torch python -m benchmarks.replicas

A training step (forward, gradients of inputs, gamma and beta, update) of a layer that
each process has for itself, of one that is synchronized, and of
`torch.nn.SyncBatchNorm` where there are two GPUs, which it needs. Both processes take
the same steps in turns; a step has ended when both have.
"""

import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import torch
from torch import distributed

import keras_bnx
from benchmarks import harness

REPLICAS = 2
SHAPES = ((256, 64), (1024, 512), (32, 14, 14, 256), (32, 56, 56, 64))
ROUNDS, WARM_UP = 40, 5


def layers(shape):
    """Functions from inputs to outputs, and what they train."""
    found = {}
    for name, synchronized in (("alone", False), ("synchronized", True)):
        layer = keras_bnx.BatchNormalization(synchronized=synchronized)
        layer.build(shape)

        def call(x, layer=layer):
            return layer(x, training=True)

        found[name] = call, [layer.gamma.value, layer.beta.value]
    if torch.cuda.device_count() >= REPLICAS:
        native = torch.nn.SyncBatchNorm(shape[-1]).cuda()

        def call_native(x):
            return native(x.movedim(-1, 1)).movedim(1, -1)

        found["torch.nn.SyncBatchNorm"] = call_native, list(native.parameters())
    return found


def measure(rank, folder):
    cuda = torch.cuda.device_count() >= REPLICAS
    if cuda:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=REPLICAS,
    )
    results = {}
    for shape in SHAPES:
        functions = layers(shape)
        x = torch.randn(shape, device="cuda" if cuda else "cpu", requires_grad=True)
        dy = torch.randn_like(x)
        samples = {name: [] for name in functions}
        for _ in range(ROUNDS + WARM_UP):
            for name, (call, weights) in functions.items():
                distributed.barrier()
                start = time.perf_counter()
                torch.autograd.grad(call(x), [x, *weights], dy)
                distributed.barrier()
                samples[name].append(1e3 * (time.perf_counter() - start))
        results[shape] = {name: sample[WARM_UP:] for name, sample in samples.items()}
    if rank == 0:
        Path(folder, "results").write_bytes(pickle.dumps(results))
    distributed.destroy_process_group()


def main():
    if keras.config.backend() != "torch":
        sys.exit(
            "Only PyTorch has another layer to compare with. Received: KERAS_BACKEND="
            f"{keras.config.backend()}. Set it to torch."
        )
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (folder,), nprocs=REPLICAS)
        results = pickle.loads(Path(folder, "results").read_bytes())
    print("| inputs | layer | ms, median (20th to 80th percentile) | times alone |")
    print("| --- | --- | --- | --- |")
    for shape, samples in results.items():
        alone = statistics.median(samples["alone"])
        for name, sample in samples.items():
            low, *_, high = statistics.quantiles(sample, n=5)
            median = statistics.median(sample)
            print(
                f"| {shape} | {name} | {median:.2f} ({low:.2f} to {high:.2f}) "
                f"| {median / alone:.2f} |"
            )
    facts = harness.environment()
    print(f"\n{', '.join(f'{name} {value}' for name, value in facts.items())}")


if __name__ == "__main__":
    main()
