"""What the layer keeps from the forward to the backward pass: its inputs."""

import numpy as np
import pytest
from keras import ops

from benchmarks import frameworks
from keras_bnx import BatchNormalization

CHANNELS = 16
VECTORS = 20 * CHANNELS * 4  # bytes: some vectors of float32, in each virtual batch
MASK = np.arange(64) % 3 > 0
ARGUMENTS = {
    "plain": {},
    "renorm": {"renorm": True},
    "mask": {"mask": MASK},
    "weights and renorm": {"mask": MASK / 2, "renorm": True},
    "virtual batches": {"virtual_batch_size": 16},
    "virtual batches, a mask, renorm": {
        "virtual_batch_size": 16,
        "mask": MASK,
        "renorm": True,
    },
    "frozen": {"trainable": False},
}


class Masked(BatchNormalization):
    """A layer that has its mask in itself."""

    def __init__(self, mask=None, **kwargs):
        super().__init__(**kwargs)
        self.mask = mask

    def call(self, inputs, training=None):
        return super().call(inputs, training=training, mask=self.mask)


def share(shape, dtype, policy="float32", **arguments):
    """The bytes kept, less some vectors, as a multiple of the inputs'."""
    x = ops.cast(np.random.default_rng(0).normal(size=shape), dtype)
    subject = frameworks.active().keras_layer(Masked(dtype=policy, **arguments), shape)
    batches = shape[0] // arguments.get("virtual_batch_size", shape[0])
    kept = frameworks.active().bytes_kept(subject, x) - batches * VECTORS
    return kept / (np.prod(shape) * (2 if "16" in dtype else 4))


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=list(ARGUMENTS))
@pytest.mark.parametrize(
    "policy, dtype",
    [
        ("float32", "float32"),
        ("mixed_bfloat16", "bfloat16"),
        ("mixed_float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("mixed_bfloat16", "float32"),
    ],
)
@pytest.mark.parametrize(
    "shape, axis", [((64, 10, 10, CHANNELS), -1), ((64, CHANNELS, 10, 10), 1)]
)
def test_the_inputs_alone_are_kept(shape, axis, policy, dtype, arguments):
    # A mask of rows is broadcast where it is used.
    assert share(shape, dtype, axis=axis, policy=policy, **arguments) <= 1.0


def test_more_would_be_noticed():
    class Another(Masked):
        def call(self, inputs, training=None):
            return super().call(ops.sin(inputs), training=training)

    assert share((64, 10, 10, CHANNELS), "float32") > 0.8
    x = ops.zeros((64, 10, 10, CHANNELS))
    subject = frameworks.active().keras_layer(Another(), x.shape)
    kept = frameworks.active().bytes_kept(subject, x)
    assert kept > 1.9 * 64 * 100 * CHANNELS * 4
