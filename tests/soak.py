"""Long runs and faults: `python tests/soak.py`, for the backend of KERAS_BACKEND.

- Steps: thousands of them on random batches and masks, empty ones among them, with an
  inf in every hundredth, in 32 and 16 bits. Each moving statistic stays finite and at
  the oracle's, which takes the same steps in float64, and the process doesn't grow.
- Kills: `kill -9` at a random moment while models are saved, trained with checkpoints
  and recalibrated. What lies there afterwards loads into a state that the model had.
  What Keras was writing may be cut, what our command was writing may not.
- Threads: predictions of one model at the same time are those of one at a time.

`nox -s soak` runs it, and `tests/test_soak.py` a short form.
"""

import argparse
import hashlib
import os
import random
import resource
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RUNS = (
    ("float32", {}),
    ("mixed_float16", {"renorm": True, "debias_moving_statistics": True}),
    ("mixed_bfloat16", {"unbiased_moving_variance": True}),
)
ROWS = (32, 7, 1, 0)
CHANNELS = 4


def steps(count, policy, **arguments):
    """Takes training steps; returns by how much the process grew, in MiB.

    Raises:
        AssertionError: where a statistic isn't the oracle's, a number isn't finite
            that should be, or memory grows.
    """
    from combinations import oracle_of
    from frameworks import statistics, to_numpy, with_gradients
    from keras import ops
    from tolerance import assert_near

    from keras_bnx import BatchNormalization, reference

    momentum = 0.9
    layer = BatchNormalization(momentum=momentum, dtype=policy, **arguments)
    layer.build((None, CHANNELS))
    dtype = layer.compute_dtype
    state, how = oracle_of(layer)
    # PyTorch's compiler has nothing to win here, and a graph for each shape to keep.
    run = with_gradients(layer, how="eager" if is_torch() else "compiled")
    rng = np.random.default_rng(0)
    settled = None
    for step in range(count):
        rows = ROWS[rng.choice(len(ROWS), p=[0.6, 0.2, 0.1, 0.1])]
        x = rng.normal(rng.normal(0.0, 2.0), 1.5, (rows, CHANNELS))
        # Numbers that 16 bits have, so that the oracle sees the same.
        x = np.round(x * 16) / 16
        bad = step % 100 == 50 and rows > 0
        if bad:
            x[rng.integers(rows), rng.integers(CHANNELS)] = np.inf
        mask = rng.uniform(size=rows) > rng.choice([0.0, 0.3, 1.0], p=[0.5, 0.4, 0.1])
        expected = reference.batch_normalization(x, state, how, weights=mask[:, None])
        state = expected.state

        upstream = ops.ones(x.shape, dtype)
        found = run(ops.cast(x, dtype), upstream, ops.convert_to_tensor(mask))
        if not bad:
            for name, value in found.items():
                assert np.isfinite(to_numpy(value)).all(), f"{name} in step {step}"
        if step % 100 == 99 or step == count - 1:
            wanted = {f"debiased_{k}": v for k, v in state.debiased.items()}
            wanted |= vars(state)
            for name, value in statistics(layer).items():
                assert np.isfinite(value).all(), f"{name} after step {step}"
                # Each step rounds a few times, and 1 / (1 - momentum) of them count.
                units = 16.0 / (1 - momentum)
                assert_near(value, wanted[name], scale=1.0, units=units)
        if step == count // 3:
            settled = memory()
    grown = memory() - settled
    # Four shapes and one layer: what a step leaves would be there thousands of times.
    assert grown < 16.0, f"{grown:.0f} MiB more after {count} steps"
    return grown


def memory():
    """The memory that the process has, in MiB; or where nothing tells, the most."""
    told = Path("/proc/self/statm")
    if told.exists():
        return int(told.read_text().split()[1]) * resource.getpagesize() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def is_torch():
    import keras

    return keras.config.backend() == "torch"


# ---- Kills


def network():
    import keras

    from keras_bnx import BatchNormalization

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((CHANNELS,)),
            keras.layers.Dense(256),
            BatchNormalization(name="bn", renorm=True, momentum=None),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", keras.losses.MeanSquaredError())
    return model


def digest(model):
    """A hash of all weights, bit for bit."""
    found = hashlib.sha256()
    for weight in model.get_weights():
        found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()


def announce(model):
    print(digest(model), flush=True)


