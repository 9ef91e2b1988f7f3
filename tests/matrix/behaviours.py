"""The rows of the matrix: behaviours of the layer, each with its cases.

A case is a function of `Findings` and a layer class, ours or Keras's: it calls the
layer and compares what comes out with the float64 oracle, or with what has to be the
same. Nothing here knows which of the two classes is right. The rows of the group
DIFFERENT are those of the table in docs/differences.md, by the same names.
"""

import contextlib
import functools
import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import cases
import keras
import numpy as np
import replicas
from combinations import oracle_of
from comparison import gradient_tolerances, largest_kappa, make, second_order, tensor
from frameworks import (
    compiled,
    float64_enabled,
    functional,
    one_step,
    require,
    statistics,
    tensor_of,
    to_numpy,
    vmap,
    with_gradients,
)
from keras import ops
from tolerance import allowed_error, kappa

from benchmarks import frameworks as kernels
from keras_bnx import keep_moving_statistics, reference, renorm_schedule

SAME = "What is as in Keras"
DIFFERENT = "What differs from Keras's layer, and why"
BEYOND = "What it can do beyond Keras's layer"

KERAS = keras.layers.BatchNormalization
# An eager gradient on JAX is 50 small compilations.
HOW = "compiled" if keras.config.backend() == "jax" else "eager"
# Native kernels add in their own order, see test_batch_normalization.py.
UNITS = 16.0


@dataclass(frozen=True)
class Example:
    name: str
    reason: str
    run: object  # a function of `Findings` and a layer class


@dataclass(frozen=True)
class Row:
    name: str
    group: str
    examples: list = field(default_factory=list)

    def example(self, name, reason, /, **arguments):
        """Registers a function, with some of its arguments, as a case of the row."""

        def register(function):
            run = functools.partial(function, **arguments)
            self.examples.append(Example(name, reason, run))
            return function

        return register

    def table(self, compare, names):
        """Takes cases of `cases.py`, whose names are separated by spaces."""
        for name in names.split():
            case = TABLE.pop(name)
            self.example(case.name, case.reason, case=case)(compare)
        return self


# Each case is taken by one row; what remains is an error, at the end of the module.
TABLE = {case.name: case for case in cases.CASES}
ROWS = []


def row(group, name):
    ROWS.append(Row(name, group))
    return ROWS[-1]


def random(*shape, mean=0.0, std=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, std, shape).astype("float32")


def built(cls, shape=(None, 3), **arguments):
    layer = cls(**{"momentum": 0.5, **arguments})
    layer.build(shape)
    return layer


def oracle(layer, x, **kwargs):
    """The oracle's step for a layer as it is now."""
    return reference.batch_normalization(x, *oracle_of(layer), **kwargs)


def call(layer, x, dy=None, mask=None, training=True):
    """Outputs, and gradients for upstream `dy`, as `with_gradients` has them."""
    run = with_gradients(layer, training=training, how=HOW)
    dy = np.ones_like(x) if dy is None else dy
    mask = None if mask is None else ops.convert_to_tensor(mask)
    found = run(*map(ops.convert_to_tensor, (x, dy)), mask)
    return {name: to_numpy(value) for name, value in found.items()}


def compare_statistics(findings, layer, state, **tolerance):
    tolerance = {"scale": 0.0, "units": UNITS, **tolerance}
    expected = {f"debiased_{k}": v for k, v in state.debiased.items()} | vars(state)
    for name, value in statistics(layer).items():
        if name in expected:
            wanted = expected[name]
            findings.rule(name, value.reshape(wanted.shape), wanted, **tolerance)


def as_the_oracle(findings, cls, case, training=True):
    """A case of `cases.py`: outputs, gradients and moving statistics."""
    wide = case.wide
    context = float64_enabled() if wide == "float64" else contextlib.nullcontext()
    with context:
        layer, x, dy = make(case, cls), case.inputs(), case.upstream()
        mask, weights = case.weights()
        state, arguments = oracle_of(layer)
        step = reference.batch_normalization(
            x, state, arguments, weights=weights, training=training
        )
        dx, dgamma, dbeta = reference.gradients(step, dy, x)
        run = with_gradients(layer, training=training, how=HOW)
        upstream = ops.convert_to_tensor(dy.astype(wide), layer.compute_dtype)
        masked = None if mask is None else ops.convert_to_tensor(mask)
        found = run(tensor(case, x), upstream, masked)
        found = {name: to_numpy(value) for name, value in found.items()}

    findings.rule(
        "outputs",
        found["y"],
        step.y,
        scale=largest_kappa(case, x, weights, layer.epsilon),
        dtype=layer.compute_dtype,
        # 40 were seen of Keras's layer on TensorFlow, over 100,000 rows.
        units=UNITS if x.size < 10_000 else 4 * UNITS,
    )
    compare_statistics(findings, layer, step.state, dtype=wide)
    require("gradients")
    allowed = gradient_tolerances(case, arguments, step, dy)
    findings.rule("dx", found["dx"], dx, dtype=case.dtype, **allowed["inputs"])
    for name, wanted in (("gamma", dgamma), ("beta", dbeta)):
        if name in found:
            value = found[name].reshape(wanted.shape)
            findings.rule(f"d{name}", value, wanted, dtype=wide, **allowed["weights"])


