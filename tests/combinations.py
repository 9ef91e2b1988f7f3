"""Random calls of the layer, each compared with the oracle: what the fuzzer runs.

A `Combination` says everything about a few calls of one layer: the inputs and how
they lie in memory, the mask, the arguments, and whether and how it is compiled.
`draw` makes one of a seed, `check` runs it and asserts that outputs, gradients and
every statistic are those of `keras_bnx.reference`, and that a saved layer goes on bit
for bit; `simplified` takes away from one that fails what isn't needed for it.

Combinations are drawn evenly by NumPy, not by hypothesis: five of its six examples
resemble the one before, and each is a second of compilation on JAX.
"""

import contextlib
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import keras
import numpy as np
from frameworks import float64_enabled, tensor_of, to_numpy, with_gradients
from keras import ops
from tolerance import EPS

from keras_bnx import BatchNormalization, force_implementation, reference

# Native arithmetic takes `x * a + b`, or a mean rounded to one number, up to this
# mean/std; an error may grow with it so far and no further.
CONDITION_LIMIT = 10.0


@dataclass(frozen=True)
class Combination:
    shape: tuple = (8, 3)
    axis: object = -1  # or a tuple
    layout: str = "contiguous"  # "permuted", "strided", "expanded": PyTorch's views
    dtype: str = "float32"
    policy: str = "float32"
    ratio: float = 0.0  # mean / std
    std: float = 1.0
    mask: tuple = None  # its shape
    mask_kind: str = "bool"  # "weights", "nothing" (all False), "poison" (NaN where 0)
    bad: float = None  # the value of one element in the first call
    arguments: dict = field(default_factory=dict)
    frozen: str = None
    training: object = True  # or "traced True", "traced False", False
    how: str = "eager"  # "compiled", "unknown": compiled for unknown sizes
    implementation: str = "auto"
    calls: int = 1
    saved: bool = False  # whether a copy is saved, loaded and called
    seed: int = 0

    def __repr__(self):
        """What differs from the defaults, to be copied into a test."""
        default = type(self)()
        shown = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(default, f.name)
        )
        return f"Combination({', '.join(shown)})"

    @property
    def channel_axes(self):
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(sorted(a % len(self.shape) for a in axes))

    @property
    def trains(self):
        return self.training in (True, "traced True") and self.frozen != "statistics"

    def data(self, call):
        """Inputs and upstream gradients as float64 of what `dtype` holds, the mask."""
        rng = np.random.default_rng([self.seed, call])
        x = self.std * (rng.normal(size=self.shape) + self.ratio)
        dy = np.round(rng.normal(size=self.shape) * 8) / 8
        mask = None
        if self.mask is not None:
            kept = rng.uniform(size=self.mask) > 0.3
            if self.mask_kind == "nothing":
                kept = np.zeros(self.mask, bool)
            mask = kept
            if self.mask_kind == "weights":
                mask = (kept * rng.uniform(0.25, 2.0, self.mask)).astype("float32")
            if self.mask_kind == "poison":
                counts = np.broadcast_to(weights_of(self, mask) > 0, self.shape)
                x = np.where(counts, x, np.nan)
        if self.layout == "expanded":
            dy = np.full(self.shape, 0.5)  # as the gradient of a sum
        if self.bad is not None and call == 0 and x.size:
            x.reshape(-1)[rng.integers(x.size)] = self.bad
        return rounded(x, self.dtype), dy, mask


def rounded(x, dtype):
    """The nearest numbers that `dtype` holds, as float64."""
    if dtype == "bfloat16":
        # The upper half of a float32, to the nearest.
        bits = x.astype("float32").view("uint32").astype("uint64")
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype("uint32")
        found = nearest.view("float32").reshape(x.shape)
        return np.where(np.isfinite(x), found, x).astype("float64")
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype("float64")


def weights_of(combination, mask):
    """A mask as the weights that broadcast against the inputs, the oracle's form."""
    if mask is None or mask.ndim == len(combination.shape):
        return mask
    axes = combination.channel_axes
    missing = len(combination.shape) - len(axes) - mask.ndim
    return np.expand_dims(mask.reshape(mask.shape + (1,) * missing), axes)