def saving(folder):
    """Saves one model after another over the last one."""
    model, path = network(), Path(folder) / "model.keras"
    while True:
        layer = model.get_layer("bn")
        layer.moving_mean.assign(layer.moving_mean + 1.0)
        announce(model)
        model.save(path)


def fitting(folder):
    """Trains, and saves a checkpoint after each epoch."""
    import keras

    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (64, CHANNELS)).astype("float32")
    model = network()
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: announce(model)
    )
    path = str(Path(folder) / "checkpoint.keras")
    saved = keras.callbacks.ModelCheckpoint(path)
    model.fit(x, x[:, :1], epochs=10**6, verbose=0, callbacks=[told, saved])


def recalibrating(folder):
    """Recalibrates a file in place, on one data set and on another."""
    import keras

    from keras_bnx.__main__ import main

    folder = Path(folder)
    path = str(folder / "recalibrated.keras")
    network().save(path)
    data = []
    for mean in (0.0, 5.0):
        data.append(str(folder / f"{mean}.npz"))
        x = np.random.default_rng(0).normal(mean, 1.0, (64, CHANNELS))
        np.savez(data[-1], x.astype("float32"))
    for turn in range(10**6):
        arguments = ["--data", data[turn % 2], "--output", path, "--quiet"]
        main(["recalibrate", path, *arguments])
        if turn < 4:
            announce(keras.models.load_model(path))
        if turn == 3:
            print("all known", flush=True)


JOBS = {"saving": saving, "fitting": fitting, "recalibrating": recalibrating}


def kill(job, folder, rng):
    """Kills a job at a random moment, and loads what it has left.

    Returns:
        Of each file whether it was "whole" or "cut".

    Raises:
        AssertionError: if a file loads into what its model never was.
    """
    import keras

    import keras_bnx  # noqa: F401 - so that Keras knows its layer

    with subprocess.Popen(
        [sys.executable, __file__, "--job", job, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        states = [child.stdout.readline().strip()]
        if job == "recalibrating":
            # Two states for ever, which are known once both have been there.
            while states[-1] not in ("all known", ""):
                states.append(child.stdout.readline().strip())
        time.sleep(rng.uniform(0.0, 1.0))
        child.kill()
        states += child.stdout.read().split()
    assert len(states[0]) == 64, f"{job} has stopped by itself"

    found = {}
    for path in Path(folder).glob("*.keras"):
        if not zipfile.is_zipfile(path):
            # Keras writes from the start to the end of a file, which is then no
            # archive; what is written whole was written to a file beside.
            assert path.name != "recalibrated.keras", "the command's file is cut"
            found[path.name] = "cut"
            continue
        model = keras.models.load_model(path)
        assert digest(model) in states, f"{job}: {path.name} is no state of its model"
        found[path.name] = "whole"
    return found


# ---- Threads


def threads(count, times):
    """Predicts by one model in several threads at the same time."""
    import keras
    from frameworks import to_numpy

    model = network()
    x = [np.random.default_rng(i).normal(size=(16, CHANNELS)) for i in range(count)]
    x = [keras.ops.convert_to_tensor(v.astype("float32")) for v in x]
    model.train_on_batch(x[0], x[0][:, :1])
    alone = [to_numpy(model(v, training=False)) for v in x]

    def predict(i):
        return [to_numpy(model(x[i], training=False)) for _ in range(times)]

    with ThreadPoolExecutor(count) as pool:
        for found, expected in zip(pool.map(predict, range(count)), alone, strict=True):
            for y in found:
                np.testing.assert_array_equal(y, expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="of each policy")
    parser.add_argument("--kills", type=int, default=10, help="of each job")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        JOBS[arguments.job](arguments.folder)
        return
    import tempfile

    for policy, options in RUNS:
        start = time.monotonic()
        grown = steps(arguments.steps, policy, **options)
        print(
            f"{arguments.steps} steps, {policy}, {options}: as the oracle, "
            f"{grown:.1f} MiB grown, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    threads(8, 100)
    print("8 threads predict what one does", flush=True)
    rng = random.Random(arguments.seed)
    for job in JOBS:
        counts = {}
        for _ in range(arguments.kills):
            with tempfile.TemporaryDirectory() as folder:
                for name, state in kill(job, folder, rng).items():
                    kind = "beside" if name.startswith(".") else state
                    counts[kind] = counts.get(kind, 0) + 1
        print(f"{job}, {arguments.kills} times killed: {counts}", flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    main()
