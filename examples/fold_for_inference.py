"""Trains a network, folds its normalizations into other layers, and exports the rest.

    python examples/fold_for_inference.py
    python examples/fold_for_inference.py --quick --backend torch
    python examples/fold_for_inference.py --data mnist

At inference a batch normalization is `scale * x + shift` for each channel, and a layer
beside it that is linear can do that by itself. The network has one of each kind: three
behind a convolution and before its activation, as in ResNet; one behind an activation,
which the Dense layer behind it takes, through pooling and flattening; and one in front
of everything, which takes the place of scaling the pixels. `keras_bnx.fold` returns
the network without them, and says where each of them went.

What comes out is that table, the accuracy before and after, how far the outputs differ,
the time of a batch, and what ONNX makes of both: its nodes, and the same outputs by
another program. Keras exports to ONNX from PyTorch and TensorFlow, not from JAX.

Needs Keras with one of its backends, scikit-learn and matplotlib; for ONNX `onnx`,
and `onnxscript` on PyTorch or `tf2onnx` on TensorFlow.
"""

import statistics
import time
from collections import Counter

import numpy as np
from common import (
    BACKENDS,
    IMAGES,
    format_table,
    load_images,
    mean_and_spread,
    new_parser,
    parse,
    percent,
    write_report,
)

DEFAULTS = {"epochs": 10, "seeds": 3}
QUICK = {"epochs": 3, "seeds": 1}
BATCH_SIZE = 64
# The digits have 23 batches an epoch: at Keras's 0.99 the averages would still be half
# their initial values after three epochs, and inference would show it.
MOMENTUM = 0.9
ROUNDS = 31


def build_model(image_shape):
    """Builds the network, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.

    Returns:
        A compiled Functional model, whose outputs are logits.
    """
    import keras
    from keras import layers

    import keras_bnx

    def normalize(x, name):
        return keras_bnx.BatchNormalization(momentum=MOMENTUM, name=name)(x)

    inputs = keras.Input(image_shape)
    x = layers.Reshape((*image_shape, 1))(inputs)
    # No padding here, for a shifted image has no border of zeros.
    x = layers.Conv2D(32, 3, name="conv_0")(normalize(x, "pixels"))
    x = layers.ReLU()(normalize(x, "norm_0"))
    # The convolutions need no bias: the normalization takes it out.
    y = layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv_1")(x)
    y = layers.ReLU()(normalize(y, "norm_1"))
    y = layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv_2")(y)
    x = layers.ReLU()(layers.Add()([x, normalize(y, "norm_2")]))
    x = layers.AveragePooling2D(2)(normalize(x, "last"))
    outputs = layers.Dense(10, name="logits")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def predict(model, images):
    """Returns the logits, an array of shape `(images, 10)`."""
    return model.predict(images, batch_size=BATCH_SIZE, verbose=0)


def accuracy(model, data):
    """Returns the share of images whose largest logit is their label's."""
    images, labels = data
    return float((predict(model, images).argmax(-1) == labels).mean())


def milliseconds(models, images):
    """Times models in turns, so that a slow second of the machine hits all of them.

    Returns:
        List of floats: for each model the median time of one batch.
    """
    batch = images[:BATCH_SIZE]
    samples = [[] for _ in models]
    for round in range(ROUNDS + 2):
        for model, times in zip(models, samples, strict=True):
            start = time.perf_counter()
            model.predict_on_batch(batch)
            # The first two compile, and fill caches.
            if round >= 2:
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in samples]


def export(model, path):
    """Exports to ONNX.

    Returns:
        `collections.Counter` of the nodes' types; `None` where nothing can be exported.
    """
    import keras

    if keras.config.backend() == "jax":
        return None
    try:
        import onnx

        model.export(path, format="onnx", verbose=False)
    except ImportError as error:
        print(f"Not exported: {error}")
        return None
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def nodes_table(nodes):
    """Returns the types of nodes that differ, as a table, and how many there are."""
    before, after = nodes
    kinds = sorted(kind for kind in before | after if before[kind] != after[kind])
    rows = [[kind, str(before[kind]), str(after[kind])] for kind in kinds]
    rows.append(["all", str(before.total()), str(after.total())])
    return format_table(["ONNX nodes", "before", "folded"], rows)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary: `accuracies`, a list of pairs, before and after, one for each seed;
        `report`, what `keras_bnx.fold` says of the first seed's model; `difference`,
        of its outputs, in parts of the largest; `milliseconds`, a pair; and `nodes`, a
        pair of `collections.Counter`, or `None` where nothing is exported.
    """
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data",
        choices=("digits", "mnist"),
        default="digits",
        help="the images; default: %(default)s, which need no download",
    )
    args = parse(parser, argv, defaults=DEFAULTS, quick=QUICK)
    import keras

    import keras_bnx

    (x_train, y_train), test_data = load_images(args.data)
    title = f"{IMAGES[args.data]}, Keras on {BACKENDS[args.backend]}"
    images = test_data[0]
    print(f"{title}: {len(x_train)} training images, {len(images)} test images")

    accuracies, first = [], None
    for seed in range(args.seeds):
        keras.utils.set_random_seed(seed)
        model = build_model(x_train.shape[1:])
        model.fit(x_train, y_train, batch_size=BATCH_SIZE, epochs=args.epochs)
        folded, report = keras_bnx.fold(model)
        accuracies.append((accuracy(model, test_data), accuracy(folded, test_data)))
        first = first or (model, folded, report)

    model, folded, report = first
    outputs = predict(model, images)
    difference = float(
        np.abs(predict(folded, images) - outputs).max() / np.abs(outputs).max()
    )
    times = milliseconds((model, folded), images)
    paths = [
        args.output / f"fold_for_inference_{word}.onnx" for word in ("before", "folded")
    ]
    nodes = [export(m, path) for m, path in zip((model, folded), paths, strict=True)]
    before, after = zip(*accuracies, strict=True)
    rows = [
        ["before", percent(before), f"{times[0]:.2f}", str(model.count_params())],
        ["folded", percent(after), f"{times[1]:.2f}", str(folded.count_params())],
    ]
    header = ["network", "test accuracy, %", f"ms for {BATCH_SIZE} images", "weights"]
    moved = 100 * (mean_and_spread(after)[0] - mean_and_spread(before)[0])
    parts = [
        title,
        format_table(["normalization", "into"], [[r.layer, r.into] for r in report]),
        format_table(header, rows),
        f"The accuracy has moved by {moved:+.2f} points; the largest difference of an "
        f"output is {difference:.1e} of the largest output. The time is the median of "
        f"{ROUNDS} batches in turns, {times[1] / times[0]:.2f} of what it was.",
    ]
    if None in nodes:
        parts.append("Nothing was exported to ONNX.")
        nodes = None
    else:
        parts += [
            nodes_table(nodes),
            f"The files are {paths[0].name}, {paths[1].name}.",
        ]
    write_report(
        args,
        "fold_for_inference",
        "Folded for inference",
        parts,
        {},
        suffix=f"_{args.backend}",
    )
    return {
        "accuracies": accuracies,
        "report": report,
        "difference": difference,
        "milliseconds": times,
        "nodes": nodes,
    }


if __name__ == "__main__":
    main()