def build(combination):
    """The layer, with random weights and moving statistics near the data's."""
    c = combination
    layer = BatchNormalization(axis=c.axis, dtype=c.policy, **c.arguments)
    layer.build(c.shape)
    if c.frozen is not None:
        layer.freeze(statistics=c.frozen == "statistics", affine=c.frozen == "affine")
    rng = np.random.default_rng([c.seed, 99])
    shape = tuple(layer.moving_mean.shape)
    variance = c.std**2 * rng.uniform(0.5, 1.5, shape)
    mean = c.std * (c.ratio + rng.normal(size=shape))
    values = {
        "gamma": rng.uniform(0.5, 1.5, shape),
        "beta": rng.normal(size=shape),
        "moving_mean": mean,
        "moving_variance": variance,
        "moving_stddev": np.sqrt(variance + layer.epsilon),
        "renorm_mean": mean + c.std * 0.1,
        "renorm_stddev": np.sqrt(1.2 * variance + layer.epsilon),
    }
    for name, value in values.items():
        if getattr(layer, name, None) is not None:
            getattr(layer, name).assign(value)
    return layer


def oracle_of(layer):
    """The oracle's state and arguments: the numbers that a layer has stored."""
    axes = layer.axis if isinstance(layer.axis, tuple) else (layer.axis,)

    def vector(weight):
        value = to_numpy(weight.value).astype("float64")
        if isinstance(layer.axis, tuple):
            kept = sorted(a % value.ndim for a in axes)
            value = value.reshape([value.shape[a] for a in kept])
        return value

    stored = {w.name: vector(w) for w in _statistics(layer)}
    debiased = {
        name.removeprefix("debiased_"): stored.pop(name)
        for name in list(stored)
        if name.startswith("debiased_")
    }
    state = reference.State(**stored, debiased=debiased)
    names = (
        "axis momentum epsilon renorm renorm_momentum virtual_batch_size "
        "unbiased_moving_variance debias_moving_statistics"
    )
    return state, reference.Arguments(
        gamma=None if layer.gamma is None else vector(layer.gamma),
        beta=None if layer.beta is None else vector(layer.beta),
        renorm_clipping=dict(layer.renorm_clipping or {}),
        largest=float(np.finfo(to_numpy(layer.moving_mean.value).dtype).max),
        activation=_activation(layer),
        # Keras's own layer lacks ours.
        **{name: getattr(layer, name, None) for name in names.split()},
    )


def _activation(layer):
    """The name of a layer's activation; Keras's own has none."""
    config = layer.get_config()
    return config.get("activation")


def check(combination):
    """Runs a combination; raises an `AssertionError` that says what differs."""
    c = combination
    wide = "float64" if "float64" in (c.dtype, c.policy) else "float32"
    with contextlib.ExitStack() as stack:
        stack.enter_context(force_implementation(c.implementation))
        if wide == "float64":
            stack.enter_context(float64_enabled())
        layer = build(c)
        run = with_gradients(layer, training=c.training, how=c.how)
        for call in range(c.calls):
            _check_call(c, layer, run, call, wide)
        if c.saved:
            _check_that_a_saved_layer_goes_on(c, layer)


