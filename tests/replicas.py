"""One layer on several replicas, by each framework's own engine.

`run` gives what every replica gets; `expected` what it should, of the float64 oracle on
the joined batch.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CHANNELS = 3


@dataclass(frozen=True)
class Scenario:
    name: str
    rows: tuple = (6, 6)  # of each replica
    mean: float = 0.0
    masked: bool = False
    synchronized: object = True
    arguments: dict = field(default_factory=dict)
    compiled: bool = False  # PyTorch
    jobs: int = 1  # PyTorch: DistributedDataParallel of so many process groups
    recomputed: bool = False  # PyTorch: in the backward pass, by checkpointing
    twice: bool = False  # also the derivative of dx along dy

    def data(self):
        """Inputs, masks and upstream gradients, lists of one array per replica.

        JAX's replicas are of one shape: what has fewer rows is padded, with NaN.
        """
        rng = np.random.default_rng(len(self.name))
        x = [
            rng.normal(self.mean + 3 * i, 1.0 + i, (n, 5, CHANNELS)).astype("float32")
            for i, n in enumerate(self.rows)
        ]
        dy = [rng.normal(size=v.shape).astype("float32") for v in x]
        masks = [rng.uniform(size=v.shape[:2]) > 0.3 * self.masked for v in x]
        return x, masks, dy

    @property
    def has_masks(self):
        return self.masked or (_backend() == "jax" and len(set(self.rows)) > 1)


SCENARIOS = [
    Scenario("two"),
    Scenario("large mean", mean=1e5),
    Scenario("masks", masked=True, mean=1e3),
    Scenario("unequal", rows=(7, 2, 4)),
    Scenario("a replica without rows", rows=(0, 5, 4), mean=1e3),
    Scenario("nobody has rows", rows=(0, 0)),
    Scenario("one row each", rows=(1, 1)),
    Scenario("renorm", rows=(4, 6, 2), arguments={"renorm": True}, masked=True),
    Scenario("twice", rows=(4, 6), twice=True),
    Scenario("twice, masks", rows=(4, 6), masked=True, twice=True),
    Scenario("unbiased", arguments={"unbiased_moving_variance": True}),
    Scenario("debiased", arguments={"debias_moving_statistics": True}),
    Scenario("no affine", arguments={"center": False, "scale": False}, masked=True),
    Scenario("virtual", rows=(4, 6), arguments={"virtual_batch_size": 2}),
    Scenario("groups", rows=(3, 4, 5, 6), synchronized=2, mean=1e3),
    Scenario("groups, masks", rows=(3, 0, 5, 6), synchronized=2, masked=True),
    Scenario("local, two", rows=(4, 6), synchronized=False, mean=10.0),
    Scenario("local", rows=(3, 5, 7), synchronized=False, mean=10.0),
    Scenario("local, no rows", rows=(0, 5), synchronized=False, masked=True),
    Scenario(
        "local, virtual",
        rows=(5, 6),
        synchronized=False,
        arguments={"virtual_batch_size": 3},
    ),
    *(
        [
            Scenario("compiled", masked=True, compiled=True),
            Scenario("compiled, unequal", rows=(5, 2, 3), compiled=True, mean=1e3),
            Scenario("jobs", rows=(3, 4, 5, 6), jobs=2, mean=10.0),
            Scenario("jobs, recomputed", rows=(3, 4, 5, 6), jobs=2, recomputed=True),
            Scenario("jobs, masks", rows=(3, 0, 5, 6), jobs=2, masked=True),
            Scenario("jobs, local", rows=(3, 4, 5, 6), jobs=2, synchronized=False),
        ]
        if os.environ.get("KERAS_BACKEND") == "torch"
        else []
    ),
]


def build(scenario, *, one=False):
    """The layer of a scenario, the same everywhere; `one` for a single replica."""
    from keras_bnx import BatchNormalization

    arguments = {"momentum": 0.75, **scenario.arguments}
    arguments["synchronized"] = False if one else scenario.synchronized
    if _is_keras():
        import keras

        layer = keras.layers.BatchNormalization(**arguments)
    else:
        axis_name = None if one or _backend() != "jax" else "replicas"
        layer = BatchNormalization(**arguments, axis_name=axis_name)
    layer.build((None, None, CHANNELS))
    rng = np.random.default_rng(3)
    for weight in layer.trainable_variables:
        weight.assign(rng.uniform(0.5, 1.5, CHANNELS).astype("float32"))
    layer.moving_mean.assign(rng.normal(size=CHANNELS).astype("float32"))
    return layer


def expected(scenario):
    """A list of dictionaries, one for each replica: `y`, `dx`, `dgamma` ..."""
    from combinations import oracle_of

    from keras_bnx import reference

    x, masks, dy = scenario.data()
    state, arguments = oracle_of(build(scenario, one=True))
    count = len(x) // scenario.jobs
    size = {True: count, False: 1}.get(scenario.synchronized, scenario.synchronized)

    def step(members, along=0.0):
        joined = [np.concatenate([v[i] for i in members]) for v in (x, masks, dy)]
        inputs = joined[0] + along * joined[2].astype("float64")
        found = reference.batch_normalization(
            inputs, state, arguments, weights=joined[1][..., None]
        )
        return found, reference.gradients(found, joined[2], inputs)[0]

    results = []
    for first in range(0, len(x), size):
        job = first // count * count
        after = step(range(job, job + count))[0].state
        debiased = {f"debiased_{k}": v for k, v in after.debiased.items()}
        statistics = vars(after) | debiased
        members = range(first, first + size)
        found, dx = step(members)
        of_all = {"y": found.y, "dx": dx}
        if scenario.twice:
            # By a difference, whose error is that of its third derivative.
            h = 1e-4
            of_all["d2x"] = (step(members, h)[1] - step(members, -h)[1]) / (2 * h)
        cuts = np.cumsum([scenario.rows[i] for i in members])[:-1]
        parts = {name: np.split(value, cuts) for name, value in of_all.items()}
        for k, i in enumerate(members):
            own = {name: values[k] for name, values in parts.items()}
            dbeta = dy[i].sum((0, 1))
            results.append({**own, "dbeta": dbeta, "statistics": statistics})
    return results


def run(count, *, names=None, keras_layer=False):
    """Runs every scenario of so many replicas, or those of some names, on the CPU.

    With `keras_layer` Keras's layer runs, and what it raises is a result.

    PyTorch's replicas are processes. JAX's and TensorFlow's are devices of one, which
    has to be told before; TensorFlow's collectives can't be of several numbers of them.

    Returns:
        Of each scenario's name a list of dictionaries, one for each replica.
    """
    processes = count if _backend() == "torch" else 1
    variables = {
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "REPLICAS_OF": "keras" if keras_layer else "",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    folder,
                    str(rank),
                    str(count),
                    *(names or []),
                ],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(processes)
        ]
        outputs = [process.communicate(timeout=600)[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("\n".join(outputs))
        found = [
            pickle.loads((Path(folder) / f"{rank}.pickle").read_bytes())
            for rank in range(processes)
        ]
    if processes == 1:
        return {
            name: [result] * count if isinstance(result, Exception) else result
            for name, result in found[0].items()
        }
    return {name: [rank[name] for rank in found] for name in found[0]}


def _backend():
    import keras

    return keras.config.backend()


def _is_keras():
    return os.environ.get("REPLICAS_OF") == "keras"


def _attempt(run, *arguments):
    """What a function returns; of Keras's layer also what it raises."""
    try:
        return run(*arguments)
    except Exception as error:
        if not _is_keras():
            raise
        return RuntimeError(f"{type(error).__name__}: {error}")


