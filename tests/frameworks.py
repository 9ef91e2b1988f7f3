"""What a test has to say differently on each backend, and nothing else."""

import contextlib

import keras
import numpy as np
from keras import ops

# What Keras's NumPy backend can't do, in words that follow "needs".
LACKING = {
    "gradients": "gradients, which NumPy doesn't compute",
    "`fit`": "`fit`, which Keras's NumPy backend doesn't have",
    "a compiler": "a compiler, which NumPy doesn't have",
    "replicas": "replicas, which NumPy doesn't have",
    "float64": "float64, which Keras's NumPy backend rounds to float32",
}


class LackingError(Exception):
    """Raised where a backend can't do what a test needs: `args` has a key of LACKING.

    Nothing else says so, and no error of a layer or of Keras becomes one.
    """

    def __str__(self):
        return f"needs {LACKING[self.args[0]]}"


def require(what):
    """Raises a `LackingError` where the backend lacks a key of LACKING."""
    if what not in LACKING:
        raise ValueError(
            f"No backend is known to lack this. Received: what={what!r}. "
            f"Choose one of {list(LACKING)}."
        )
    if keras.config.backend() == "numpy":
        raise LackingError(what)


@contextlib.contextmanager
def float64_enabled():
    """Lets JAX compute in float64, which TensorFlow and PyTorch always do."""
    require("float64")
    if keras.config.backend() != "jax":
        yield
        return
    import jax

    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def tensor_of(array, dtype, layout="contiguous"):
    """A tensor, on PyTorch with the strides of one of its kinds of views.

    Args:
        array: float64 array.
        dtype: string.
        layout: "contiguous"; "permuted", with its axes in the reverse order in memory;
            "strided", every second number of a larger tensor; "expanded", one number
            in memory where all are the same.
    """
    # By way of float32 where that is enough: NumPy has no bfloat16, and JAX float64
    # only where it is asked for.
    array = np.asarray(array, "float64" if dtype == "float64" else "float32")
    tensor = ops.cast(ops.convert_to_tensor(array), dtype)
    if keras.config.backend() != "torch" or layout == "contiguous":
        return tensor
    import torch

    if layout == "permuted":
        order = tuple(range(tensor.dim()))[::-1]
        return tensor.permute(order).contiguous().permute(order)
    if layout == "strided":
        return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]
    if array.size and (array == array.flat[0]).all():
        return tensor.flatten()[0].expand(tensor.shape)
    return tensor


def with_gradients(layer, *, training=True, how="eager"):
    """A function that calls a layer and differentiates `sum(y * dy)`.

    Each call updates the statistics of the layer.

    Args:
        layer: a built layer.
        training: a bool, or "traced True" or "traced False": a tensor, which compilers
            don't know the value of.
        how: "eager"; "compiled"; "unknown", compiled for unknown sizes where the
            framework has such; "xla", as a whole, also on TensorFlow.

    Returns:
        A function of tensors `x`, `dy` and a mask or `None` that returns a dictionary
        of `y`, `dx`, and the gradient of each trainable weight by its name. On NumPy
        of `y` alone: who reads gradients calls `require("gradients")` before.
    """
    if keras.config.backend() == "numpy":
        return lambda x, dy, mask=None: {"y": layer(x, training=training, mask=mask)}
    make = {
        "jax": _with_gradients_on_jax,
        "tensorflow": _with_gradients_on_tensorflow,
        "torch": _with_gradients_on_torch,
    }[keras.config.backend()]
    # A tensor is an argument of what is compiled; a bool is known to it.
    traced = [training == "traced True"] if isinstance(training, str) else []
    run = make(layer, training, how)

    def call(x, dy, mask=None):
        y, dx, dweights = run(x, dy, mask, *map(ops.convert_to_tensor, traced))
        names = [v.name for v in layer.trainable_variables]
        return {"y": y, "dx": dx, **dict(zip(names, dweights, strict=True))}

    return call


def _with_gradients_on_jax(layer, known, how):
    import jax

    def step(trainable, state, x, dy, mask, training=known):
        def loss(x, trainable):
            y, after = layer.stateless_call(
                trainable, state, x, training=training, mask=mask
            )
            wide = "float64" if x.dtype == "float64" else "float32"
            product = ops.cast(y, wide) * ops.cast(dy, wide)
            return ops.sum(product), (y, after)

        return jax.grad(loss, (0, 1), has_aux=True)(x, trainable)

    step = step if how == "eager" else jax.jit(step)

    def run(*tensors):
        trainable = [v.value for v in layer.trainable_variables]
        state = [v.value for v in layer.non_trainable_variables]
        (dx, dweights), (y, after) = step(trainable, state, *tensors)
        for variable, value in zip(layer.non_trainable_variables, after, strict=True):
            variable.assign(value)
        return y, dx, dweights

    return run


def _with_gradients_on_tensorflow(layer, known, how):
    import tensorflow as tf

    def step(x, dy, mask, training=known):
        sources = [x, *(v.value for v in layer.trainable_variables)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training, mask=mask)
        dx, *dweights = tape.gradient(y, sources, dy)
        return y, dx, dweights

    if how == "eager":
        return step
    run = tf.function(step, jit_compile=how == "xla")
    if how != "unknown":
        return run

    def run_unknown(x, dy, mask, *training):
        # The size of the channels has to be known.
        axes = {a % len(x.shape) for a in np.atleast_1d(layer.axis)}
        sizes = [n if i in axes else None for i, n in enumerate(x.shape)]
        specs = [tf.TensorSpec(sizes, v.dtype) for v in (x, dy)]
        specs += [
            mask if mask is None else tf.TensorSpec([None] * mask.ndim, mask.dtype)
        ]
        specs += [tf.TensorSpec([], v.dtype) for v in training]
        return run.get_concrete_function(*specs)(
            *(v for v in (x, dy, mask, *training) if v is not None)
        )

    return run_unknown


