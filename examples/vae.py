"""Trains a variational autoencoder with and without normalization, and samples it.

    python examples/vae.py                           # MNIST, downloaded by Keras
    python examples/vae.py --quick                   # 8x8 digits, in scikit-learn

The encoder makes of an image the mean and the variance of a normal distribution of 10
dimensions, the decoder makes an image of a draw from it (Kingma and Welling 2014,
https://arxiv.org/abs/1312.6114). Both have two hidden layers, with normalization before
the activation or without it. The loss, the negative evidence lower bound, is in nats
per image: what the pixels cost, given the draw, and what the draw costs, given the
standard normal distribution that new images are drawn from.

In training the decoder's statistics are those of draws for the batch's images, at
inference moving averages: with these it turns draws into images that no batch had.

Needs Keras with one of its backends, scikit-learn and matplotlib.
"""

import numpy as np

# keras and keras_bnx are imported inside the functions that use them: the backend is
# fixed by the first import of keras, and `--backend` has to come before.
from common import (
    BACKENDS,
    COLOURS,
    IMAGES,
    format_table,
    load_images,
    mean_and_spread,
    new_figure,
    new_parser,
    parse,
    save,
    write_report,
)
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

DEFAULTS = {"epochs": 10, "seeds": 2}
QUICK = {"data": "digits", "epochs": 10, "seeds": 1}
LATENT, HIDDEN = 10, (256, 128)
BATCH_SIZE = {"digits": 64, "mnist": 128}
# The digits have 23 batches an epoch: at Keras's default, 0.99, the averages would
# still be 0.99**23 = 79 % their initial values after one. MNIST has 469.
MOMENTUM = {"digits": 0.9, "mnist": 0.99}
# Images of a mosaic's side.
SIDE = 6

VARIANTS = {"without normalization": False, "with normalization": True}
LINES = {
    "without normalization": {
        "color": COLOURS["orange"],
        "linestyle": "--",
        "marker": "o",
        "fillstyle": "none",
    },
    "with normalization": {"color": COLOURS["blue"], "linestyle": "-", "marker": "s"},
}


def hidden_layers(sizes, *, momentum):
    """Returns the list of a network's hidden layers.

    Args:
        sizes: integers, the units of each.
        momentum: float in [0, 1], that of normalization; `None` for none.
    """
    import keras

    import keras_bnx

    layers = []
    for units in sizes:
        # The normalization takes the mean out, and with it any bias.
        layers.append(keras.layers.Dense(units, use_bias=momentum is None))
        if momentum is not None:
            layers.append(keras_bnx.BatchNormalization(momentum=momentum))
        layers.append(keras.layers.ReLU())
    return layers


def sampling(seed):
    """Returns a layer that draws from the encoder's distribution.

    Its inputs have the shape `(batch, 2 * LATENT)`, means and logarithms of variances,
    its outputs `(batch, LATENT)`. What the draw costs is added to the model's loss: the
    divergence from the standard normal distribution, the mean of the batch.
    """
    import keras
    from keras import ops

    class Sampling(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed_generator = keras.random.SeedGenerator(seed)

        def call(self, inputs):
            mean, log_variance = ops.split(inputs, 2, axis=-1)
            divergence = ops.exp(log_variance) + mean**2 - 1 - log_variance
            self.add_loss(ops.mean(ops.sum(divergence, axis=-1)) / 2)
            noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
            return mean + ops.exp(log_variance / 2) * noise

    return Sampling()


def pixel_loss(images, logits):
    """Returns what the pixels cost: the cross entropy, summed over each image."""
    from keras import ops

    entropy = ops.binary_crossentropy(images, logits, from_logits=True)
    return ops.sum(entropy, axis=(1, 2))


def build_model(image_shape, *, momentum, seed):
    """Builds the autoencoder, ready to be trained.

    Args:
        image_shape: tuple of integers, `(height, width)`.
        momentum: float in [0, 1], that of normalization; `None` for none.
        seed: integer, of the draws.

    Returns:
        A compiled `keras.Sequential` of encoder, sampling and decoder. The decoder's
        outputs are logits of the pixels.
    """
    import keras

    encoder = keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            *hidden_layers(HIDDEN, momentum=momentum),
            keras.layers.Dense(2 * LATENT),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input((LATENT,)),
            *hidden_layers(reversed(HIDDEN), momentum=momentum),
            keras.layers.Dense(image_shape[0] * image_shape[1]),
            keras.layers.Reshape(image_shape),
        ]
    )
    model = keras.Sequential(
        [keras.Input(image_shape), encoder, sampling(seed), decoder]
    )
    model.compile(optimizer="adam", loss=pixel_loss)
    return model


def draw(model, images, codes):
    """Returns what a trained autoencoder draws, pixels from 0 to 1.

    Args:
        model: what `build_model` returned, trained.
        images: array of shape `(images, height, width)`, pixels from 0 to 1.
        codes: array of shape `(images, LATENT)`.

    Returns:
        Two arrays of shape `(images, height, width)`: reconstructions, by the means of
        the encoder's distributions, and the images of the codes.
    """
    encoder, _, decoder = model.layers

    def decode(codes):
        return 1 / (1 + np.exp(-decoder.predict(codes, verbose=0)))

    means = encoder.predict(images, verbose=0)[:, :LATENT]
    return decode(means), decode(codes)