def _run_jax(scenario):
    import jax
    from jax.sharding import PartitionSpec as P

    count, most = len(scenario.rows), max(*scenario.rows, 1)
    layer = build(scenario)
    x, masks, dy = scenario.data()

    def padded(values, with_):
        return np.stack(
            [
                np.pad(
                    v,
                    [(0, most - len(v))] + [(0, 0)] * (v.ndim - 1),
                    "constant",
                    constant_values=with_,
                )
                for v in values
            ]
        )

    arrays = padded(x, np.nan), padded(masks, False), padded(dy, 0.0)
    trainable = [v.value for v in layer.trainable_variables]
    state = [v.value for v in layer.non_trainable_variables]

    def step(x, mask, dy, trainable):
        def loss(x, trainable):
            y, after = layer.stateless_call(
                trainable,
                state,
                x[0],
                training=True,
                mask=mask[0] if scenario.has_masks else None,
            )
            return (y * dy[0]).sum(), (y, after)

        # A replica's own gradients of gamma and beta, as engines expect them.
        trainable = jax.tree.map(
            lambda v: jax.lax.pcast(v, "replicas", to="varying"), trainable
        )
        gradients = jax.grad(loss, (0, 1), has_aux=True)
        (dx, dweights), (y, after) = gradients(x, trainable)
        twice = []
        if scenario.twice:
            along = jax.grad(lambda x: (gradients(x, trainable)[0][0] * dy).sum())
            twice = [along(x)]
        return y[None], dx, [d[None] for d in dweights], after, twice

    mesh = jax.make_mesh(
        (count,),
        ("replicas",),
        devices=jax.devices()[:count],
        axis_types=(jax.sharding.AxisType.Auto,),
    )
    each, same = P("replicas"), P()
    # The moving statistics come out as one array: JAX proves that all have the same.
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(each, each, each, same),
        out_specs=(each, each, each, same, each),
    )
    y, dx, dweights, after, twice = jax.jit(mapped)(*arrays, trainable)
    names = [v.name for v in layer.trainable_variables]
    statistics = {
        v.path.split("/", 1)[1]: np.asarray(value)
        for v, value in zip(layer.non_trainable_variables, after, strict=True)
    }
    return [
        {
            "y": np.asarray(y[i])[:n],
            "dx": np.asarray(dx[i])[:n],
            "statistics": statistics,
            **{f"d{k}": np.asarray(d[i]) for k, d in zip(names, dweights, strict=True)},
            **({"d2x": np.asarray(twice[0][i])[:n]} if twice else {}),
        }
        for i, n in enumerate(scenario.rows)
    ]


