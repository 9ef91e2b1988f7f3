"""The providers of a layer side by side: gate first, then time and memory."""

import math
import re
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

import keras_bnx
from benchmarks import frameworks, harness
from keras_bnx import reference

# How often a tensor of the input's size has to pass through memory, at least.
# Training: x for the statistics, x for y, y; x and dy for the sums, x and dy for dx,
# dx. Inference: x, y. A cache that holds the tensors can do with less.
TRAVERSALS = {"training": 8, "inference": 2}

# Of larger inputs the gate looks at every so-manieth channel: they don't know of each
# other, and float64 in NumPy would take longer than the benchmark.
LARGEST_ORACLE = 2**23

EPS = 2.0**-23
HALF_UNIT = {"float32": 0.0, "bfloat16": 2.0**-8}


class Generic(keras_bnx.BatchNormalization):
    """Our layer with the arithmetic in keras.ops."""

    def call(self, inputs, training=None, mask=None):
        with keras_bnx.force_implementation("generic"):
            return super().call(inputs, training=training, mask=mask)


LAYERS = {
    "ours": keras_bnx.BatchNormalization,
    "ours generic": Generic,
    "keras": keras.layers.BatchNormalization,
}
PROVIDERS = (*LAYERS, "native")


@dataclass(frozen=True)
class Case:
    shape: tuple
    axis: int = -1
    dtype: str = "float32"

    def tensors(self):
        """The inputs, of mean 0.5 and deviation 1, and an upstream gradient."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal(self.shape, dtype="float32") + np.float32(0.5)
        dy = rng.standard_normal(self.shape, dtype="float32")
        return [ops.cast(ops.convert_to_tensor(a), self.dtype) for a in (x, dy)]

    def subject(self, provider):
        """A new layer of a provider, as the module of the framework wants it."""
        if provider == "native":
            return frameworks.active().native_layer(self.shape, self.axis, self.dtype)
        layer = LAYERS[provider](
            axis=self.axis,
            momentum=frameworks.MOMENTUM,
            epsilon=frameworks.EPSILON,
            dtype="mixed_bfloat16" if self.dtype == "bfloat16" else self.dtype,
        )
        return frameworks.active().keras_layer(layer, self.shape)


class Refused(ValueError):
    """What a provider computes isn't batch normalization."""


class Gate:
    """Compares a provider's first step with the float64 oracle."""

    def __init__(self, case, x, dy):
        self.case = case
        size = math.prod(case.shape)
        self.part = [slice(None)] * len(case.shape)
        self.part[case.axis] = slice(None, None, math.ceil(size / LARGEST_ORACLE))
        self.part = tuple(self.part)
        x, dy = self._float64(x), self._float64(dy)
        channels = x.shape[case.axis]
        arguments = reference.Arguments(
            axis=case.axis, momentum=frameworks.MOMENTUM, epsilon=frameworks.EPSILON
        )
        state = reference.State(np.zeros(channels), np.ones(channels))
        step = reference.batch_normalization(x, state, arguments)
        self.y = step.y
        self.dx = reference.gradients(step, dy, x)[0]
        self.moving_mean = step.state.moving_mean
        self.inference = reference.batch_normalization(
            x, step.state, arguments, training=False
        ).y
        axes = tuple(i for i in range(x.ndim) if i != case.axis % x.ndim)
        stddev = np.sqrt(x.var(axes, keepdims=True) + frameworks.EPSILON)
        self.kappa = np.abs(x).max(axes, keepdims=True) / stddev

    def check(self, subject, training_step, inference_step):
        """Takes one step of each kind with a new layer; raises `Refused`."""
        # Flax rounds the terms of gradients, and moving statistics at inference,
        # to bfloat16. They are of the order of 1. It is to be timed all the same.
        slack = 4 * HALF_UNIT[self.case.dtype]
        y, dx = training_step()
        self._near("output in training", y, self.y, self.kappa)
        # Gradients have no kappa in them: the sums are of centered values.
        self._near("gradient of the inputs", dx, self.dx, 0.0, slack)
        mean = ops.convert_to_numpy(subject.moving_mean)[self.part[self.case.axis]]
        _near("moving mean", mean, self.moving_mean, 1e-6)
        # PyTorch and TensorFlow's operation store n/(n-1) of the variance. After one
        # step that is 0.5 % / (n-1) of an output, 4e-5 for n = 128.
        y = inference_step()
        self._near("output at inference", y, self.inference, self.kappa, slack)

    def _near(self, what, actual, expected, kappa, slack=0.0):
        dtype = keras.backend.standardize_dtype(actual.dtype)
        if dtype != self.case.dtype:
            raise Refused(f"the {what} is {dtype}, not {self.case.dtype}")
        size = np.abs(expected)
        allowed = np.maximum(4 * EPS * (kappa + size), 1e-4 * (1 + size))
        allowed += HALF_UNIT[dtype] * size + slack * (1 + size)
        _near(what, self._float64(actual), expected, allowed)

    def _float64(self, x):
        # Through float32: NumPy has no bfloat16.
        x = ops.cast(x[self.part], "float32")
        return ops.convert_to_numpy(x).astype("float64")