def whatever_the_mean(findings, cls, case):
    """Outputs within 1e-3, and half a unit of 16 bits: what no mean excuses."""
    layer, x = make(case, cls), case.inputs()
    mask, weights = case.weights()
    step = oracle(layer, x, weights=weights)
    y = to_numpy(layer(tensor(case, x), training=True, mask=mask))
    half = allowed_error(step.y, scale=0.0, dtype=layer.compute_dtype, units=0.0)
    findings.near("outputs", y, step.y, 1e-3 + half)


inference = functools.partial(as_the_oracle, training=False)

# ---- What is as in Keras

row(SAME, "outputs, gradients, moving statistics in training").table(
    as_the_oracle,
    "dense images channels_first sequence volume middle_axis first_axis one_channel "
    "two_rows few_channels few_channels_odd wide",
)
ROWS[-1].table(as_the_oracle, "small")
row(SAME, "long sums").table(as_the_oracle, "many_rows many_images")
row(SAME, "`center`, `scale`, `epsilon`, `momentum`").table(
    as_the_oracle, "no_affine no_beta no_gamma epsilon momentum_0 momentum_1"
)
row(SAME, "`renorm`").table(
    as_the_oracle, "renorm renorm_clipped renorm_no_affine renorm_mask"
)
row(SAME, "masks of the inputs' shape without channels").table(
    as_the_oracle, "mask mask_images mask_ones"
)
row(SAME, "16-bit inputs").table(as_the_oracle, "float16_0 bfloat16_0")
row(SAME, "mixed precision").table(
    as_the_oracle,
    " ".join(
        f"mixed_{dtype}_{name}"
        for dtype in ("float16", "bfloat16")
        for name in "rows images_first few_channels mask renorm".split()
    ),
)

still = row(SAME, "inference")
for case in cases.CASES:
    if case.name in "dense images channels_first no_affine mask renorm".split():
        still.example(case.name, case.reason, case=case)(inference)


@still.example("trainable", "`trainable=False` is inference", name="trainable")
@still.example("training", "`training=False` moves nothing", name="training")
def leaves_statistics(findings, cls, name):
    layer = built(cls)
    before, x = statistics(layer), random(8, 3, mean=4.0)
    expected = oracle(layer, x, training=False).y
    layer.trainable = name != "trainable"
    y = to_numpy(layer(x, training=name == "trainable"))
    findings.rule("outputs", y, expected, scale=kappa(x))
    layer.trainable = True
    for key, value in statistics(layer).items():
        findings.equal(key, value, before[key])


files = row(SAME, "files and copies")
X = random(32, 3, mean=2.0, std=3.0)


def trained(cls, **arguments):
    layer = cls(**{"momentum": 0.5, "name": "bn", **arguments})
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.MeanSquaredError())
    layer.gamma.assign([0.5, 1.0, 1.5])
    layer.beta.assign([1.0, 2.0, 3.0])
    # Not `fit`, which NumPy lacks: what follows is about numbers, not how they came.
    for part in np.split(X, 2):
        model(part, training=True)
    return model


@files.example("keras", "a whole model", suffix="keras")
@files.example("h5", "Keras 2's format of whole models", suffix="h5")
@files.example("pickle", "which joblib and multiprocessing use", suffix="pickle")
@files.example("renorm", "three weights more", suffix="keras", renorm=True)
def predicts_the_same(findings, cls, suffix, **arguments):
    model = trained(cls, **arguments)
    if suffix == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model.{suffix}"
            model.save(path)
            other = keras.models.load_model(path, compile=False)
    findings.equal("class", type(other.get_layer("bn")), cls)
    expected = model.predict(X, verbose=0)
    findings.rule("predictions", other.predict(X, verbose=0), expected.astype(float))


