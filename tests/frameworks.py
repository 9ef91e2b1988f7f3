"""What a test has to say differently on each backend, and nothing else."""

import keras
import numpy as np
from keras import ops


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
    if keras.config.backend() == "jax":
        import jax

        return jax.grad(f, argnums=tuple(range(len(tensors))))(*tensors)
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
