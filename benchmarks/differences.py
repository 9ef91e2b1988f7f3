"""What Keras's layer does and what this one does, where they differ.

    KERAS_BACKEND=torch python benchmarks/differences.py

Prints one line a situation: what happens with `keras.layers.BatchNormalization`,
and what here. The README's table is made from its output on the three backends.
"""

import keras
import numpy as np
from keras import ops

import keras_bnx
from keras_bnx import reference

RNG = np.random.default_rng(0)


def attempt(function):
    """The text of a number or word that a function returns, or of its error."""
    try:
        result = function()
    except Exception as error:
        return type(error).__name__
    return result if isinstance(result, str) else f"{result:.2g}"


def to_numpy(x):
    return np.array(ops.convert_to_numpy(x), "float64")


def output_error(cls, ratio):
    x = RNG.normal(ratio, 1.0, (1000, 4)).astype("float32")
    y = to_numpy(cls(epsilon=1e-5)(x, training=True))
    state = reference.State(np.zeros(4), np.ones(4))
    expected = reference.batch_normalization(
        x, state, reference.Arguments(epsilon=1e-5)
    ).y
    return np.abs(y - expected).max()


def fit_5000(cls):
    x = RNG.normal(5000, 0.1, (256, 2)).astype("float32")
    model = keras.Sequential([cls(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((256, 1)), epochs=2, verbose=0)
    finite = np.isfinite(model.predict(x, verbose=0)).mean()
    return f"{finite:.0%} of predictions finite"


def moving(layer, name="moving_mean"):
    return to_numpy(getattr(layer, name))[0]


def empty_batch(cls):
    layer = cls()
    layer(np.zeros((0, 3), "float32"), training=True)
    return moving(layer)


def one_inf(cls):
    layer = cls()
    layer(np.array([[1.0], [np.inf], [2.0]], "float32"), training=True)
    return moving(layer)


def all_masked(cls):
    layer = cls(momentum=0.9, moving_mean_initializer=keras.initializers.Constant(5.0))
    layer(np.ones((4, 3, 2), "float32"), training=True, mask=np.zeros((4, 3), bool))
    return moving(layer)


def one_row(cls):
    layer = cls(momentum=0.9)
    layer(np.ones((1, 3), "float32"), training=True)
    return moving(layer, "moving_variance")


def mask_axis_1(cls):
    x = RNG.normal(size=(6, 4, 4)).astype("float32")
    mask = RNG.uniform(size=(6, 4)) > 0.5
    y = to_numpy(cls(axis=1)(x, training=True, mask=mask))
    state, arguments = (
        reference.State(np.zeros(4), np.ones(4)),
        reference.Arguments(axis=1),
    )
    weights = mask[:, None, :].astype(float)
    return np.abs(
        y - reference.batch_normalization(x, state, arguments, weights=weights).y
    ).max()


def mask_4d(cls):
    x = RNG.normal(size=(2, 3, 4, 5)).astype("float32")
    cls()(x, training=True, mask=np.ones((2, 3), bool))
    return "works"


def float16_overflow(cls):
    x = RNG.normal(1e5, 1.0, (64, 3)).astype("float32")
    y = to_numpy(cls(dtype="mixed_float16")(x, training=True))
    return f"{np.isfinite(y).mean():.0%} of outputs finite"


def bfloat16_stall(cls):
    layer = cls(dtype="bfloat16")
    x = ops.cast(RNG.normal(3.0, 0.5, (64, 3)), "bfloat16")
    for _ in range(700):
        layer(x, training=True)
    return moving(layer)


def float64_error(cls):
    x = RNG.normal(10.0, 1.0, (64, 3))
    y = to_numpy(cls(dtype="float64", epsilon=1e-5)(x, training=True))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return np.abs(y - expected).max()


def imported_variance(cls):
    layer = cls(renorm=True)
    layer.build((None, 3))
    layer.moving_variance.assign(np.full(3, 100.0))
    layer(RNG.normal(0, 10, (64, 3)).astype("float32"), training=True)
    return moving(layer, "moving_variance")


def momentum_15(cls):
    cls(momentum=1.5)
    return "accepted"


SITUATIONS = {
    "float32 output error, r = 1e2": lambda cls: output_error(cls, 1e2),
    "float32 output error, r = 1e3": lambda cls: output_error(cls, 1e3),
    "float32 output error, r = 1e4": lambda cls: output_error(cls, 1e4),
    "float32 output error, r = 1e5": lambda cls: output_error(cls, 1e5),
    "fit on columns of 5000 +- 0.1": fit_5000,
    "moving mean after an empty batch (before: 0)": empty_batch,
    "moving mean after a batch with one inf (before: 0)": one_inf,
    "moving mean after a masked batch (before: 5)": all_masked,
    "moving variance after one row, momentum 0.9 (before: 1)": one_row,
    "mask with axis=1, 4 channels, 4 steps: output error": mask_axis_1,
    "mask (batch, time) on 4-D inputs": mask_4d,
    "mixed_float16, inputs of 1e5": float16_overflow,
    "bfloat16, moving mean of 3.0 after 700 steps": bfloat16_stall,
    "float64 policy: output error": float64_error,
    "renorm: imported variance 100 after one step": imported_variance,
    "momentum=1.5": momentum_15,
}


def main():
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    print(f"Keras {keras.__version__}, {keras.config.backend()}")
    for name, function in SITUATIONS.items():
        theirs = attempt(lambda: function(keras.layers.BatchNormalization))  # noqa: B023
        ours = attempt(lambda: function(keras_bnx.BatchNormalization))  # noqa: B023
        print(f"{name:58}  {theirs:28}  {ours}")


if __name__ == "__main__":
    main()