@files.example("weights", "Keras's weights, and back", renorm=False)
@files.example("weights_renorm", "the same of renorm", renorm=True)
def exchanges_weights(findings, cls, renorm):
    model, kerass = trained(cls, renorm=renorm), trained(KERAS, renorm=renorm)
    expected = kerass.predict(X, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.weights.h5"
        kerass.save_weights(path)
        model.load_weights(path)
        y = model.predict(X, verbose=0)
        findings.rule("predictions", y, expected.astype(float), units=UNITS)
        model.save_weights(path)
        kerass.load_weights(path)
    findings.equal("predictions after", kerass.predict(X, verbose=0), expected)


@files.example("config", "Keras's entries, values and order")
def has_kerass_config(findings, cls):
    arguments = {"renorm": True, "gamma_regularizer": "l2", "name": "bn"}
    theirs = KERAS(**arguments).get_config()
    findings.equal("config", cls(**arguments).get_config() == theirs, True)


fitting = row(SAME, "`fit`")


@fitting.example("compiled", "by the backend's compiler, as `fit` chooses")
@fitting.example("eager", "step by step", run_eagerly=True)
def follows_the_batches_of_fit(findings, cls, **arguments):
    require("`fit`")
    layer, x = cls(momentum=0.5), random(64, 4, mean=3.0)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **arguments)
    state, how = oracle_of(layer)
    for start in range(0, 64, 16):
        part = x[start : start + 16]
        state = reference.batch_normalization(part, state, how).state
    model.fit(x, x[:, :1], batch_size=16, shuffle=False, verbose=0)
    # Four updates, each with roundings of its own.
    compare_statistics(findings, layer, state, units=4 * UNITS)


# ---- What differs from Keras's layer

row(
    DIFFERENT,
    "float32 outputs in training, largest error at r = 1e2, 1e3, 1e4, 1e5",
).table(
    whatever_the_mean,
    "mean_1e2 mean_1e2_many mean_1e3 mean_1e3_many mean_1e4 mean_1e4_many "
    "mean_1e5 mean_1e5_many few_channels_mean_1e3 raw_table mask_mean_1e5 "
    "float16_100 bfloat16_100 mixed_float16_mean_100 mixed_bfloat16_mean_100",
)

raw = row(DIFFERENT, "`fit` on columns of 5000 ± 0.1")


@raw.example("compiled", "a year, or a price, that nobody scaled")
@raw.example("eager", "without a compiler", run_eagerly=True)
def trains_on_raw_columns(findings, cls, **arguments):
    require("`fit`")
    x = random(256, 4)
    y = x @ np.array([[1.0], [-2.0], [0.5], [0.0]], "float32")
    x = 5000 + np.float32(0.1) * x
    layers = [keras.Input((4,)), cls(momentum=0.5), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), "mse", **arguments)
    loss = model.fit(x, y, epochs=8, batch_size=32, verbose=0).history["loss"]
    findings.finite("predictions", model.predict(x, verbose=0))
    # The variance of y is 5.
    findings.near("loss", loss[-1], 0.0, 1.0)


empty = row(DIFFERENT, "an empty batch (a replica without rows)")
masked_out = row(DIFFERENT, "a fully masked batch")


@empty.example("rows", "fewer rows than replicas", x=np.zeros((0, 3), "float32"))
@empty.example("images", "channels first", x=np.zeros((0, 3, 4, 5), "float32"), axis=1)
@empty.example(
    "renorm", "three averages more", x=np.zeros((0, 3), "float32"), renorm=True
)
@masked_out.example("bools", "padding alone", mask=np.zeros(8, bool))
@masked_out.example("floats", "sample weights of 0", mask=np.zeros(8, "float32"))
@masked_out.example("renorm", "and renorm", mask=np.zeros(8, bool), renorm=True)
@masked_out.example(
    "nan", "padding of NaN", x=np.full((8, 3), np.nan, "float32"), mask=np.zeros(8)
)
def changes_nothing(findings, cls, x=None, mask=None, **arguments):
    x = random(8, 3, mean=5.0) if x is None else x
    layer = built(cls, x.shape, **arguments)
    layer(random(16, *x.shape[1:], mean=5.0), training=True)
    before = statistics(layer)
    y = to_numpy(layer(x, training=True, mask=mask))
    findings.equal("shape", y.shape, x.shape)
    findings.finite("outputs", np.append(y, 0.0))
    for key, value in statistics(layer).items():
        findings.equal(key, value, before[key])


spoiled = row(DIFFERENT, "one inf or NaN in a batch")