def results_table(results):
    """Returns the losses as a table, a row for each variant.

    Args:
        results: dictionary, of each variant the seeds' histories.
    """

    def cell(losses):
        mean, spread = mean_and_spread(losses)
        return f"{mean:.2f}" + (f" ± {spread:.2f}" if len(losses) > 1 else "")

    rows = []
    for variant, histories in results.items():
        losses = [history["val_loss"] for history in histories]
        rows.append(
            [
                variant,
                cell([values[0] for values in losses]),
                cell([values[-1] for values in losses]),
                cell([history["loss"][-1] for history in histories]),
            ]
        )
    return format_table(
        ["variant", "first epoch", "last epoch", "training images"], rows
    )


def read_numbers(results):
    """Says in words what the table and the curves show.

    Args:
        results: dictionary, of each variant the seeds' histories.

    Returns:
        List of strings.
    """
    plain, normalized = (
        np.mean([history["val_loss"] for history in histories], axis=0)
        for histories in results.values()
    )
    lines = []
    for name, i in (("first", 0), ("last", -1)):
        seeds = [
            b["val_loss"][i] - a["val_loss"][i]
            for a, b in zip(*results.values(), strict=True)
        ]
        lines.append(
            f"Normalization changes the test loss of the {name} epoch by "
            f"{normalized[i] - plain[i]:+.2f} nats "
            f"({min(seeds):+.2f} to {max(seeds):+.2f} in single seeds)."
        )
    reached = np.flatnonzero(normalized <= plain[-1])
    epochs = len(plain)
    if len(reached):
        lines.append(
            f"It comes to the last loss of the network without, {plain[-1]:.2f}, after "
            f"{reached[0] + 1} of {epochs} epochs."
        )
    else:
        lines.append(
            f"In {epochs} epochs it doesn't come to the last loss of the network "
            f"without, {plain[-1]:.2f}."
        )
    return lines


def mosaic(images):
    """Returns SIDE x SIDE images of shape `(images, height, width)` as one, framed."""
    height, width = images.shape[1:]
    tiles = np.pad(images[: SIDE**2], ((0, 0), (0, 1), (0, 1)))
    tiles = tiles.reshape(SIDE, SIDE, height + 1, width + 1)
    return tiles.swapaxes(1, 2).reshape(SIDE * (height + 1), SIDE * (width + 1))


def plot(results, images, drawn, path, *, title):
    """Draws test images, reconstructions, samples, and the loss over the epochs.

    Args:
        results: dictionary, of each variant the seeds' histories.
        images: array of shape `(images, height, width)`, pixels from 0 to 1.
        drawn: dictionary, of each variant what `draw` returns.
        path: path of the PNG file.
        title: string.
    """
    figure, grid = new_figure(title, size=(11, 8.4), rows=2, columns=3)
    pictures = {"test images": (grid[0], images)}
    for i, (variant, pair) in enumerate(drawn.items(), start=1):
        for j, name in enumerate(("reconstructed", "drawn anew")):
            pictures[f"{name},\n{variant}"] = (grid[3 * j + i], pair[j])
    for name, (axes, content) in pictures.items():
        axes.imshow(mosaic(content), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(name, fontsize=15)
        axes.axis("off")

    loss = grid[3]
    for variant, histories in results.items():
        values = np.mean([history["val_loss"] for history in histories], axis=0)
        loss.plot(
            range(1, len(values) + 1),
            values,
            label=variant,
            linewidth=2.5,
            markersize=7,
            **LINES[variant],
        )
    loss.set_title("loss of test images\n(nats per image, log scale)", fontsize=15)
    loss.set_xlabel("epoch", fontsize=15)
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=range(1, 10)))
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    save(figure, path, ncols=2, handlelength=3.5)


def main(argv=None):
    """Runs the experiment.

    Args:
        argv: optional list of strings, the arguments; `None` takes the command
            line's.

    Returns:
        Dictionary: `results`, of each variant the seeds' histories, and `drawn`, of
        each variant what `draw` returns for the first test images; the first seed's.
    """
    args = parse(new_parser(__doc__), argv, defaults=DEFAULTS, quick=QUICK)

    import keras

    data = QUICK["data"] if args.quick else "mnist"
    (x_train, _), (x_test, _) = load_images(data)
    x_train, x_test = x_train / 255, x_test / 255
    title = (
        f"Variational autoencoder, {IMAGES[data]}, Keras on {BACKENDS[args.backend]}"
    )
    print(
        f"{title}: {len(x_train)} training images, {len(x_test)} test images, "
        f"{args.epochs} epochs, {args.seeds} seeds"
    )

    codes = np.random.default_rng(0).standard_normal((SIDE**2, LATENT), "float32")
    results, drawn = {variant: [] for variant in VARIANTS}, {}
    for seed in range(args.seeds):
        for variant, normalization in VARIANTS.items():
            print(f"\n{variant}, seed {seed}")
            keras.utils.set_random_seed(seed)
            model = build_model(
                x_train.shape[1:],
                momentum=MOMENTUM[data] if normalization else None,
                seed=seed,
            )
            history = model.fit(
                x_train,
                x_train,
                batch_size=BATCH_SIZE[data],
                epochs=args.epochs,
                validation_data=(x_test, x_test),
            ).history
            results[variant].append(history)
            if seed == 0:
                drawn[variant] = draw(model, x_test[: SIDE**2], codes)

    figure = "vae.png"
    plot(results, x_test, drawn, args.output / figure, title=title)
    write_report(
        args,
        "vae",
        title,
        [
            "Loss of test images in nats per image after the first and the last of "
            f"{args.epochs} epochs, and that of training images in the last, mean ± "
            f"standard deviation over seeds ({args.seeds}):",
            results_table(results),
            "\n".join(f"- {line}" for line in read_numbers(results)),
        ],
        {figure: "Test images, reconstructions, samples, and the loss over the epochs"},
    )
    return {"results": results, "drawn": drawn}


if __name__ == "__main__":
    main()
