"""What one pass of recalibration costs, and what a pass for each layer would change.

    KERAS_BACKEND=jax python -m benchmarks.recalibration [--quick] [--output DIR]

`recalibrate` takes all layers' statistics in one pass, in which each layer normalizes
by its batches. At inference a layer's inputs come from layers that normalize by the
population. The statistics of those inputs take a pass for each layer, in the order of
depth; here they are what one pass is compared with. The network is a small residual one
on Fashion-MNIST, whose archive Keras downloads; `--quick` takes random images.
"""

import time

import keras
import numpy as np

import keras_bnx
from benchmarks import harness
from keras_bnx.tools.distance import root_mean_square
from keras_bnx.tools.models import batch_normalizations
from keras_bnx.tools.observation import moving_statistics

BATCHES = (8, 32, 256)


def network():
    keras.utils.set_random_seed(0)

    def block(x, channels, strides):
        y = x
        for i in range(2):
            y = keras.layers.Conv2D(
                channels, 3, strides if i == 0 else 1, "same", use_bias=False
            )(y)
            y = keras_bnx.BatchNormalization()(y)
            y = y if i else keras.layers.ReLU()(y)
        x = keras.layers.Conv2D(channels, 1, strides, use_bias=False)(x)
        x = keras_bnx.BatchNormalization()(x)
        return keras.layers.ReLU()(keras.layers.Add()([x, y]))

    inputs = keras.Input((28, 28, 1))
    x = inputs
    for channels, strides in ((16, 2), (32, 2), (64, 2)):
        x = block(x, channels, strides)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def data(quick):
    if quick:
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(512, 28, 28, 1)), rng.integers(0, 10, 512)
        return (x.astype("float32"), y), (x[:256].astype("float32"), y[:256])
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    scaled = [v[..., None].astype("float32") / 255 for v in (x, x_test)]
    return (scaled[0], y), (scaled[1], y_test)


def layer_by_layer(model, x):
    """A pass for each layer: those before it are in inference, by what they got."""
    layers = batch_normalizations(model)
    order = {layer.name: layer for layer in layers}
    rows = keras_bnx.statistics_report(model, x[:64], verbose=0).in_order
    for row in rows:
        keras_bnx.recalibrate(model, x, batch_size=256, verbose=0)
        order[row.layer].trainable = False
    for layer in layers:
        layer.trainable = True


def distance(model, reference):
    """How far normalized outputs are off, by the worst layer, in deviations."""
    errors = []
    for layer in batch_normalizations(model):
        mean, variance = moving_statistics(layer)
        mean_0, variance_0 = reference[layer.name]
        ratio = np.sqrt((variance + layer.epsilon) / (variance_0 + layer.epsilon))
        off = (mean - mean_0) / np.sqrt(variance_0 + layer.epsilon)
        errors.append(root_mean_square(np.hypot(off, ratio - 1) / ratio))
    return max(errors)


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    (x, y), (x_test, y_test) = data(arguments.quick)
    model = network()
    model.fit(x[:20000], y[:20000], 32, epochs=1, verbose=0)
    x = x[:4096]
    trained = model.get_weights()
    rows = []

    def measure(provider, batch, take):
        model.set_weights(trained)
        start = time.perf_counter()
        take()
        seconds = time.perf_counter() - start
        loss, accuracy = model.evaluate(x_test, y_test, 256, verbose=0)
        rows.append(
            {
                "provider": provider,
                "batch": batch,
                "normalizations": len(batch_normalizations(model)),
                "images": len(x),
                "seconds": seconds,
                "loss": loss,
                "accuracy": accuracy,
                "status": "ok",
            }
        )

    measure("layer by layer", 256, lambda: layer_by_layer(model, x))
    reference = {
        layer.name: moving_statistics(layer) for layer in batch_normalizations(model)
    }
    rows[-1]["off"] = 0.0
    measure("moving", 32, lambda: None)
    rows[-1]["off"] = distance(model, reference)
    for batch in BATCHES:
        measure(
            "one pass",
            batch,
            lambda batch=batch: keras_bnx.recalibrate(
                model, x, batch_size=batch, verbose=0
            ),
        )
        rows[-1]["off"] = distance(model, reference)
    measure("predict", 256, lambda: model.predict(x, 256, verbose=0))
    rows[-1]["off"] = distance(model, reference)
    for row in rows:
        print(
            f"{row['provider']:15} batch {row['batch']:3} {row['seconds']:6.2f} s, "
            f"outputs off {row['off']:.4f}, test loss {row['loss']:.4f}, "
            f"accuracy {row['accuracy']:.4f}"
        )
    print(harness.write(arguments.output, "recalibration", rows))


if __name__ == "__main__":
    main()