@spoiled.example("inf", "an overflow before the layer", value=np.inf)
@spoiled.example("minus_inf", "log(0)", value=-np.inf)
@spoiled.example("nan", "a missing value", value=np.nan)
@spoiled.example("1e30", "its square overflows", value=1e30)
@spoiled.example("renorm", "three averages more", value=np.inf, renorm=True)
def keeps_the_others(findings, cls, value, **arguments):
    layer, x, dy = built(cls, **arguments), random(16, 3), random(16, 3, seed=1)
    x[3, 1] = value
    dy[3, 1] = 0.0
    step = oracle(layer, x)
    found = call(layer, x, dy)
    finite = np.isfinite(x)
    findings.rule("outputs", found["y"][finite], step.y[finite], scale=10.0)
    compare_statistics(findings, layer, step.state, scale=1.0)
    require("gradients")
    findings.finite("gradients of finite elements", found["dx"][finite])


single = row(DIFFERENT, "one value per channel (a last batch of one row)")


@single.example("one_row", "33 rows in batches of 32", shape=(1, 3))
@single.example("one_counts", "a mask leaves one", shape=(4, 3), mask=np.arange(4) == 2)
@single.example("renorm", "and renorm", shape=(1, 3), renorm=True)
def has_no_variance(findings, cls, shape, mask=None, **arguments):
    layer, x = built(cls, **arguments), random(*shape, mean=7.0)
    layer.beta.assign([1.0, 2.0, 3.0])
    weights = None if mask is None else mask[:, None]
    step = oracle(layer, x, weights=weights)
    y = to_numpy(layer(x, training=True, mask=mask))
    findings.rule("outputs", y, step.y, scale=np.abs(x).max() / np.sqrt(1e-3))
    compare_statistics(findings, layer, step.state, scale=1.0)


padding = row(DIFFERENT, "NaN in padding under a mask")


@padding.example("training", "log or a division of padding", training=True)
@padding.example("inference", "at inference", training=False)
@padding.example("inf", "an overflow", training=True, poison=np.inf)
def keeps_padding_out(findings, cls, training, poison=np.nan):
    x, dy = random(6, 5, 3, mean=2.0), random(6, 5, 3)
    mask = np.arange(5) < np.array([5, 4, 3, 2, 1, 5])[:, None]
    x, dy = np.where(mask[..., None], x, 0), np.where(mask[..., None], dy, 0)
    layer = built(cls, x.shape)
    step = oracle(layer, x, weights=mask[..., None], training=training)
    expected = reference.gradients(step, dy, x)
    filled = np.where(mask[..., None], x, np.float32(poison))
    found = call(layer, filled, dy, mask, training)
    findings.rule("outputs", found["y"][mask], step.y[mask], scale=10.0)
    findings.finite("outputs of padding", found["y"])
    compare_statistics(findings, layer, step.state, scale=1.0)
    require("gradients")
    for name, wanted in zip(("dx", "gamma", "beta"), expected, strict=True):
        # Sums of 20 terms, each of size 1 to 5.
        findings.near(f"gradient of {name}", found[name], wanted, 1e-4)


row(DIFFERENT, "a mask with `axis=1`").table(
    as_the_oracle, "mask_channels_first weights_axis_1"
)
row(DIFFERENT, "masks of other ranks, of one channel, lists, real weights").table(
    as_the_oracle,
    "mask_batch_time mask_rows mask_one_channel mask_full_rank mask_per_channel "
    "weights",
)


@ROWS[-1].example("square", "of rows and time, where it fits from both ends")
def starts_with_the_batch(findings, cls):
    layer, x = built(cls, (4, 4, 4, 3)), random(4, 4, 4, 3)
    mask = np.arange(4) < np.array([4, 3, 2, 1])[:, None]
    step = oracle(layer, x, weights=mask[:, :, None, None])
    y = to_numpy(layer(x, training=True, mask=mask))
    findings.rule("outputs", y, step.y, scale=10.0)


@ROWS[-1].example("list", "a list of Python's bools")
def takes_lists(findings, cls):
    layer, x, kept = built(cls), random(6, 3), [True, False, True, True, False, True]
    step = oracle(layer, x, weights=np.array(kept)[:, None])
    y = to_numpy(layer(x, training=True, mask=kept))
    findings.rule("outputs", y, step.y, scale=10.0)


overflow = row(DIFFERENT, "`mixed_float16`, float32 inputs of 1e5")


@overflow.example("mixed", "beyond float16's 65504", policy="mixed_float16")
@overflow.example("pure", "a policy of float16 alone", policy="float16")
def survives_float16(findings, cls, policy):
    layer, x = built(cls, dtype=policy), random(64, 3, mean=1e5)
    step = oracle(layer, x)
    y = to_numpy(layer(x, training=True))
    findings.rule("outputs", y, step.y, scale=10.0, dtype="float16")
    compare_statistics(findings, layer, step.state, scale=1.0)


