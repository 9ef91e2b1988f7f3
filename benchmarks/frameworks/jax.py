"""JAX: one `jax.jit` over the step; native is `flax.nnx.BatchNorm`."""

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.frameworks import EPSILON, MOMENTUM

PACKAGES = ("jax", "flax")

# Calls that don't depend on each other would otherwise run at the same time.
jax.config.update("jax_cpu_enable_async_dispatch", False)

_last = []  # what the device may still be working on


def accelerator():
    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.device_kind


def synchronize():
    jax.block_until_ready(_last)
    _last.clear()


def _run(function, *args):
    # A device finishes calls in the order they came: the last one stands for all.
    _last[:] = [function(*args)]
    return _last[0]


def copy_step(x):
    negative = jax.jit(jnp.negative)
    return lambda: _run(negative, x)


class keras_layer:
    def __init__(self, layer, shape):
        layer.build(shape)
        self.layer = layer
        self.trainable = [v.value for v in layer.trainable_variables]
        self.state = [v.value for v in layer.non_trainable_variables]

    def __call__(self, trainable, state, x, training):
        return self.layer.stateless_call(trainable, state, x, training=training)

    @property
    def moving_mean(self):
        return self.state[0]


class native_layer:
    def __init__(self, shape, axis, dtype):
        self.graph, self.trainable, self.state = nnx.split(
            nnx.BatchNorm(
                shape[axis],
                axis=axis,
                momentum=MOMENTUM,
                epsilon=EPSILON,
                dtype=dtype,
                rngs=nnx.Rngs(0),
            ),
            nnx.Param,
            nnx.BatchStat,
        )

    def __call__(self, trainable, state, x, training):
        # A copy: Flax forbids changing variables of an outer trace.
        module = nnx.merge(self.graph, trainable, state, copy=True)
        y = module(x, use_running_average=not training)
        return y, nnx.state(module, nnx.BatchStat)

    @property
    def moving_mean(self):
        return self.state["mean"][...]


def training_step(subject, x, dy):
    @jax.jit
    def step(trainable, state, x, dy):
        def forward(trainable, x):
            return subject(trainable, state, x, training=True)

        y, backward, state = jax.vjp(forward, trainable, x, has_aux=True)
        # In a network dy comes of y. Here it is known from the start, and without
        # the barrier its sums would be taken along with the forward pass's.
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, state, *backward(dy)

    def run():
        y, subject.state, _, dx = _run(step, subject.trainable, subject.state, x, dy)
        return y, dx

    return run


def inference_step(subject, x):
    step = jax.jit(lambda *args: subject(*args, training=False)[0])
    return lambda: _run(step, subject.trainable, subject.state, x)


def bytes_kept(subject, x):
    # Compiled as a function of its own, forward pass and backward pass can't be
    # fused: what one hands to the other is in the arrays of the closure.
    forward = jax.jit(lambda *args: subject(*args, training=True)[0])
    _, backward = jax.vjp(
        lambda trainable, x: forward(trainable, subject.state, x), subject.trainable, x
    )
    leaves = [a for a in jax.tree.leaves(backward) if isinstance(a, jax.Array)]
    return sum({a.unsafe_buffer_pointer(): a.nbytes for a in leaves}.values())


def model_bytes(model, x):
    def loss(trainable, state, x):
        y, state = model.stateless_call(trainable, state, x, training=True)
        return jnp.sum(jnp.square(y)), state

    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    step = jax.jit(jax.grad(loss, has_aux=True)).lower(trainable, state, x).compile()
    return step.memory_analysis().temp_size_in_bytes


def allocated_peak(function):
    if accelerator() is None:
        return None
    # It can't be reset: it is also that of the calls before.
    function()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
