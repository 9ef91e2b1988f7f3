"""Small networks, and what their normalizations see, in NumPy."""

import keras
import numpy as np
from frameworks import to_numpy

from keras_bnx import BatchNormalization

KERAS = keras.layers.BatchNormalization
BOTH = [KERAS, BatchNormalization]
X = np.random.default_rng(0).normal(3.0, 2.0, (100, 8)).astype("float32")


def chain(cls, *, dropout=0.5, **arguments):
    """A network of two normalizations, with dropout between them."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, use_bias=False),
            cls(name="first", **arguments),
            keras.layers.ReLU(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(5),
            cls(name="second", **arguments),
            keras.layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Dense, KERAS)):
            for weight in layer.trainable_weights:
                weight.assign(rng.uniform(-1.0, 1.5, weight.shape))
    return model


def inputs_of_normalizations(model, batches):
    """All that each normalization of `chain` sees, float64 arrays.

    Each batch goes through it by itself, normalized by its own mean and variance.
    """
    seen = {}
    for x in batches:
        x = x.astype("float64")
        for layer in model.layers:
            weights = {
                w.name: to_numpy(w.value).astype("float64") for w in layer.weights
            }
            if isinstance(layer, keras.layers.Dense):
                x = x @ weights["kernel"] + weights.get("bias", 0.0)
            elif isinstance(layer, KERAS):
                seen.setdefault(layer.name, []).append(x)
                x_hat = (x - x.mean(0)) / np.sqrt(x.var(0) + layer.epsilon)
                x = weights.get("gamma", 1.0) * x_hat + weights.get("beta", 0.0)
            elif isinstance(layer, keras.layers.ReLU):
                x = np.maximum(x, 0.0)
    return [np.concatenate(parts) for parts in seen.values()]