def _check_call(c, layer, run, call, wide):
    x, dy, mask = c.data(call)
    state, arguments = oracle_of(layer)
    weights = weights_of(c, mask)
    expected = reference.batch_normalization(
        x, state, arguments, weights=weights, training=c.trains
    )
    dx, dgamma, dbeta = reference.gradients(expected, dy, x)

    found = run(
        tensor_of(x, c.dtype, c.layout),
        tensor_of(dy, layer.compute_dtype, c.layout),
        None if mask is None else ops.convert_to_tensor(mask),
    )

    assert keras.backend.standardize_dtype(found["y"].dtype) == layer.compute_dtype
    bounds = _Bounds(c, expected, x, dy, weights, arguments, wide)
    counts = True if weights is None else weights > 0
    free = np.broadcast_to(counts, x.shape) & ~np.isfinite(x)
    for name, wanted, bound in (
        ("y", expected.y, bounds.y),
        ("dx", dx, bounds.dx),
        ("gamma", dgamma, bounds.dgamma),
        ("beta", dbeta, bounds.dbeta),
    ):
        if name in found:
            dtype = keras.backend.standardize_dtype(found[name].dtype)
            value = to_numpy(found[name])
            if name == "dx":
                assert dtype == c.dtype
            wanted = np.reshape(wanted, value.shape)
            # The gradient of an element that counts and isn't finite is free, and so is
            # all that an activation makes of one: frameworks disagree about its slope.
            if name == "dx" or arguments.activation is not None:
                found_free = free
                if name in ("gamma", "beta"):
                    found_free = reference._rows(free, c.axis).any(axis=0)
                    found_free = found_free.reshape(value.shape)
                value = np.where(found_free, wanted, value)
            bound = np.reshape(
                bound, value.shape if name in ("gamma", "beta") else np.shape(bound)
            )
            _assert_within(value, wanted, bound, dtype, f"call {call}, {name}")
    after = {f"debiased_{k}": v for k, v in expected.state.debiased.items()}
    after |= vars(expected.state)
    for weight in _statistics(layer):
        value = to_numpy(weight.value)
        wanted = after.get(weight.name)
        if wanted is None:
            wanted = np.zeros_like(expected.state.moving_mean)
        bound = bounds.statistic(weight.name, wanted, state)
        dtype = keras.backend.standardize_dtype(weight.dtype)
        value = value.reshape(wanted.shape)
        _assert_within(value, wanted, bound, dtype, f"call {call}, {weight.name}")


def _statistics(layer):
    """Vectors of statistics: neither frozen weights nor the count of steps."""
    others = ("gamma", "beta", "steps")
    return [w for w in layer.non_trainable_variables if w.name not in others]


class _Bounds:
    """How far off each result may be: units of rounding of the terms it is made of.

    None of them grows with the mean of a channel beyond `CONDITION_LIMIT` deviations.
    """

    def __init__(self, c, step, x, dy, weights, arguments, wide):
        self.eps = EPS[wide]
        steps = [step] if step.parts is None else [part for part, _ in step.parts]
        channels = tuple(np.shape(x)[a] for a in c.channel_axes)

        def largest(values):
            values = [np.zeros(channels), *values]
            return np.max([np.broadcast_to(v, channels) for v in values], axis=0)

        def most(rows):
            rows = np.where(np.isfinite(rows), np.abs(rows), 0.0)
            return rows.max(axis=0, initial=0.0)

        x_hat = largest([most(s.x_hat) for s in steps])
        inv = largest([s.inv for s in steps])
        r = largest([np.abs(s.r) for s in steps])
        d = largest([np.abs(s.d) for s in steps])
        gamma = (
            np.ones(channels) if arguments.gamma is None else np.abs(arguments.gamma)
        )
        beta = np.zeros(channels) if arguments.beta is None else np.abs(arguments.beta)
        rows = reference._rows(x, arguments.axis)
        dys = np.abs(reference._rows(dy, arguments.axis))
        kappa = most(rows) * inv
        if wide == "float64":
            # There the oracle's own mean is rounded, too.
            grows = 2 * kappa
        else:
            grows = np.minimum(kappa, CONDITION_LIMIT * 1.5)
        n = max(len(rows), 1)
        # A sum in one chain of n additions loses more digits than one in blocks.
        units = 6.0 + 2.0 * grows + 0.05 * np.sqrt(n)
        size = 1.0 + x_hat
        # r and d are made of the batch's statistics and the moving ones.
        correction = gamma * (r * size + d) * (1.0 if not arguments.renorm else 4.0)
        self.units = units
        self.stored = "float64" if c.policy == "float64" else "float32"
        self.y = self._along(units * self.eps * (correction + beta), c)
        if arguments.activation is not None:
            # The first derivative is at most 1.2. How far `z` is off is multiplied by
            # the second one, and that by all of the upstream gradients.
            off = units * self.eps
            for dtype in ("bfloat16", "float16"):
                # Rounded before the activation, too, as between two layers.
                if c.policy.removeprefix("mixed_") == dtype:
                    off = off + EPS[dtype]
            self.y = self._along(2.0 * off * (1.0 + correction + beta), c)
            units = off / self.eps * (2.0 + correction + beta)
        upstream = 1.0 + most(dys)
        self.dx = self._along(
            4 * units * self.eps * gamma * r * inv * size**2 * upstream, c
        )
        total = dys.sum(axis=0)
        if arguments.virtual_batch_size is not None:
            # What the virtual batches and the rest have is added in the weights' dtype.
            total = total * max(1.0, np.finfo(self.stored).eps / self.eps)
        with np.errstate(over="ignore", invalid="ignore"):
            self.dgamma = 2 * units * self.eps * (r * size + d) * (total + 1.0)
        self.dbeta = units * self.eps * (total + 1.0)
        # The largest of those of virtual batches.
        self.deviation = largest(
            [
                np.where(s.inv > 0, 1.0 / np.where(s.inv > 0, s.inv, 1.0), 0.0)
                for s in steps
            ]
        )

    @staticmethod
    def _along(vector, c):
        sizes = [n if i in c.channel_axes else 1 for i, n in enumerate(c.shape)]
        return np.reshape(vector, sizes)

    def statistic(self, name, wanted, state):
        if name.endswith("updates"):
            return np.zeros_like(wanted)
        before = np.abs(getattr(state, name, 0.0))
        size = np.abs(wanted) + np.where(np.isfinite(before), before, 0.0)
        if name.endswith("mean"):
            # Rounded when it is stored, and its step may be a whole unit.
            return 4 * self.eps * (size + self.units * self.deviation)
        # A root of `variance + epsilon` less epsilon, under renorm, and the root is
        # stored in the weights' dtype.
        eps = max(self.eps, np.finfo(self.stored).eps)
        return 4 * eps * self.units * (size + self.deviation**2)