stalling = row(DIFFERENT, '`dtype="bfloat16"`, moving mean of 3.0 after 700 steps')


@stalling.example("700_steps", "steps below half a unit of 8 bits are lost")
def does_not_stall(findings, cls):
    layer = cls(dtype="bfloat16")
    x = ops.cast(random(64, 3, mean=3.0, std=0.5), "bfloat16")
    for _ in range(700):
        layer(x, training=True)
    # 0.99**700 of the initial 0 is left.
    expected = to_numpy(x).mean(0, dtype="float64") * (1 - 0.99**700)
    findings.near("moving mean", to_numpy(layer.moving_mean.value), expected, 1e-3)


row(DIFFERENT, '`dtype="float64"`, error').table(
    as_the_oracle, "float64 float64_renorm float64_mean_1e5"
)

second = row(DIFFERENT, "second-order gradients")


@second.example("rows", "gradient penalties, Hessians", shape=(8, 3))
@second.example("axis_1", "channels first", shape=(4, 3, 2), axis=1)
def has_second_derivatives(findings, cls, shape, **arguments):
    require("gradients")
    with float64_enabled():
        layer = built(cls, shape, dtype="float64", **arguments)
        found, expected = second_order(layer, shape)
    # Central differences of float64 gradients.
    findings.near(
        "Hessian times a vector", found, expected, 1e-6 + 1e-6 * abs(expected)
    )


graph = row(
    DIFFERENT,
    "one graph in training: `torch.compile(fullgraph=True)`, `tf.function`, `jit`",
)


@graph.example("plain", "one graph, also with `jit` and `tf.function`")
@graph.example("mask", "a mask", mask=True)
@graph.example("renorm", "state that decides about outputs", renorm=True)
def is_one_graph(findings, cls, mask=False, **arguments):
    layer, x = built(cls, **arguments), random(8, 3, mean=1.0)
    mask = np.arange(8) > 2 if mask else None
    first = oracle(layer, x, weights=None if mask is None else mask[:, None])
    mask = None if mask is None else ops.convert_to_tensor(mask)
    if keras.config.backend() == "jax":
        trainable = [v.value for v in layer.trainable_variables]

        def step(state, x):
            return layer.stateless_call(trainable, state, x, training=True, mask=mask)

        run, counter = compiled(step)
        before = [v.value for v in layer.non_trainable_variables]
        y, state = run(before, ops.convert_to_tensor(x))
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        run(state, ops.convert_to_tensor(x))
    else:
        # Keras creates a global at a layer's first call, which guards would miss.
        layer(ops.convert_to_tensor(x), training=False)
        run, counter = compiled(lambda x: layer(x, training=True, mask=mask))
        y = run(ops.convert_to_tensor(x))
        state = statistics(layer)
        run(ops.convert_to_tensor(x))
        for variable in layer.non_trainable_variables:
            if variable.name in state:
                variable.assign(state[variable.name])
    findings.equal("traces", counter.traces, 1)
    findings.rule("outputs", to_numpy(y), first.y, scale=10.0)
    compare_statistics(findings, layer, first.state, scale=1.0)


maps = row(DIFFERENT, "`vmap` over gamma and beta")


@maps.example("training", "ensembles; `torch.vmap`, `jax.vmap`, `tf.vectorized_map`")
@maps.example("inference", "at inference", training=False)
def is_mapped_over_its_weights(findings, cls, training=True):
    layer, x = built(cls), random(8, 3)
    gammas, betas = random(2, 3, mean=1.0), random(2, 3, seed=1)
    apply = functional(layer, training=training)
    tensors = map(ops.convert_to_tensor, (gammas, betas))
    ys = vmap(lambda g, b: apply(ops.convert_to_tensor(x), g, b))(*tensors)
    plain = oracle(layer, x, training=training).y
    for y, gamma, beta in zip(to_numpy(ys), gammas, betas, strict=True):
        findings.rule("outputs", y, plain * gamma + beta, scale=10.0)


recomputed = row(DIFFERENT, "`keras.remat`, statistics per step")


@recomputed.example("remat", "the forward pass runs twice, one step is taken")
def is_updated_once(findings, cls):
    layer, x = built(cls), random(16, 3, mean=1.0)
    step = oracle(layer, x)
    dx = reference.gradients(step, 3 * step.y**2, x)[0]
    found = one_step(layer, x, keras.remat)
    # Cubes of numbers up to 3, and sums of 16.
    findings.near("gradients", found, dx, 1e-4 * (10 + abs(dx)))
    compare_statistics(findings, layer, step.state, scale=1.0)


