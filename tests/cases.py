"""The table of inputs that every column runs; each row has its reason."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Case:
    name: str
    reason: str
    shape: tuple = (16, 4)
    axis: int = -1
    ratio: float = 1.0  # mean / std
    std: float = 1.0
    dtype: str = "float32"
    mask: tuple = None  # the shape of a mask
    weighted: bool = False  # real weights rather than bools
    mixed: bool = False  # a policy whose compute dtype is `dtype`
    arguments: dict = field(default_factory=dict)
    keras_is_right: str = "tensorflow jax torch"  # "name?": too close to say

    @property
    def policy(self):
        if self.mixed:
            return f"mixed_{self.dtype}"
        return self.wide

    @property
    def wide(self):
        """The dtype of statistics and of the gradients of weights."""
        return "float64" if self.dtype == "float64" else "float32"

    def inputs(self):
        rng = np.random.default_rng(len(self.name))
        x = self.std * (rng.normal(size=self.shape) + self.ratio)
        if self.dtype in ("float16", "bfloat16"):
            # Values that both have, so that every side sees the same numbers.
            x = np.round(x * 16) / 16 if self.ratio < 10 else np.round(x)
            return x.astype("float32")
        return x.astype(self.dtype)

    def upstream(self):
        """The gradient that comes from above, in float64."""
        dy = np.random.default_rng(5).normal(size=self.shape)
        # Values that 16 bits have.
        return np.round(dy * 16) / 16 if self.mixed else dy

    def weights(self):
        """The mask, and the same as weights that broadcast against the inputs."""
        if self.mask is None:
            return None, None
        rng = np.random.default_rng(7)
        mask = rng.uniform(size=self.mask)
        mask = mask * (mask > 0.3) if self.weighted else mask > 0.3
        mask = mask.astype("float32") if self.weighted else mask
        axes = {axis % len(self.shape) for axis in np.atleast_1d(self.axis)}
        full = mask
        if mask.ndim < len(self.shape):
            missing = len(self.shape) - len(axes) - mask.ndim
            full = np.expand_dims(
                full.reshape(full.shape + (1,) * missing), tuple(axes)
            )
        return mask, full


# Keras squeezes every axis of size 1 from masked statistics, which TensorFlow
# alone forgives; it knows masks of rank - 1 and bools only.
NOWHERE = ""

CASES = [
    Case("dense", "the usual table of rows"),
    Case("images", "channels last", shape=(4, 5, 6, 3)),
    Case("channels_first", "axis 1", shape=(4, 3, 5, 6), axis=1),
    Case("sequence", "rank 3", shape=(4, 7, 3)),
    Case("volume", "rank 5", shape=(2, 3, 4, 2, 3)),
    Case("middle_axis", "neither first nor last", shape=(4, 5, 3, 6), axis=-2),
    Case("first_axis", "channels before the batch", shape=(3, 8), axis=0),
    Case("one_channel", "nothing must be squeezed", shape=(16, 1)),
    Case("two_rows", "the smallest batch with a variance", shape=(2, 4)),
    Case("few_channels", "many short rows are seen as one", shape=(8192, 3)),
    Case("few_channels_odd", "which a prime number can't be", shape=(4099, 5)),
    Case(
        "few_channels_mean_1e3",
        "the same, centered",
        shape=(4104, 2),
        ratio=1e3,
        keras_is_right="tensorflow? jax",
    ),
    Case("wide", "more channels than rows", shape=(20, 100)),
    Case("many_rows", "long sums", shape=(100_000, 3)),
    Case("many_images", "long sums, channels first", shape=(64, 2, 40, 40), axis=1),
    Case("no_affine", "no weights", arguments={"center": False, "scale": False}),
    Case("no_beta", "gamma alone", arguments={"center": False}),
    Case("no_gamma", "beta alone", arguments={"scale": False}),
    Case("epsilon", "PyTorch's epsilon", arguments={"epsilon": 1e-5}),
    Case("momentum_0", "the last batch alone", arguments={"momentum": 0.0}),
    Case("momentum_1", "never moves", arguments={"momentum": 1.0}),
    Case("small", "deviation below epsilon's root", std=1e-4),
    *(
        Case(
            f"mean_1e{digits}{'_many' if rows > 100 else ''}",
            "E[x**2] - E[x]**2 cancels; the rounded mean loses digits",
            shape=(rows, 3),
            ratio=10.0**digits,
            arguments={"epsilon": 1e-5},
            # Right is an error below 1e-3, at any mean.
            keras_is_right={2: "tensorflow jax torch?", 3: "tensorflow? jax"}.get(
                digits, NOWHERE
            ),
        )
        for digits in (2, 3, 4, 5)
        for rows in (64, 20_000)
    ),
    Case(
        "raw_table",
        "a column of 5000 +- 0.1 gave NaN in fit on PyTorch",
        shape=(32, 2),
        ratio=5e4,
        std=0.1,
        keras_is_right=NOWHERE,
    ),
    Case("mask", "Keras's mask", shape=(6, 5, 3), mask=(6, 5)),
    Case("mask_images", "rank - 1", shape=(4, 5, 6, 3), mask=(4, 5, 6)),
    Case("mask_ones", "axes of size 1", shape=(4, 5, 6, 3), mask=(4, 5, 1)),
    Case(
        "mask_batch_time",
        "Embedding's mask on 4-D inputs",
        shape=(4, 5, 6, 3),
        mask=(4, 5),
        keras_is_right=NOWHERE,
    ),
    Case(
        "mask_rows", "a mask of rows", (4, 5, 6, 3), mask=(4,), keras_is_right=NOWHERE
    ),
    Case(
        "mask_channels_first",
        "Keras expands the mask at the last axis",
        shape=(6, 4, 4),
        axis=1,
        mask=(6, 4),
        keras_is_right=NOWHERE,
    ),
    Case(
        "mask_one_channel",
        "Keras squeezes the channel away",
        shape=(6, 5, 1),
        mask=(6, 5),
        keras_is_right="tensorflow",
    ),
    Case(
        "mask_full_rank",
        "channel axis of size 1",
        shape=(6, 5, 3),
        mask=(6, 5, 1),
        keras_is_right=NOWHERE,
    ),
    Case(
        "mask_per_channel",
        "each channel its own",
        shape=(8, 5, 3),
        mask=(8, 5, 3),
        keras_is_right=NOWHERE,
    ),
    Case(
        "mask_mean_1e5",
        "masked statistics at a large mean",
        shape=(64, 5, 3),
        mask=(64, 5),
        ratio=1e5,
        keras_is_right=NOWHERE,
    ),
    Case(
        "weights",
        "real weights, which Keras casts to bool",
        shape=(6, 5, 3),
        mask=(6, 5),
        weighted=True,
        keras_is_right=NOWHERE,
    ),
    Case(
        "weights_axis_1",
        "weights and channels first",
        shape=(6, 3, 5),
        axis=1,
        mask=(6, 1),
        weighted=True,
        keras_is_right=NOWHERE,
    ),
    *(
        Case(
            f"virtual_{name}",
            reason,
            keras_is_right=NOWHERE,
            **{"arguments": {"virtual_batch_size": 4}, **case},
        )
        for name, reason, case in (
            ("divides", "one shape", {"shape": (12, 3)}),
            ("remainder", "a smaller last one", {"shape": (14, 5)}),
            ("one", "the batch is smaller", {"shape": (3, 5)}),
            ("images", "channels last", {"shape": (8, 5, 6, 3)}),
            ("images_first", "axis 1", {"shape": (8, 3, 5, 6), "axis": 1}),
            ("axis_0", "channels before the batch", {"shape": (3, 10), "axis": 0}),
            ("mean_1e5", "merged, without a digit less", {"ratio": 1e5}),
            ("rows_of_one", "no variance", {"arguments": {"virtual_batch_size": 1}}),
            ("mask", "with masks", {"shape": (10, 5, 3), "mask": (10, 5)}),
            (
                "renorm",
                "r and d of each",
                {
                    "shape": (10, 3, 2),
                    "axis": 1,
                    "arguments": {"virtual_batch_size": 3, "renorm": True},
                },
            ),
            (
                "many",
                "long sums, and few channels",
                {"shape": (3, 8192, 3), "arguments": {"virtual_batch_size": 1}},
            ),
            (
                "mixed",
                "16 bits",
                {"shape": (8, 5, 6, 3), "dtype": "bfloat16", "mixed": True},
            ),
        )
    ),
    Case("axes", "two channel axes", (6, 4, 3), axis=(1, 2), keras_is_right=NOWHERE),
    Case(
        "axes_apart",
        "not neighbours, one of them counted from the end",
        shape=(3, 4, 5, 2),
        axis=(-1, 1),
        mask=(3, 5),
        arguments={"virtual_batch_size": 2, "renorm": True},
        keras_is_right=NOWHERE,
    ),
    Case(
        "unbiased",
        "n / (n - 1), as PyTorch stores it",
        shape=(5, 3),
        arguments={"unbiased_moving_variance": True},
        keras_is_right=NOWHERE,
    ),
    Case(
        "unbiased_weights",
        "n is their sum, which may be below 1",
        shape=(3, 2, 3),
        mask=(3, 2, 3),
        weighted=True,
        arguments={"unbiased_moving_variance": True, "renorm": True},
        keras_is_right=NOWHERE,
    ),
    Case(
        "cumulative",
        "momentum=None",
        arguments={"momentum": None},
        keras_is_right=NOWHERE,
    ),
    Case(
        "debiased",
        "the initial values divided out",
        arguments={"debias_moving_statistics": True, "renorm": True},
        keras_is_right=NOWHERE,
    ),
    Case("renorm", "batch renormalization", arguments={"renorm": True}),
    Case(
        "renorm_clipped",
        "each bound in force",
        ratio=4.0,
        shape=(16, 12),
        arguments={
            "renorm": True,
            "renorm_clipping": {"rmin": 0.9, "rmax": 1.1, "dmax": 3.5},
            "renorm_momentum": 0.8,
            "momentum": 0.7,
        },
    ),
    Case(
        "renorm_no_affine",
        "r and d take gamma's and beta's place",
        shape=(4, 3, 5),
        axis=1,
        arguments={"renorm": True, "center": False, "scale": False},
    ),
    Case(
        "renorm_mask",
        "masks and renorm together",
        shape=(6, 5, 3),
        mask=(6, 5),
        arguments={"renorm": True},
    ),
    Case(
        "float64", "float64 stays float64", dtype="float64", keras_is_right="tensorflow"
    ),
    *(
        Case(
            f"float64_{name}",
            "nothing on the way is float32",
            shape=(12, 3),
            dtype="float64",
            arguments=arguments,
            keras_is_right="tensorflow" if name == "renorm" else NOWHERE,
        )
        for name, arguments in {
            "virtual": {"virtual_batch_size": 5},
            "renorm": {
                "renorm": True,
                "renorm_clipping": {"rmin": 0.9, "rmax": 1.1, "dmax": 0.1},
            },
            "debiased": {"debias_moving_statistics": True, "renorm": True},
        }.items()
    ),
    Case(
        "float64_mean_1e5",
        "float64 at a large mean",
        ratio=1e5,
        dtype="float64",
        keras_is_right="tensorflow",
    ),
    *(
        Case(
            f"{dtype}_{ratio:g}",
            "float32 statistics of 16-bit inputs",
            shape=(256, 3),
            ratio=ratio,
            dtype=dtype,
            keras_is_right="tensorflow jax torch?" if ratio else "tensorflow jax torch",
        )
        for dtype in ("float16", "bfloat16")
        for ratio in (0, 100)
    ),
    *(
        Case(
            f"mixed_{dtype}_{name}",
            "16 bits in, 16 bits out, and float32 in between",
            dtype=dtype,
            mixed=True,
            # Where it is right, it is right to 16 bits, which this rule isn't for.
            keras_is_right="tensorflow? jax? torch?",
            **case,
        )
        for dtype in ("float16", "bfloat16")
        for name, case in {
            "rows": {"shape": (256, 3)},
            "images_first": {"shape": (8, 5, 6, 7), "axis": 1},
            "mean_100": {"shape": (8, 6, 7, 20), "ratio": 100},
            "few_channels": {"shape": (4100, 4)},
            "mask": {"shape": (6, 5, 3), "mask": (6, 5)},
            "renorm": {"shape": (64, 3), "arguments": {"renorm": True}},
        }.items()
    ),
]