def _run_tensorflow(scenario):
    import tensorflow as tf

    count = len(scenario.rows)
    devices = tf.config.list_logical_devices("CPU")[:count]
    strategy = tf.distribute.MirroredStrategy([d.name for d in devices])
    with strategy.scope():
        layer = build(scenario)

    def per_replica(values):
        return strategy.experimental_distribute_values_from_function(
            lambda c: tf.constant(values[c.replica_id_in_sync_group])
        )

    @tf.function
    def step(x, mask, dy):
        def replica(x, mask, dy):
            sources = [x, *(v.value for v in layer.trainable_variables)]
            mask = mask if scenario.has_masks else None
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x, training=True, mask=mask)
                    loss = tf.reduce_sum(y * dy)
                found = tape.gradient(loss, sources)
                along = tf.reduce_sum(found[0] * dy)
            twice = [outer.gradient(along, x)] if scenario.twice else []
            return y, *found, *twice

        return strategy.run(replica, (x, mask, dy))

    results = [
        strategy.experimental_local_results(r)
        for r in step(*map(per_replica, scenario.data()))
    ]
    names = ["y", "dx", *(f"d{v.name}" for v in layer.trainable_variables)]
    names += ["d2x"] if scenario.twice else []
    statistics = {
        v.path.split("/", 1)[1]: [
            r.numpy() for r in strategy.experimental_local_results(v.value)
        ]
        for v in layer.non_trainable_variables
    }
    return [
        {
            **{k: r[i].numpy() for k, r in zip(names, results, strict=True)},
            "statistics": {k: v[i] for k, v in statistics.items()},
        }
        for i in range(count)
    ]