scope = row(DIFFERENT, 'layers made in `RematScope(mode="full")`')


@scope.example("fit", "one update a step")
def trains_in_a_scope(findings, cls):
    require("`fit`")
    x = random(16, 3, mean=1.0)
    with keras.RematScope(mode="full"):
        layer = cls(momentum=0.5)
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=16, epochs=2, verbose=0)
    mean = to_numpy(layer.moving_mean.value)
    findings.rule("moving mean", mean, x.mean(0, dtype="float64") * 0.75, units=UNITS)


traced = row(DIFFERENT, "`training` as a traced tensor")


@traced.example("true", "a switch inside of one compiled step", training=True)
@traced.example("false", "the other way", training=False)
def decides_late(findings, cls, training):
    layer, x = built(cls), random(8, 3, mean=4.0)
    step = oracle(layer, x, training=training)

    def apply(x, training):
        y, state = layer.stateless_call(
            [v.value for v in layer.trainable_variables],
            [v.value for v in layer.non_trainable_variables],
            x,
            training=training,
        )
        return y, state[0]

    run, _ = compiled(apply)
    y, mean = run(ops.convert_to_tensor(x), ops.convert_to_tensor(training))
    findings.rule("outputs", to_numpy(y), step.y, scale=kappa(x))
    findings.rule("moving mean", to_numpy(mean), step.state.moving_mean, scale=1.0)


SCENARIOS = {scenario.name: scenario for scenario in replicas.SCENARIOS}
ON_REPLICAS = []  # names of scenarios


@functools.cache
def results_on_replicas(count, keras_layer):
    names = [name for name in ON_REPLICAS if len(SCENARIOS[name].rows) == count]
    return replicas.run(count, names=names, keras_layer=keras_layer)


def as_one_batch(findings, cls, name):
    """A scenario of `replicas.py`, on each replica."""
    require("replicas")
    scenario = SCENARIOS[name]
    found = results_on_replicas(len(scenario.rows), cls is KERAS)[name]
    for one, wanted in zip(found, replicas.expected(scenario), strict=True):
        if isinstance(one, Exception):
            raise one
        scale = 30.0
        findings.rule("outputs", one["y"], wanted["y"], scale=scale)
        findings.rule("gradients", one["dx"], wanted["dx"], scale=scale)
        for key, value in one["statistics"].items():
            key = key.rpartition("/")[2]
            if key in wanted["statistics"]:
                findings.rule(key, value, wanted["statistics"][key], scale=2.0)


def on_replicas(row, reasons):
    for name, reason in reasons.items():
        ON_REPLICAS.append(name)
        # Also in a GPU's column, where one device has none to be summed with.
        reason = f"{reason}; on replicas of the CPU"
        row.example(name, reason, name=name)(as_one_batch)


on_replicas(
    row(DIFFERENT, "`synchronized=True`"),
    {
        "two": "halves of a batch",
        "large mean": "sums of squares cancel",
        "masks": "replicas count differently",
        "nobody has rows": "the end of an epoch",
        "one row each": "a variance of two replicas",
        "no affine": "no weights",
    },
)
on_replicas(
    row(DIFFERENT, "replicas that aren't synchronized"),
    {
        "local, two": "outputs of its own, one set of moving statistics",
        "local, no rows": "one replica is empty",
    },
)

arriving = row(DIFFERENT, "moving mean at r = 1e5, 1e6, after it has converged")


@arriving.example("1e5", "steps below half a unit of float32", ratio=1e5)
@arriving.example("1e6", "the same, and coarser", ratio=1e6)
def arrives(findings, cls, ratio):
    layer, x = built(cls, momentum=0.99), random(512, 3, mean=ratio, seed=1)
    layer.moving_mean.assign(np.full(3, ratio - 5.0))
    for _ in range(700):
        layer(x, training=True)
    expected = x.mean(0, dtype="float64") - 5.0 * 0.99**700
    # Of deviations, which are 1.
    findings.near("moving mean", to_numpy(layer.moving_mean.value), expected, 0.1)


kept = row(
    DIFFERENT, "bytes kept for the backward pass, in the inputs', float32; bfloat16"
)


