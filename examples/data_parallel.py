"""Trains on two replicas, with statistics of both and of each, by three engines.

    python examples/data_parallel.py --backend torch        # two processes
    python examples/data_parallel.py --backend jax          # two devices
    python examples/data_parallel.py --backend tensorflow   # two devices
    python examples/data_parallel.py --quick                # 8x8 digits

The article's convolutions (devanagari_cnn.py) are trained three times, on the same
batches of 32 images in the same order, from the same weights:

- one: a single replica, by `fit`;
- synchronized: two replicas with 16 images each, and `synchronized=True`;
- local: the same, where each normalizes by its own 16.

The second replica's images are fainter, as where each reads a scanner's files. Local
statistics make up for that in training; at inference, where there is one set of them,
nothing does.

A CPU is cut in two for it; on other devices the code is the same. PyTorch's engine is
`DistributedDataParallel`, JAX's `shard_map`, TensorFlow's `MirroredStrategy`.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import functools
import os
import pathlib
import pickle
import tempfile

import numpy as np

# keras, keras_bnx and the engines are imported inside the functions that use them: the
# backend is fixed by the first import of keras, and `--backend` has to come before.
from common import (
    BACKENDS,
    COLOURS,
    IMAGES,
    format_table,
    new_figure,
    new_parser,
    parse,
    save,
    write_report,
)
from devanagari_cnn import TITLE, build_model, load
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

DEFAULTS = {"epochs": 5, "images": 4000}
QUICK = {"epochs": 4, "images": 1024}
BATCH_SIZE, REPLICAS = 32, 2
FAINT = 0.3  # the brightness of the second replica's images
VARIANTS = {
    "one": "one replica of 32",
    "synchronized": "two of 16, synchronized",
    "local": "two of 16, local",
}
LINES = {
    "one": {"color": COLOURS["orange"], "linestyle": "-", "linewidth": 6, "alpha": 0.5},
    "synchronized": {"color": COLOURS["blue"], "linestyle": "--"},
    "local": {"color": COLOURS["vermilion"], "linestyle": ":"},
}


def make_model(image_shape, variant):
    """Builds the network of a variant, with the same initial weights each time."""
    import keras

    import keras_bnx

    keras.utils.set_random_seed(0)
    model = build_model(image_shape, normalization=True, momentum=0.9)
    compiled = model.get_compile_config()
    model = keras_bnx.convert(
        model, synchronized=variant == "synchronized", axis_name="replicas"
    )
    model.compile_from_config(compiled)
    return model


def fade(images, size):
    """Dims the second half of every `size` images, and scales pixels to 1."""
    second = np.arange(len(images)) % size >= size // 2
    return images / 255 * np.where(second, FAINT, 1.0)[:, None, None]


def train(variant, train_data, test_data, epochs):
    """Trains one variant.

    Args:
        variant: one of `VARIANTS`.
        train_data, test_data: tuples of images, pixels from 0 to 1, and labels. A
            multiple of `BATCH_SIZE` images to train on, in order.
        epochs: integer, how often to go through them.

    Returns:
        Dictionary of lists, one number an epoch: `loss`, the mean of the batches', in
        training, and `accuracy` on the test images.
    """
    import keras

    backend = keras.config.backend()
    if variant == "one":
        model = make_model(train_data[0].shape[1:], variant)
        return _fit(model, train_data, test_data, epochs)
    engine = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[backend]
    return engine(variant, train_data, test_data, epochs)


def _fit(model, train_data, test_data, epochs):
    history = model.fit(
        *train_data,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        shuffle=False,
        validation_data=test_data,
    ).history
    return {"loss": history["loss"], "accuracy": history["val_accuracy"]}


@functools.cache
def _strategy():
    # The collectives of two strategies on the same CPUs would meet.
    import tensorflow as tf

    devices = tf.config.list_logical_devices()[:REPLICAS]
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _tensorflow(variant, train_data, test_data, epochs):
    with _strategy().scope():
        model = make_model(train_data[0].shape[1:], variant)
    # It hands each replica its half of each batch.
    return _fit(model, train_data, test_data, epochs)


def _jax(variant, train_data, test_data, epochs):
    import jax
    from jax.sharding import PartitionSpec

    model = make_model(train_data[0].shape[1:], variant)
    loss_function = model.loss
    model.optimizer.build(model.trainable_variables)

    def step(trainable, state, optimizer, x, y):
        def loss(trainable):
            outputs, after = model.stateless_call(trainable, state, x, training=True)
            return jax.lax.pmean(loss_function(y, outputs), "replicas"), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        updated = model.optimizer.stateless_apply(optimizer, gradients, trainable)
        return value, *updated, after

    mesh = jax.make_mesh(
        (REPLICAS,),
        ("replicas",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:REPLICAS],
    )
    same, halves = PartitionSpec(), PartitionSpec("replicas")
    run = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(same, same, same, halves, halves),
            out_specs=same,
        )
    )
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
    )
    trainable, state, optimizer = ([v.value for v in part] for part in variables)
    results = {"loss": [], "accuracy": []}
    for _ in range(epochs):
        losses = []
        for x, y in _batches(*train_data):
            loss, trainable, optimizer, state = run(trainable, state, optimizer, x, y)
            losses.append(float(loss))
        for part, values in zip(variables, (trainable, state, optimizer), strict=True):
            for variable, value in zip(part, values, strict=True):
                variable.assign(jax.device_get(value))
        _record(results, losses, model, test_data)
    return results


def _torch(variant, train_data, test_data, epochs):
    import torch

    with tempfile.TemporaryDirectory() as folder:
        arguments = folder, variant, train_data, test_data, epochs
        # One process a replica; `torchrun` does the same over several machines.
        torch.multiprocessing.spawn(_torch_replica, arguments, nprocs=REPLICAS)
        return pickle.loads(pathlib.Path(folder, "results").read_bytes())


def _torch_replica(rank, folder, variant, train_data, test_data, epochs):
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=REPLICAS
    )
    model = make_model(train_data[0].shape[1:], variant)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    results, own = {"loss": [], "accuracy": []}, BATCH_SIZE // REPLICAS
    for _ in range(epochs):
        losses = []
        for x, y in _batches(*train_data):
            half = slice(rank * own, (rank + 1) * own)
            outputs = parallel(torch.tensor(x[half]), training=True)
            loss = model.loss(torch.tensor(y[half]), outputs)
            model.zero_grad()
            # It averages the gradients over the replicas.
            loss.backward()
            gradients = [v.value.grad for v in model.trainable_variables]
            with torch.no_grad():
                model.optimizer.apply(gradients, model.trainable_variables)
            losses.append(loss.detach())
        losses = torch.stack(losses)
        distributed.all_reduce(losses, distributed.ReduceOp.AVG)
        _record(results, losses.tolist(), model, test_data)
    if rank == 0:
        pathlib.Path(folder, "results").write_bytes(pickle.dumps(results))
    distributed.destroy_process_group()


def _batches(x, y):
    for start in range(0, len(x), BATCH_SIZE):
        yield x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]


def _record(results, losses, model, test_data):
    results["loss"].append(float(np.mean(losses)))
    results["accuracy"].append(model.evaluate(*test_data, verbose=0)[1])


def largest_difference(results, variant):
    """How far a training curve is from that of one replica, at most, in nats."""
    difference = np.subtract(results[variant]["loss"], results["one"]["loss"])
    return float(np.abs(difference).max())


def tabulate(results):
    """Returns the table of all variants, in Markdown."""
    rows = [
        [
            VARIANTS[variant],
            f"{result['loss'][-1]:.4f}",
            "" if variant == "one" else f"{largest_difference(results, variant):.1e}",
            f"{100 * result['accuracy'][-1]:.1f}",
        ]
        for variant, result in results.items()
    ]
    header = ["training", "last loss", "largest difference", "test accuracy (%)"]
    return format_table(header, rows)


def read_numbers(results):
    """Says in words what the numbers say."""
    synchronized, local = (
        largest_difference(results, variant) for variant in ("synchronized", "local")
    )
    return (
        f"Synchronized, the training curve is that of one replica but for "
        f"{synchronized:.1e} nats of rounding; with local statistics it is "
        f"{local:.1e} off, {local / synchronized:.0f} times as much, and "
        f"{100 * results['local']['accuracy'][-1]:.1f}% of the test images are "
        f"recognized in place of {100 * results['synchronized']['accuracy'][-1]:.1f}%."
    )


def plot(results, path, *, title):
    """Draws the training curves, and the accuracy on test images."""
    figure, (loss, accuracy) = new_figure(title, size=(11, 5.6))
    for variant, result in results.items():
        epochs = range(1, len(result["loss"]) + 1)
        style = {"linewidth": 2.5, **LINES[variant]}
        loss.plot(epochs, result["loss"], label=VARIANTS[variant], **style)
        accuracy.plot(epochs, 100 * np.array(result["accuracy"]), **style)
    loss.set_ylabel("training loss (nats, log scale)", fontsize=15)
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    accuracy.set_ylabel("test accuracy (%)", fontsize=15)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch", fontsize=15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path, ncols=3, handlelength=2.5, columnspacing=1.2)


def check(args):
    """Checks the images, which have to fill a batch."""
    if args.images < BATCH_SIZE:
        raise ValueError(
            f"`--images` has to be at least {BATCH_SIZE}, a batch. "
            f"Received: --images {args.images}. Leave it out for the default."
        )


def cut_cpu_in_two():
    """Makes a device of each half of the CPU, on TensorFlow."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if not tf.config.get_logical_device_configuration(cpu):
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS
        )


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary, of each variant what `train` returns.
    """
    # JAX reads it when it is imported.
    flag = f"--xla_force_host_platform_device_count={REPLICAS}"
    os.environ.setdefault("XLA_FLAGS", flag)
    parser = new_parser(__doc__)
    parser.add_argument("--path", help="file of the Devanagari digits")
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK, check=check)
    if args.backend == "tensorflow":
        cut_cpu_in_two()
    (x_train, y_train), (x_test, y_test) = load(parser, args)
    images = min(args.images, len(x_train)) // BATCH_SIZE * BATCH_SIZE
    train_data = fade(x_train[:images], BATCH_SIZE), y_train[:images].astype("int32")
    test_data = fade(x_test, 2), y_test.astype("int32")
    name = IMAGES["digits"] if args.quick else TITLE
    title = f"{name}, Keras on {BACKENDS[args.backend]}"
    print(f"{title}: {len(train_data[0])} training images, {len(x_test)} test images")

    results = {}
    for variant, words in VARIANTS.items():
        print(f"\n{words}", flush=True)
        results[variant] = train(variant, train_data, test_data, args.epochs)
    figure = f"data_parallel_{args.backend}.png"
    plot(results, args.output / figure, title=title)
    write_report(
        args,
        "data_parallel",
        title,
        [tabulate(results), read_numbers(results)],
        {figure: "Training curves on one replica and two"},
        suffix=f"_{args.backend}",
    )
    return results


if __name__ == "__main__":
    main()