def _near(what, actual, expected, allowed):
    if actual.shape != expected.shape:
        raise Refused(f"the {what} has shape {actual.shape}, not {expected.shape}")
    error = np.abs(actual - expected)
    if not (error <= allowed).all():  # NaN isn't either
        raise Refused(
            f"the {what} is off by {np.max(error):.2g}, "
            f"{np.max(error / allowed):.2g} times what is allowed"
        )


def measure(case, *, timing, modes=tuple(TRAVERSALS), providers=PROVIDERS, kept=False):
    """Compares the providers on one case.

    Args:
        case: `Case`.
        timing: dictionary, arguments of `harness.interleave`.
        modes: of "training" and "inference".
        providers: names of `PROVIDERS`.
        kept: whether to measure the bytes kept for the backward pass, too.

    Returns:
        One dictionary for each mode and provider, the columns of a table. A provider
        whose status isn't "ok" has no figures, but its error.
    """
    framework = frameworks.active()
    x, dy = case.tensors()
    gate = Gate(case, x, dy)
    functions = {mode: {"copy": framework.copy_step(x)} for mode in modes}
    errors, shares = {}, {}
    for provider in providers:
        try:
            subject = case.subject(provider)
            steps = {
                "training": framework.training_step(subject, x, dy),
                "inference": framework.inference_step(subject, x),
            }
            gate.check(subject, steps["training"], steps["inference"])
            if kept:
                shares[provider] = framework.bytes_kept(subject, x) / _bytes(case)
        except Exception as error:  # whatever its framework raises
            errors[provider] = _one_line(error)
            continue
        for mode in modes:
            functions[mode][provider] = steps[mode]

    rows = []
    for mode in modes:
        others = harness.others()
        samples = harness.interleave(
            functions[mode], synchronize=framework.synchronize, **timing
        )
        taken = others()
        # The fastest, as nothing is a floor that is now and then undercut.
        copy = min(samples.pop("copy")) * 1e3
        for provider in providers:
            row = {
                "shape": "x".join(map(str, case.shape)),
                "axis": case.axis,
                "elements": math.prod(case.shape),
                "channels": case.shape[case.axis],
                "dtype": case.dtype,
                "mode": mode,
                "provider": provider,
                "status": "failed" if provider in errors else "ok",
                "error": errors.get(provider, ""),
            }
            if provider in samples:
                row |= harness.summary(samples[provider])
                row |= {"rounds": len(samples[provider]), "others": taken}
                # The copy's two passes take `copy` milliseconds.
                row["floor_ms"] = TRAVERSALS[mode] / 2 * copy
                traffic = TRAVERSALS[mode] * _bytes(case) / 1e6
                row["copy_gb_s"] = traffic / row["floor_ms"]
                row["achieved_gb_s"] = traffic / row["median_ms"]
                if kept and mode == "training":
                    row["kept"] = shares[provider]
            rows.append(row)
            print(describe(row), flush=True)
    return rows


def describe(row):
    """One line of a row, for those who watch."""
    name = f"{row['shape']:16} {row['dtype']:8} {row['mode']:9} {row['provider']:12}"
    if row["status"] != "ok":
        return f"{name} {row['status']}: {row['error']}"
    return (
        f"{name} {row['median_ms']:9.3f} ms [{row['p20_ms']:.3f}, {row['p80_ms']:.3f}]"
        f"  {row['median_ms'] / row['floor_ms']:.1f} x floor"
    )


def ours_failed(rows):
    """The rows in which this package's own layer didn't pass."""
    return [r for r in rows if r["status"] != "ok" and r["provider"].startswith("ours")]


def _one_line(error):
    # Without the escape codes that Keras prints parts in bold with.
    text = re.sub(r"\x1b\[\d*m", "", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:200]


def _bytes(case):
    return math.prod(case.shape) * {"float32": 4, "bfloat16": 2}[case.dtype]