def _torch_rank(scenario, rank, jobs):
    import torch

    layer = build(scenario)
    x, mask, dy = (torch.tensor(v[rank]) for v in scenario.data())
    x = x.requires_grad_()
    in_jobs = scenario.jobs > 1
    if not in_jobs and (scenario.synchronized or not layer.trainable_variables):
        call = layer
    else:
        # Its statistics are joined in there; gradients are averaged.
        call = torch.nn.parallel.DistributedDataParallel(
            _recomputed(layer) if scenario.recomputed else layer,
            process_group=jobs[rank // 2] if in_jobs else None,
        )
    if scenario.compiled:
        layer(x.detach(), training=False)
        call = torch.compile(call, fullgraph=True)
    sums, all_reduce = [], torch.distributed.all_reduce

    def counting(value, group=None):
        sums.append(value.numel())
        return all_reduce(value, group=group)

    if not scenario.compiled:
        torch.distributed.all_reduce = counting
    y = call(x, training=True, mask=mask if scenario.has_masks else None)
    (y * dy).sum().backward(retain_graph=scenario.twice)
    torch.distributed.all_reduce = all_reduce
    twice = {}
    if scenario.twice:
        (dx,) = torch.autograd.grad((y * dy).sum(), x, create_graph=True)
        twice["d2x"] = torch.autograd.grad((dx * dy).sum(), x)[0].numpy()
    return {
        **twice,
        "sums": sums,
        "y": y.detach().numpy(),
        "dx": x.grad.numpy(),
        "statistics": {
            v.path.split("/", 1)[1]: v.value.detach().numpy().copy()
            for v in layer.non_trainable_variables
        },
        **(
            {f"d{v.name}": v.value.grad.numpy() for v in layer.trainable_variables}
            if scenario.synchronized and not in_jobs
            else {}
        ),
    }


def _recomputed(layer):
    import torch

    class Recomputed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, **kwargs):
            return torch.utils.checkpoint.checkpoint(
                self.layer, x, use_reentrant=False, **kwargs
            )

    return Recomputed()


def _torch_jobs(rank, group):
    """Jobs of their own number of steps, and so of their own statistics."""
    import torch

    from keras_bnx import BatchNormalization

    means = {}
    for synchronized in (True, False):
        layer = BatchNormalization(momentum=0.0, synchronized=synchronized)
        layer.build((None, CHANNELS))
        call = torch.nn.parallel.DistributedDataParallel(layer, process_group=group)
        for _ in range(1 + rank // 2):
            x = torch.full((4, CHANNELS), float(rank % 2 + 10 * (rank // 2)))
            call(x.requires_grad_(), training=True).sum().backward()
        means[synchronized] = layer.moving_mean.value.detach().numpy().copy()
    return {"jobs that stop": means}


def _main(folder, rank, count, names):
    scenarios = [s for s in SCENARIOS if len(s.rows) == count]
    if names:
        scenarios = [s for s in scenarios if s.name in names]
    if _backend() == "jax":
        results = {s.name: _attempt(_run_jax, s) for s in scenarios}
    elif _backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
        results = {s.name: _attempt(_run_tensorflow, s) for s in scenarios}
    else:
        from torch import distributed

        store = f"file://{folder}/store"
        distributed.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=count
        )
        # Each process has to know of every group.
        jobs = [distributed.new_group([i, i + 1]) for i in range(0, count - 1, 2)]
        results = {s.name: _attempt(_torch_rank, s, rank, jobs) for s in scenarios}
        if count == 4 and not names:
            results |= _torch_jobs(rank, jobs[rank // 2])
        distributed.destroy_process_group()
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