def _with_gradients_on_torch(layer, known, how):
    import torch

    def call(x, mask, training):
        return layer(x, training=training, mask=mask)

    if how != "eager":
        torch._dynamo.reset()
        call = torch.compile(
            call,
            fullgraph=True,
            dynamic=True if how == "unknown" else None,
            # The code generator would take a minute.
            backend=lambda graph, inputs: graph.forward,
        )

    def run(x, dy, mask, training=known):
        x = x.detach().requires_grad_()
        # Keras creates a global at a layer's first call, which guards would miss.
        layer(x.detach(), training=False)
        y = call(x, mask, training)
        sources = [x, *(v.value for v in layer.trainable_variables)]
        dx, *dweights = torch.autograd.grad(y, sources, dy)
        return y.detach(), dx, dweights

    return run


def to_numpy(x):
    """Converts to NumPy; bfloat16, which NumPy lacks, to float32."""
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = ops.cast(x, "float32")
    return np.array(ops.convert_to_numpy(x))


def statistics(layer):
    """Copies of all moving statistics, by name."""
    return {w.name: to_numpy(w.value) for w in layer.non_trainable_variables}


def gradients(f, *arrays):
    """The gradients of the scalar `f(*arrays)`, as NumPy arrays."""
    return [
        to_numpy(g) for g in tensor_gradients(f, *map(ops.convert_to_tensor, arrays))
    ]


def hessian_vector_product(f, array, vector):
    """The second derivative of the scalar `f(array)` times `vector`."""

    def directional(x):
        (gradient,) = tensor_gradients(f, x, create_graph=True)
        return ops.sum(gradient * ops.convert_to_tensor(vector))

    return gradients(directional, array)[0]


def tensor_gradients(f, *tensors, create_graph=False):
    """The gradients of the scalar `f(*tensors)`, as tensors."""
    require("gradients")
    if keras.config.backend() == "jax":
        import jax

        # As a whole: one by one, its many small functions take five times as long.
        return jax.jit(jax.grad(f, argnums=tuple(range(len(tensors)))))(*tensors)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = f(*tensors)
        return tape.gradient(value, tensors)
    import torch

    if not create_graph:
        tensors = [t.detach().clone() for t in tensors]
    tensors = [t.requires_grad_() for t in tensors]
    return torch.autograd.grad(f(*tensors), tensors, create_graph=create_graph)


def functional(layer, *, training=True, mask=None):
    """The layer as a pure function of the inputs, gamma and beta.

    Moving statistics stay as they are; the trainable weights are replaced.
    """

    def call(x, *trainable):
        trainable = trainable or [v.value for v in layer.trainable_variables]
        y, _ = layer.stateless_call(
            list(trainable),
            [v.value for v in layer.non_trainable_variables],
            x,
            training=training,
            mask=mask,
        )
        return y

    return call


def compiled(f, **kwargs):
    """Compiles a function of tensors; it also counts its traces."""
    require("a compiler")

    def counted(*args):
        counted.traces += 1
        return f(*args)

    counted.traces = 0
    if keras.config.backend() == "jax":
        import jax

        run = jax.jit(counted)
    elif keras.config.backend() == "tensorflow":
        import tensorflow as tf

        run = tf.function(counted, **kwargs)
    else:
        import torch

        torch._dynamo.reset()

        def backend(graph, example_inputs):
            counted.traces += 1
            return graph.forward

        # Dynamo alone decides about graph breaks; the code generator behind it
        # would take a minute a test.
        return torch.compile(f, fullgraph=True, backend=backend), counted
    return run, counted


def one_step(layer, x, remat):
    """One training step, its forward pass under `remat`; the gradient of x.

    On JAX `keras.remat` takes pure functions only, whatever the layer is; state
    is what a stateless call returns.
    """
    require("gradients")
    if keras.config.backend() == "jax":
        import jax

        trainable = [v.value for v in layer.trainable_variables]
        state = [v.value for v in layer.non_trainable_variables]

        def loss(x):
            f = remat(
                lambda x: layer.stateless_call(trainable, state, x, training=True)
            )
            y, new = f(x)
            return (y**3).sum(), new

        gradient, new = jax.jit(jax.grad(loss, has_aux=True))(x)
        for variable, value in zip(layer.non_trainable_variables, new, strict=True):
            variable.assign(value)
        return to_numpy(gradient)
    call = remat(lambda x: layer(x, training=True))
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(call(x) ** 3)
            return tape.gradient(loss, x)

        return to_numpy(run(tf.constant(x)))
    import torch

    x = torch.tensor(x, requires_grad=True)
    (call(x) ** 3).sum().backward()
    return to_numpy(x.grad)


def vmap(f):
    """The framework's map of a function over the first axis of its tensors."""
    if keras.config.backend() == "numpy":
        return lambda *tensors: ops.vectorized_map(lambda t: f(*t), tensors)
    if keras.config.backend() == "jax":
        import jax

        return jax.vmap(f)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return lambda *tensors: tf.vectorized_map(lambda t: f(*t), tensors)
    import torch

    return torch.vmap(f)