def _assert_within(actual, expected, bound, dtype, what):
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    actual = actual.astype("float64")
    if dtype == "float16":
        expected = np.where(np.abs(expected) < 65520, expected, np.nan)
    finite = np.isfinite(expected)
    assert not np.isfinite(actual[~finite]).any(), f"{what}: finite where it mustn't be"
    allowed = np.broadcast_to(bound, expected.shape)[finite]
    actual, expected = actual[finite], expected[finite]
    if dtype in ("float16", "bfloat16"):
        allowed = allowed + EPS[dtype] / 2 * np.abs(expected) + 2.0**-25
    allowed = allowed + EPS[
        "float64" if dtype == "float64" else "float32"
    ] * 2 * np.abs(expected)
    off = np.abs(actual - expected)
    wrong = ~(off <= allowed)
    if wrong.any():
        i = np.argmax(
            np.where(wrong, np.nan_to_num(off / (allowed + 1e-300), nan=1e300), 0)
        )
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} are off, the worst is "
            f"{actual[i]!r} for {expected[i]!r}, {off[i]:.2g} instead of at most "
            f"{allowed[i]:.2g}"
        )


def _check_that_a_saved_layer_goes_on(c, layer):
    """A model of the layer, saved, loaded and cloned, does the same bit for bit."""
    model = keras.Sequential([keras.Input(batch_shape=c.shape), layer])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
        weights = Path(folder) / "a.weights.h5"
        model.save_weights(weights)
        cloned = keras.models.clone_model(model)
        cloned.load_weights(weights)
    x, _, mask = c.data(c.calls)
    results = []
    for each in (model, loaded, cloned):
        (own,) = each.layers
        outputs = [
            own(tensor_of(x, c.dtype, c.layout), training=training, mask=mask)
            for training in (True, False)
        ]
        results.append([*outputs, *(w.value for w in own.weights)])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(to_numpy(theirs), to_numpy(mine))


