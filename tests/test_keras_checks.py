"""The checks that Keras makes of each of its layers."""

import json

import keras
import numpy as np
import pytest
from frameworks import to_numpy

from keras_bnx import BatchNormalization

CASES = [
    # arguments, input shape, trainable weights, other weights, losses
    ({}, (2, 3), 2, 2, 0),
    ({"center": False, "scale": False}, (2, 3), 0, 2, 0),
    ({"beta_regularizer": "l2", "gamma_regularizer": "l2"}, (2, 4, 4, 3), 2, 2, 2),
    ({"axis": 1}, (2, 3, 4, 4), 2, 2, 0),
    ({"renorm": True}, (2, 3), 2, 5, 0),
    (
        {"renorm": True, "renorm_clipping": {"rmax": 3.0, "rmin": 0.3, "dmax": 5.0}},
        (2, 4, 4, 3),
        2,
        5,
        0,
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_the_layer_passes_kerass_checks(case):
    arguments, shape, trainable, other, losses = case

    def counts(layer):
        return len(layer.trainable_weights), len(layer.non_trainable_weights)

    layer = BatchNormalization(**arguments, name="bn")
    config = layer.get_config()
    again = BatchNormalization.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config
    # Every attribute that one has, the other has.
    assert set(vars(again)) == set(vars(layer))

    layer.build(shape)
    assert counts(layer) == (trainable, other)

    layer = BatchNormalization(**arguments)
    symbolic = layer(keras.KerasTensor(shape), training=True)
    assert counts(layer) == (trainable, other)
    assert symbolic.shape == shape and symbolic.dtype == "float32"
    assert layer.compute_output_shape((None, *shape[1:])) == (None, *shape[1:])

    layer = BatchNormalization(**arguments)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    y = layer(x, training=True)
    assert tuple(y.shape) == shape
    assert len(layer.losses) == losses
    assert layer.supports_masking

    model = keras.Sequential([BatchNormalization(**arguments)])
    model.compile("sgd", "mse", jit_compile="auto")
    model.fit(x, x, verbose=0, batch_size=2)

    layer = BatchNormalization(**arguments, dtype="mixed_float16")
    y = layer(x, training=True)
    spec = layer.compute_output_spec(keras.KerasTensor(shape))
    assert keras.backend.standardize_dtype(y.dtype) == spec.dtype == "float16"
    assert {w.dtype for w in layer.weights} == {"float32"}


def test_build_and_symbolic_calls_take_unknown_sizes():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, BatchNormalization()(inputs))

    for shape in ((2, 4, 5, 3), (3, 6, 2, 3)):
        y = model(np.ones(shape, "float32"), training=True)
        assert to_numpy(y).shape == shape