@kept.example("float32", "the inputs alone", dtype="float32")
@kept.example("bfloat16", "in 16 bits", dtype="bfloat16")
@kept.example("channels_first", "axis 1", dtype="float32", axis=1)
@kept.example("renorm", "and renorm", dtype="float32", renorm=True)
def keeps_the_inputs(findings, cls, dtype, **arguments):
    require("gradients")
    shape = (64, 16, 10, 10) if "axis" in arguments else (64, 10, 10, 16)
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    layer = cls(dtype=policy, **arguments)
    subject = kernels.active().keras_layer(layer, shape)
    x = ops.cast(random(*shape), dtype)
    # Some vectors are kept as well, 20 at most.
    size = np.prod(shape) * (4 if dtype == "float32" else 2)
    bytes_kept = kernels.active().bytes_kept(subject, x) - 20 * 16 * 4
    findings.near("bytes, in those of the inputs", bytes_kept / size, 0.0, 1.0)


imported = row(DIFFERENT, "renorm, imported variance 100 after one step")


@imported.example("assigned", "weights of a plain layer, of PyTorch, of Flax")
def keeps_imported_variances(findings, cls):
    layer, x = built(cls, renorm=True, momentum=0.99), random(64, 3, std=10.0)
    layer.moving_variance.assign(np.full(3, 100.0))
    layer(x, training=True)
    found = to_numpy(layer.moving_variance.value)
    findings.near("moving variance", found, np.full(3, 100.0), 1.0)


loading = row(DIFFERENT, "plain and renorm weights, one into the other")


@loading.example("plain_into_renorm", "fine-tuning with renorm", renorm=True)
@loading.example("renorm_into_plain", "and back", renorm=False)
def loads_the_other(findings, cls, renorm):
    model, other = trained(cls, renorm=not renorm), trained(cls, renorm=renorm)
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(Path(folder) / "a.weights.h5")
        other.load_weights(Path(folder) / "a.weights.h5")
    expected = model.predict(X, verbose=0)
    y = other.predict(X, verbose=0)
    findings.rule("predictions", y, expected.astype(float), units=UNITS)


bad = row(DIFFERENT, "`momentum=1.5`, `epsilon=-1`, `axis=1.9`, complex inputs")


@bad.example("momentum", "beyond 1", momentum=1.5)
@bad.example("epsilon", "a negative number", epsilon=-1)
@bad.example("axis", "not an integer", axis=1.9)
@bad.example("complex", "not real", inputs="complex64")
def is_refused(findings, cls, inputs="float32", **arguments):
    value = next(iter(arguments.values()), inputs)
    try:
        cls(**arguments)(np.ones((2, 3), inputs))
        found = "accepted"
    except ValueError as error:
        found = "ValueError" if str(value) in str(error) else "without the value"
    except Exception as error:
        found = type(error).__name__
    findings.equal(f"{value}", found, "ValueError")


# ---- What it can do beyond Keras's layer

cumulative = row(BEYOND, "`momentum=None`: the average over all batches")
cumulative.table(as_the_oracle, "cumulative")


@cumulative.example("batches", "each of the same weight")
def averages_all_batches(findings, cls):
    layer = built(cls, momentum=None)
    batches = [random(16, 3, mean=5.0 * i, seed=i) for i in range(4)]
    for batch in batches:
        layer(batch, training=True)
    state = {
        "moving_mean": np.mean(batches, (0, 1), dtype="float64"),
        "moving_variance": np.var(batches, 1, dtype="float64").mean(0),
    }
    for name, wanted in state.items():
        found = to_numpy(getattr(layer, name).value)
        findings.rule(name, found, wanted, units=UNITS)


debiased = row(BEYOND, "`debias_moving_statistics`: right from the first batch on")
debiased.table(as_the_oracle, "debiased float64_debiased")


@debiased.example("first_batch", "evaluation after one batch")
def is_right_after_one_batch(findings, cls):
    layer, x = built(cls, momentum=0.99, debias_moving_statistics=True), X
    y = to_numpy(layer(x, training=True))
    z = to_numpy(layer(x, training=False))
    findings.rule("inference", z, y.astype(float), scale=10.0)


row(BEYOND, "`unbiased_moving_variance`: n / (n - 1)").table(
    as_the_oracle, "unbiased unbiased_weights"
)
row(BEYOND, "`virtual_batch_size`: ghost batches").table(
    as_the_oracle,
    "virtual_divides virtual_remainder virtual_one virtual_images virtual_images_first "
    "virtual_axis_0 virtual_mean_1e5 virtual_rows_of_one virtual_mask virtual_renorm "
    "virtual_many virtual_mixed float64_virtual",
)

scheduled = row(BEYOND, "schedules in `renorm_clipping`")