def draw(seed, backend=None):
    """Returns the combination of a seed, of those that the layer promises to serve."""
    backend = backend or keras.config.backend()
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    def chance(one_in):
        return rng.integers(one_in) == 0

    rank = pick(1, 2, 2, 2, 3, 3, 3, 4, 4, 5)
    shape = [pick(0, 1, 1, 2, 3, 4, 5, 7, 8) for _ in range(rank)]
    axis = int(rng.integers(-rank, rank))
    if rank > 1 and chance(4):
        axes = rng.permutation(rank)[: pick(2, min(rank, 3))]
        axis = tuple(int(a) - rank * int(rng.integers(2)) for a in axes)
    channel_axes = {a % rank for a in np.atleast_1d(axis)}
    others = [i for i in range(rank) if i not in channel_axes]
    for a in channel_axes:
        shape[a] = max(shape[a], 1)
    if others and chance(8):
        # Enough rows for kernels that see many of them as one.
        shape[others[0]] = pick(64, 129, 1030)
    if chance(2):
        # An empty batch is a case of its own; most should hold something.
        shape = [max(n, 2) for n in shape]

    dtype, policy = pick(
        *[("float32", "float32")] * 5,
        ("float64", "float64"),
        ("float64", "float32"),
        ("float32", "float64"),
        ("float16", "mixed_float16"),
        ("bfloat16", "mixed_bfloat16"),
        ("float32", "mixed_bfloat16"),
        ("float16", "float32"),
        ("bfloat16", "bfloat16"),
    )
    narrow = dtype in ("float16", "bfloat16")
    arguments = {}

    def maybe(one_in, name, *values):
        if chance(one_in):
            arguments[name] = pick(*values)

    maybe(2, "momentum", 0.0, 0.5, 1.0, None)
    maybe(4, "epsilon", 1e-5, 0.1)
    maybe(4, "center", False)
    maybe(4, "scale", False)
    maybe(3, "virtual_batch_size", 1, 2, 3, 5, 100)
    maybe(4, "unbiased_moving_variance", True)
    maybe(4, "debias_moving_statistics", True)
    maybe(6, "synchronized", True)
    maybe(4, "renorm", True)
    if "renorm" in arguments:
        maybe(2, "renorm_momentum", 0.0, 0.5, 1.0)
        limits = {"rmin": 0.9, "rmax": 1.2, "dmax": 0.5}
        maybe(2, "renorm_clipping", {"rmax": 1.1}, limits, {"dmax": 0.1})

    # By a generator of its own: the other draws stay what they were.
    own = np.random.default_rng([seed, 1])
    if own.integers(4) == 0:
        names = ["elu", "relu", "relu6", "silu", "softplus"]
        arguments["activation"] = names[own.integers(len(names))]

    mask, mask_kind = None, "bool"
    if others and chance(2):
        mask_kind = pick("bool", "bool", "weights", "nothing", "poison")
        form = pick("prefix", "one channel", "channels")
        if form == "prefix":
            mask = [shape[i] for i in others[: rng.integers(1, len(others) + 1)]]
        else:
            kept = others if form == "one channel" else range(rank)
            mask = [n if i in kept else 1 for i, n in enumerate(shape)]
        mask = tuple(1 if chance(5) else n for n in mask)
    # By what they cost: Dynamo traces for seconds, and JAX compiles eager calls, too.
    compiled = {"torch": 50, "tensorflow": 3}.get(backend, 1)
    bads = (None, None, None, np.inf, -np.inf, np.nan) + (() if narrow else (1e25,))
    return Combination(
        shape=tuple(shape),
        axis=axis,
        layout=pick("contiguous", "permuted", "strided", "expanded")
        if backend == "torch"
        else "contiguous",
        dtype=dtype,
        policy=policy,
        ratio=pick(
            *(0.0, 0.0, 1.0, 5.0, 30.0), *([] if narrow else (1e2, 1e3, 1e4, 1e5))
        ),
        std=1.0 if narrow else pick(1.0, 1.0, 1e-2, 1e3),
        mask=mask,
        mask_kind=mask_kind,
        bad=pick(*bads) if chance(3) else None,
        arguments=arguments,
        frozen=pick("statistics", "affine") if chance(6) else None,
        training=pick(*[True] * 5, False, "traced True", "traced False"),
        how=pick("compiled", "unknown") if chance(compiled) else "eager",
        implementation=pick("auto", "auto", "generic"),
        calls=pick(1, 1, 2, 3),
        saved=bool(chance(40 if backend == "jax" else 10)),
        seed=int(seed % 1000),
    )


def simplified(combination, fails):
    """The combination with as many fields at their defaults as still make it fail.

    Args:
        combination: one that fails.
        fails: `Combination -> bool`.
    """
    c, default = combination, Combination()
    simpler = [
        lambda c, name=f.name: replace(c, **{name: getattr(default, name)})
        for f in fields(Combination)
        if f.name not in ("shape", "axis", "arguments")
    ]
    simpler += [
        lambda c, name=name: replace(
            c, arguments={k: v for k, v in c.arguments.items() if k != name}
        )
        for name in c.arguments
    ]
    for simplify in simpler:
        candidate = simplify(c)
        if candidate != c and fails(candidate):
            c = candidate
    return c
