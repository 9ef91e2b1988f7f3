"""A layer of a case of `cases.py`, and how near to the oracle it has to be."""

import keras
import numpy as np
from combinations import oracle_of
from frameworks import functional, hessian_vector_product, statistics
from keras import ops
from tolerance import assert_near, kappa

from keras_bnx import BatchNormalization, reference


def make(case, cls=BatchNormalization):
    """The layer of a case, with random weights and moving statistics."""
    layer = cls(axis=case.axis, dtype=case.policy, **case.arguments)
    layer.build(case.shape)
    rng = np.random.default_rng(3)
    shape = layer.moving_mean.shape
    mean = case.std * (case.ratio + rng.normal(size=shape))
    for name, value in {
        "gamma": rng.uniform(0.5, 1.5, shape),
        "beta": rng.normal(size=shape),
        "moving_mean": mean,
        "moving_variance": case.std**2 * rng.uniform(0.5, 1.5, shape),
        "renorm_mean": mean,
        "renorm_stddev": np.sqrt(case.std**2 * rng.uniform(0.5, 1.5, shape) + 1e-3),
    }.items():
        if getattr(layer, name, None) is not None:
            getattr(layer, name).assign(value)
    if case.arguments.get("renorm"):
        layer.moving_stddev.assign(ops.sqrt(layer.moving_variance + layer.epsilon))
    return layer


def assert_statistics_near(layer, state, **tolerance):
    """Asserts that a layer's moving statistics are those of the oracle's state."""
    expected = {f"debiased_{k}": v for k, v in state.debiased.items()} | vars(state)
    for name, value in statistics(layer).items():
        wanted = expected.get(name, np.zeros_like(state.moving_mean))
        assert_near(value.reshape(wanted.shape), wanted, **tolerance)


def largest_kappa(case, x, weights, epsilon):
    """`kappa` of each channel, the largest of the virtual batches'."""
    size = case.arguments.get("virtual_batch_size")
    if size is None:
        return kappa(x, axis=case.axis, epsilon=epsilon, weights=weights)
    axis = min(set(range(x.ndim)) - {a % x.ndim for a in np.atleast_1d(case.axis)})
    w = np.broadcast_to(1.0 if weights is None else weights, x.shape)
    examples = x.shape[axis]
    parts = [range(i, min(i + size, examples)) for i in range(0, examples, size)]
    parts = [
        kappa(
            x.take(part, axis),
            axis=case.axis,
            epsilon=epsilon,
            weights=w.take(part, axis),
        )
        for part in parts
        if len(part)
    ]
    return np.nanmax(parts, axis=0)


def tensor(case, x):
    return ops.convert_to_tensor(x, dtype=case.dtype)


def second_order(layer, shape, *, mask=None):
    """The Hessian of `sum(dy * y**2)` times a vector: the layer's, and the oracle's.

    The oracle's are central differences of its gradients.
    """
    x, dy, vector = np.random.default_rng(0).normal(size=(3, *shape))
    weights = None
    if mask is not None:
        weights = mask.reshape(-1, *[1] * (len(shape) - 1)).astype(float)
    call, oracle, dtype = functional(layer, mask=mask), oracle_of(layer), layer.dtype

    def loss(x):
        y = call(x)
        return ops.sum(ops.convert_to_tensor(dy, dtype) * y * y)

    def gradient(x):
        step = reference.batch_normalization(x, *oracle, weights=weights)
        return reference.gradients(step, 2 * dy * step.y, x)[0]

    h = 1e-5
    expected = (gradient(x + h * vector) - gradient(x - h * vector)) / (2 * h)
    found = hessian_vector_product(loss, x.astype(dtype), vector.astype(dtype))
    return found, expected


def gradient_tolerances(case, arguments, step, dy):
    """The scale and units of the rule for the gradients of a case.

    Args:
        case: `Case`.
        arguments: the oracle's `Arguments`.
        step: the oracle's `Step`.
        dy: the upstream gradient.

    Returns:
        Of "inputs" and of "weights" the keyword arguments of `assert_near`.
    """
    is_float64 = case.wide == "float64"
    # Each gradient is made of sums over a channel: their terms' sizes are the
    # scale, and TensorFlow adds the terms of a broadcast's gradient one by one.
    others = tuple(
        i
        for i in range(dy.ndim)
        if i not in {a % dy.ndim for a in np.atleast_1d(case.axis)}
    )
    elements = np.prod([dy.shape[i] for i in others])
    units = 4.0 + 0.02 * np.sqrt(elements) * (
        40 if keras.config.backend() == "tensorflow" else 1
    )
    steps = [step] if step.parts is None else [part for part, _ in step.parts]
    slope = np.expand_dims(np.max([s.inv * s.r for s in steps], axis=0), others)
    scale = slope * (1 + np.abs(dy).max(others, keepdims=True)) * 4
    if is_float64:
        # The oracle subtracts a rounded mean as well.
        scale = scale * (1 + case.ratio)
    gamma = 1.0 if arguments.gamma is None else np.expand_dims(arguments.gamma, others)
    beta = 0.0 if arguments.beta is None else np.expand_dims(arguments.beta, others)
    spread = (np.abs(dy) * (1 + np.abs((step.y - beta) / gamma))).sum(others)
    spread = spread * (1 + case.ratio if is_float64 else 1)
    return {
        "inputs": {"scale": scale, "units": units},
        "weights": {"scale": spread, "units": units},
    }