@scheduled.example("paper", "limits that relax with the steps")
def relaxes(findings, cls):
    limits = renorm_schedule(start=2, rmax_end=4, dmax_end=6)
    layer = built(cls, renorm=True, renorm_clipping=limits)
    x = random(64, 3, mean=30.0, std=5.0)
    for count in range(7):
        state, arguments = oracle_of(layer)
        clipping = {name: float(limit(count)) for name, limit in limits.items()}
        arguments.renorm_clipping = clipping
        step = reference.batch_normalization(x, state, arguments)
        y = to_numpy(layer(x, training=True))
        findings.rule(f"outputs of step {count}", y, step.y, scale=30.0, units=UNITS)


row(BEYOND, "several channel axes").table(as_the_oracle, "axes axes_apart")

on_replicas(
    row(BEYOND, "`synchronized=g`: groups of replicas"),
    {"groups": "two of two", "groups, masks": "one of them without rows"},
)

activated = row(BEYOND, "`activation`: the layer computes it, and keeps its inputs")


@activated.example("oracle", "outputs and gradients of silu, relu and gelu")
def is_the_activations(findings, cls):
    dy, found, steps = random(*X.shape, seed=1), {}, {}
    for name in ("silu", "relu", "gelu"):
        layer = built(cls, activation=name)
        steps[name] = oracle(layer, X)
        found[name] = call(layer, X, dy)
        findings.rule(f"outputs of {name}", found[name]["y"], steps[name].y, scale=10.0)
    require("gradients")
    for name, step in steps.items():
        dx, _, _ = reference.gradients(step, dy, X)
        findings.rule(f"gradient of {name}", found[name]["dx"], dx, scale=10.0)


@activated.example("kept", "bytes kept for the backward pass, of silu")
def keeps_its_inputs(findings, cls):
    require("gradients")
    shape = (64, 10, 10, 16)
    subject = kernels.active().keras_layer(cls(activation="silu"), shape)
    # Some vectors are kept as well, 20 at most.
    kept = kernels.active().bytes_kept(subject, tensor_of(random(*shape), "float32"))
    size = np.prod(shape) * 4
    findings.near("bytes, in the inputs'", (kept - 20 * 16 * 4) / size, 0.0, 1.0)


frozen = row(BEYOND, "`freeze`: statistics and affine part apart")


@frozen.example("statistics", "gamma and beta go on training", kind="statistics")
@frozen.example("affine", "statistics go on following", kind="affine")
def freezes_a_half(findings, cls, kind):
    require("`fit`")
    model = trained(cls)
    layer = model.get_layer("bn")
    layer.freeze(kind == "statistics", kind == "affine")
    model.compile("sgd", keras.losses.MeanSquaredError())
    before = [to_numpy(w.value) for w in layer.weights]
    model.fit(X + 1, np.ones((32, 2)), verbose=0)
    moved = [
        not np.array_equal(old, to_numpy(w.value))
        for old, w in zip(before, layer.weights, strict=True)
    ]
    affine = kind == "statistics"
    findings.equal("moved", moved, [affine, affine, not affine, not affine])


keeping = row(BEYOND, "`keep_moving_statistics`: passes that move nothing")


@keeping.example("call", "penalties, second streams")
@keeping.example("renorm", "and renorm", renorm=True)
def moves_nothing(findings, cls, **arguments):
    layer, x = built(cls, **arguments), random(8, 3, mean=4.0)
    before, step = statistics(layer), oracle(layer, x)
    with keep_moving_statistics():
        y = to_numpy(layer(x, training=True))
    findings.rule("outputs", y, step.y, scale=kappa(x), units=UNITS)
    for key, value in statistics(layer).items():
        findings.equal(key, value, before[key])


channels = row(BEYOND, "channels that a mask leaves out give `beta`")


@channels.example("training", "Keras's own masks, with `axis=1`", training=True)
@channels.example("inference", "at inference", training=False)
def gives_beta(findings, cls, training):
    x = random(6, 3, 4, mean=2.0)
    x[:, 1] = 0.0
    layer = built(cls, x.shape, axis=1)
    layer.beta.assign([1.0, 2.0, 3.0])
    layer.moving_mean.assign([0.5, 1.5, 2.5])
    weights = (x != 0).any(-1, keepdims=True)
    expected = oracle(layer, x, weights=weights, training=training).y
    y = to_numpy(layer(keras.layers.Masking()(x), training=training))
    findings.rule("outputs", y, expected, scale=10.0)


if TABLE:
    raise ValueError(f"No row has these cases of cases.py: {list(TABLE)}.")
