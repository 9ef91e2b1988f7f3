"""A linter for models with batch normalization.

A rule is a function of a `_Case` that yields what it has `Found`; `check` runs all.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bnx import backends
from keras_bnx.arguments import channel_axes
from keras_bnx.batch_normalization import BatchNormalization
from keras_bnx.tools.graphs import flows
from keras_bnx.tools.models import activation_of, batch_normalizations, names, walk
from keras_bnx.tools.observation import is_trained, raise_unless_built
from keras_bnx.tools.report import (
    HARMFUL,
    NOTICEABLE,
    StatisticsReport,
    statistics_report,
)

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """What a rule has found.

    Attributes:
        rule: string, the name of the rule.
        severity: `"error"`: results are wrong, or will be; `"warning"`: they are
            likely worse than they need be; `"info"`: good to know.
        layers: list of the names of the layers that it's about.
        message: a sentence, what is the case.
        cure: a sentence, what to do.
    """

    rule: str
    severity: str
    layers: list[str]
    message: str
    cure: str

    def __str__(self) -> str:
        shown = ", ".join(self.layers[:4])
        more = len(self.layers) - 4
        shown += f" and {more} more" if more > 0 else ""
        where = f" [{shown}]" if shown else ""
        return f"{self.severity}: {self.rule}{where}\n  {self.message}\n  {self.cure}"


class Found(NamedTuple):
    """What a rule yields; `severity` where it isn't the rule's own."""

    layers: list[str]
    message: str
    cure: str
    severity: str | None = None


class Findings(list[Finding]):
    """A list of `Finding`, errors first; prints as a text."""

    @property
    def errors(self) -> list[Finding]:
        """Those whose results are wrong."""
        return [finding for finding in self if finding.severity == "error"]

    def __str__(self) -> str:
        counts = []
        for severity, word in zip(
            SEVERITIES, ("error", "warning", "note"), strict=True
        ):
            count = sum(finding.severity == severity for finding in self)
            counts.append(f"{count} {word}{'' if count == 1 else 's'}")
        return "\n".join([*map(str, self), ", ".join(counts)])


def check(
    model: keras.Layer,
    x: Any = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    verbose: str | int = 0,
) -> Findings:
    """Looks for what is known to go wrong with batch normalization in a model.

    From the weights and the graph of the model alone; with an optimizer also what it
    does with them; with data also what the layers see, by the same pass as
    `statistics_report`, which may be passed for `x`: one pass serves both.

    Args:
        model: a built model, with batch normalizations of Keras or ours. What depends
            on the graph is known of Sequential and Functional models, also nested ones.
        x: inputs as `predict` takes them, see `recalibrate`; or a `StatisticsReport`
            of this model.
        optimizer: that of the training; that of `compile` by default.
        batch_size, steps, verbose: as in `predict`. As in training: how large batches
            are is one of the things that are checked.

    Returns:
        List of `Finding`, with `rule`, `severity`, `layers`, `message` and `cure`,
        errors first; it prints as a text, and `errors` has those of that severity.

    Raises:
        ValueError: as `statistics_report`.

    Example:

    >>> import keras, keras_bnx
    >>> layers = [keras.layers.Dense(4), keras_bnx.BatchNormalization()]
    >>> layers = [keras.Input((3,)), *layers, keras.layers.Dense(2)]
    >>> findings = keras_bnx.check(keras.Sequential(layers))
    >>> print([finding.rule for finding in findings])
    ['never-updated', 'bias-before-normalization']
    """
    layers = batch_normalizations(model)
    raise_unless_built(model, layers)
    report = x if isinstance(x, StatisticsReport) else None
    if report is None:
        report = statistics_report(
            model, x, batch_size=batch_size, steps=steps, verbose=verbose
        )
    case = _Case(model, layers, report, optimizer or getattr(model, "optimizer", None))
    findings = Findings()
    for rule, (severity, function) in RULES.items():
        for found in function(case):
            findings.append(Finding(rule, found.severity or severity, *found[:3]))
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return findings


class _Case:
    """What the rules look at.

    Attributes:
        model: the model.
        layers: its batch normalizations.
        flows: `Flow` of what is known of its graph.
        rows: dictionary, by the layer's id its row of the report.
        has_data: whether something was seen.
        batches: integer, in how many batches.
        optimizer: an optimizer, or `None`.
    """

    def __init__(self, model, layers, report, optimizer):
        self.model, self.layers = model, layers
        self.flows = flows(model)
        self._names = names(layers)
        rows = {row.layer: row for row in report.rows}
        if not {*self._names.values()} <= {*rows}:
            raise ValueError(
                "The report has to be one of this model. Received: x, a report of "
                f"{', '.join(rows)}. Pass data, or `statistics_report(model, data)`."
            )
        self.rows = {id(layer): rows[self._names[id(layer)]] for layer in layers}
        self.has_data, self.batches = report.samples > 0, report.batches
        # That of mixed precision wraps the one that has the settings.
        self.optimizer = getattr(optimizer, "inner_optimizer", optimizer)

    def names(self, layers):
        """Names of layers, each once; other layers have their own."""
        return list(dict.fromkeys(self._names.get(id(la), la.name) for la in layers))

    def seen(self, condition):
        """The names of the layers of whose `Seen` something holds."""
        return self.names(
            layer
            for layer in self.layers
            if self.has_data and condition(self.rows[id(layer)].seen)
        )

    def normalizations(self):
        """The calls of batch normalizations, each with its flow."""
        for flow in self.flows:
            for call in flow.calls:
                if isinstance(call.operation, keras.layers.BatchNormalization):
                    yield flow, call


# By the name of each rule, its severity and its function.
RULES: dict[str, tuple[str, Callable[["_Case"], Iterable[Found]]]] = {}


def _rule(name, severity):
    def add(function):
        RULES[name] = severity, function
        return function

    return add


def _is_ours(layer):
    return isinstance(layer, BatchNormalization)


@_rule("bias-before-normalization", "info")
def _bias(case):
    found = []
    for flow, call in case.normalizations():
        for producer in flow.before(call):
            layer = producer.operation
            biased = getattr(layer, "use_bias", False) and activation_of(layer) is None
            if biased and len(flow.behind(producer)) == 1:
                found.append(layer)
    if found:
        yield Found(
            case.names(found),
            "The bias of a layer before a normalization is subtracted with the mean, "
            "and never learns anything.",
            "Make these layers with use_bias=False; beta takes the bias's place.",
        )


_DROPOUTS = (
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)


@_rule("dropout-before-normalization", "warning")
def _dropout(case):
    found = []
    for flow, call in case.normalizations():
        waiting, seen = flow.before(call), set()
        while waiting:
            producer = waiting.pop()
            layer = producer.operation
            if id(producer) in seen or isinstance(layer, _NORMALIZATIONS):
                continue
            seen.add(id(producer))
            if isinstance(layer, _DROPOUTS) and layer.rate > 0:
                found.append(call.operation)
                break
            waiting += flow.before(producer)
    if found:
        yield Found(
            case.names(found),
            "Dropout before a normalization makes the variance of its inputs larger in "
            "training than at inference, where the moving variance is then too large "
            "(Li et al. 2018, https://arxiv.org/abs/1801.05134).",
            "Put dropout behind the last normalization, or recalibrate the statistics.",
        )


@_rule("wrong-axis", "error")
def _axis(case):
    for flow, call in case.normalizations():
        layer = call.operation
        for producer in flow.before(call):
            other, ndim = producer.operation, len(producer.outputs[0].shape)
            is_convolution = hasattr(other, "kernel_size")
            if not (is_convolution or isinstance(other, keras.layers.Dense)):
                continue
            first = getattr(other, "data_format", None) == "channels_first"
            channels = 1 if is_convolution and first else ndim - 1
            if channels not in channel_axes(layer.axis, ndim):
                yield Found(
                    case.names([layer]),
                    f"axis={layer.axis} isn't the channel axis of {other.name!r}, "
                    f"{channels} of {ndim}.",
                    f"Choose axis={channels if channels == 1 else -1}.",
                )


@_rule("last-layer", "warning")
def _last(case):
    for flow, call in case.normalizations():
        users = [user.operation for user in flow.behind(call)]
        softmax = any(
            isinstance(user, keras.layers.Softmax)
            or (
                getattr(user, "activation", None) is keras.activations.softmax
                and isinstance(user, keras.layers.Activation)
            )
            for user in users
        )
        if softmax or flow.is_output(call):
            yield Found(
                case.names([call.operation]),
                "A normalization "
                + ("straight before a softmax" if softmax else "as the last layer")
                + " makes an example's output depend on the others in its batch, and "
                "fixes how far outputs are apart.",
                "Leave it out, or put it before the last layer.",
            )


@_rule("several-streams", "warning")
def _streams(case):
    calls = Counter(id(call.operation) for _, call in case.normalizations())
    in_time = {id(layer) for layer in _in_time_distributed(case)}
    found = []
    for layer in case.layers:
        # What isn't in a known graph shows in how often it was called.
        seen = case.rows[id(layer)].seen
        often = seen is not None and seen.calls > case.batches
        if calls[id(layer)] > 1 or (often and id(layer) not in calls):
            if id(layer) not in in_time:
                found.append(layer)
    if found:
        yield Found(
            case.names(found),
            "One layer normalizes several streams: each by its own statistics in "
            "training, all by the average of them at inference.",
            "Use a layer for each stream; or concatenate the streams, so that they are "
            "one batch.",
        )


@_rule("time-distributed", "warning")
def _time_distributed(case):
    found = _in_time_distributed(case)
    if found:
        yield Found(
            case.names(found),
            "TimeDistributed normalizes each time step by its own statistics, and "
            "makes an update of the moving ones for each.",
            "Leave TimeDistributed away: the layer takes (batch, time, ..., channels).",
        )


def _in_time_distributed(case):
    return [
        layer
        for outer in walk(case.model)
        if isinstance(outer, keras.layers.TimeDistributed)
        for layer in walk(outer)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


@_rule("half-frozen", "warning")
def _half_frozen(case):
    found = [
        layer
        for layer in case.layers
        if layer.trainable
        and "affine" not in getattr(layer, "frozen", ())
        and any(w is not None and not w.trainable for w in (layer.gamma, layer.beta))
    ]
    if found:
        yield Found(
            case.names(found),
            "gamma or beta is frozen, and the moving statistics go on.",
            "Freeze by `keras_bnx.freeze(model)`, or `layer.trainable = False`.",
        )
    found = []
    for flow, call in case.normalizations():
        layer = call.operation
        if is_trained(layer) and "affine" not in getattr(layer, "frozen", ()):
            for producer in flow.before(call):
                other = producer.operation
                if getattr(other, "weights", ()) and not other.trainable:
                    found.append(layer)
    if found:
        yield Found(
            case.names(found),
            "The layer before it is frozen; the moving statistics, gamma and beta go "
            "on.",
            "Freeze it too, by `keras_bnx.freeze(model)`; or only its statistics.",
        )


@_rule("changed-after-compile", "warning")
def _after_compile(case):
    optimizer = case.optimizer
    if optimizer is None or not optimizer.built:
        return
    paths = [f"/{variable.path}" for variable in optimizer.variables]

    def has_slot(weight):
        # What an optimizer keeps of a weight has that weight's path in its name.
        name = weight.path.replace("/", "_")
        return any(f"/{name}_" in path for path in paths)

    if not any(map(has_slot, case.model.trainable_variables)):
        return
    found = [
        layer
        for layer in case.layers
        for weight in (layer.gamma, layer.beta)
        if weight is not None and weight.trainable != has_slot(weight)
    ]
    if found:
        yield Found(
            case.names(found),
            "Whether it is trained was changed after `compile`: the optimizer was "
            "built for other weights.",
            "Call `model.compile(...)` again, with a new optimizer.",
        )


@_rule("slow-momentum", "warning")
def _momentum(case):
    steps, are_planned = _steps(case.optimizer)
    slow = {
        layer: layer.momentum**steps if steps else float(layer.momentum == 1.0)
        for layer in case.layers
        if is_trained(layer)
        and layer.momentum is not None
        and not getattr(layer, "debias_moving_statistics", False)
    }
    found = [
        layer
        for layer, rest in slow.items()
        # They may have been loaded, or recalibrated, before these steps or after.
        if rest > 0.01 and (are_planned or not case.rows[id(layer)].error < NOTICEABLE)
    ]
    if found:
        rest = max(slow.values())
        yield Found(
            case.names(found),
            (f"After {steps} steps" if steps else "With momentum=1")
            + f" {100 * rest:.0f} % of the moving statistics are still what they "
            "started from.",
            (
                f"Choose momentum={1 - 5 / steps:.2g} or less, "
                if steps > 5
                else "Choose a smaller momentum, "
            )
            + "`debias_moving_statistics=True`, or recalibrate at the end.",
        )


def _steps(optimizer):
    """The steps that a schedule plans, and `True`; or those made so far."""
    if optimizer is None:
        return 0, False
    schedule = optimizer.get_config().get("learning_rate")
    if isinstance(schedule, dict):
        # Their rate ends there; others' decay goes on and on.
        if schedule.get("class_name") in ("CosineDecay", "PolynomialDecay"):
            warmup = schedule["config"].get("warmup_steps") or 0
            return int(schedule["config"]["decay_steps"] + warmup), True
    return int(ops.convert_to_numpy(optimizer.iterations)), False


@_rule("several-epsilons", "info")
def _epsilons(case):
    epsilons = sorted({layer.epsilon for layer in case.layers})
    if len(epsilons) > 1:
        rare = min(
            epsilons, key=lambda e: sum(layer.epsilon == e for layer in case.layers)
        )
        yield Found(
            case.names(layer for layer in case.layers if layer.epsilon == rare),
            f"The model has several epsilons: {', '.join(map(str, epsilons))}. "
            "Converters that take one for all get others wrong.",
            "Use one, where there is no reason for several.",
        )


# The variance of n values has a deviation of sqrt(2 / n) of itself: 35 % for 16.
_FEW_VALUES = 16
# Statistics of several replicas help where those of one are noisier than 18 %.
_FEW_ON_A_REPLICA = 64


@_rule("few-values", "warning")
def _few_values(case):
    found = case.seen(lambda seen: seen.sizes and 1 < max(seen.sizes) < _FEW_VALUES)
    if found:
        yield Found(
            found,
            f"A batch has less than {_FEW_VALUES} values for each channel: the "
            "variance that the layer normalizes by is noise by a third and more.",
            "Use larger batches, `synchronized=True` on several replicas, or "
            "`renorm=True`.",
        )


@_rule("one-value", "error")
def _one_value(case):
    for ours in (False, True):
        found = case.names(
            layer
            for layer in case.layers
            if case.has_data
            and _is_ours(layer) is ours
            and 1 in case.rows[id(layer)].seen.sizes
        )
        if found:
            yield Found(
                found,
                "A batch has one value for each channel, and so no variance: the "
                "output is beta"
                + (
                    ", and the moving variance stays."
                    if ours
                    else "; Keras's layer moves its variance towards 0."
                ),
                "Drop the rest of the data that makes no whole batch"
                + (
                    "."
                    if ours
                    else ", or `keras_bnx.convert` the model, whose variance stays."
                ),
                severity="info" if ours else "error",
            )


@_rule("regularized", "info")
def _regularized(case):
    found = [
        layer
        for layer in case.layers
        if layer.gamma_regularizer is not None or layer.beta_regularizer is not None
    ]
    if found:
        yield Found(
            case.names(found),
            "gamma or beta is regularized: it is drawn towards 0, and the channel with "
            "it, where the weights before it have no such limit.",
            "Regularize the kernels only, unless dead channels are what you want.",
        )
    decay = getattr(case.optimizer, "weight_decay", None)
    if decay and any(la.gamma is not None or la.beta is not None for la in case.layers):
        yield Found(
            [],
            f"weight_decay={decay} of the optimizer draws gamma and beta towards 0, "
            "unless they are excluded, which an optimizer doesn't tell.",
            'Call `optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])` '
            "before it is built.",
        )


@_rule("not-synchronized", "warning")
def _not_synchronized(case):
    context = backends.active().replicas(None)
    count = 1 if context is None else context.count
    # TensorFlow's strategy is the model's.
    strategy = getattr(case.model, "distribute_strategy", None)
    count = max(count, getattr(strategy, "num_replicas_in_sync", 1))
    if count == 1:
        return
    found = case.names(
        layer
        for layer in case.layers
        if not layer.synchronized
        and case.has_data
        and 0 < max(case.rows[id(layer)].seen.sizes, default=0) < _FEW_ON_A_REPLICA
    )
    if found:
        yield Found(
            found,
            f"{count} replicas normalize by less than {_FEW_ON_A_REPLICA} values of "
            "their own for each channel.",
            "`keras_bnx.convert(model, synchronized=True)` takes those of all.",
        )


@_rule("mask-lost", "warning")
def _mask(case):
    for flow in case.flows:
        masked, lost = set(), {}
        for call in flow.calls:
            layer = call.operation
            ids = [id(flow.one(x)) for x in call.inputs]
            if isinstance(layer, keras.layers.BatchNormalization):
                given = call.kwargs.get("mask") is not None
                origins = [lost[i] for i in ids if i in lost and not given]
                if origins:
                    yield Found(
                        case.names([layer]),
                        f"{origins[0]!r} loses the mask of its inputs: padding counts "
                        "in the statistics.",
                        "Pass the mask by `layer(x, mask=mask)`, or put the layer "
                        "before the one that loses it.",
                    )
                    continue
            out = [id(x) for x in call.outputs]
            if isinstance(layer, keras.layers.Masking) or getattr(
                layer, "mask_zero", False
            ):
                masked.update(out)
            elif any(i in masked for i in ids):
                if not getattr(layer, "supports_masking", False):
                    lost.update(dict.fromkeys(out, layer.name))
                elif _hands_on(layer, call):
                    masked.update(out)
            else:
                origin = next((lost[i] for i in ids if i in lost), None)
                if origin is not None:
                    lost.update(dict.fromkeys(out, origin))


def _hands_on(layer, call):
    """Whether a layer that knows masks has one for its outputs."""
    mains = call.main_inputs or call.inputs
    masks = [keras.KerasTensor(x.shape[:2], "bool") for x in mains]
    single = len(mains) == 1
    try:
        mask = layer.compute_mask(
            mains[0] if single else mains, masks[0] if single else masks
        )
    except Exception:
        # It asks for more than shapes; then most likely it has.
        return True
    return any(m is not None for m in keras.tree.flatten(mask))


@_rule("accumulation", "warning")
def _accumulation(case):
    count = getattr(case.optimizer, "gradient_accumulation_steps", None) or 1
    # What Keras's default keeps of the old value in a step, less rounding.
    found = [
        layer
        for layer in case.layers
        if count > 1
        and is_trained(layer)
        and layer.momentum is not None
        and layer.momentum**count < 0.99 - 1e-6
    ]
    if found:
        yield Found(
            case.names(found),
            f"Gradients are accumulated over {count} batches, and the moving "
            f"statistics follow each: momentum={found[0].momentum} forgets {count} "
            "times as fast.",
            f"Choose momentum={found[0].momentum} ** (1 / {count}) = "
            f"{found[0].momentum ** (1 / count):.5g}.",
        )


# From here Keras's layer is off by more than 1e-3 (README, "What differs").
_LARGE_MEAN = {"torch": 50.0, "tensorflow": 1e3, "jax": 3e3}


@_rule("large-mean", "error")
def _large_means(case):
    limit = _LARGE_MEAN.get(keras.config.backend(), 50.0)
    found = [
        layer
        for layer in case.layers
        if not _is_ours(layer) and case.rows[id(layer)].mean_to_deviation > limit
    ]
    if found:
        largest = max(case.rows[id(layer)].mean_to_deviation for layer in found)
        yield Found(
            case.names(found),
            f"Inputs have a mean of {largest:.3g} deviations, where Keras's layer "
            f"loses digits in training on {keras.config.backend()}, and may give NaN.",
            "Use `keras_bnx.convert(model)`, or subtract the mean from the data.",
        )


@_rule("keras-defect", "error")
def _kerass(case):
    own = [layer for layer in case.layers if not _is_ours(layer)]
    narrow = [la for la in own if la.variable_dtype in ("float16", "bfloat16")]
    if narrow:
        yield Found(
            case.names(narrow),
            f"Keras's layer stores its moving statistics in "
            f"{narrow[0].variable_dtype}: small steps are rounded away, and they "
            "stall.",
            "Use a mixed policy, or `keras_bnx.convert(model)`, which stores float32.",
        )
    wide = [la for la in own if la.compute_dtype == "float64"]
    if wide and keras.config.backend() != "tensorflow":
        yield Found(
            case.names(wide),
            "Keras's layer computes in float32 here, whatever float64 its outputs are.",
            "Use `keras_bnx.convert(model)`, which computes in float64.",
            severity="warning",
        )
    if not case.has_data:
        return
    masked = [la for la in own if case.rows[id(la)].seen.masked]
    wrong = [
        la
        for la in masked
        if la.synchronized
        or (isinstance(la.axis, int) and la.axis != -1 and la.axis != _last_axis(la))
    ]
    if wrong:
        yield Found(
            case.names(wrong),
            "Keras's layer aligns a mask with the last axis only, and takes statistics "
            "of one replica where it is masked.",
            "Use `keras_bnx.convert(model)`.",
        )
    empty = [la for la in own if 0 in case.rows[id(la)].seen.sizes]
    if empty:
        yield Found(
            case.names(empty),
            "A batch is empty, or masked as a whole: Keras's layer moves its "
            "statistics towards 0, or to NaN.",
            "Use `keras_bnx.convert(model)`, whose statistics stay.",
        )


def _last_axis(layer):
    spec = layer.input_spec
    return None if spec is None or spec.ndim is None else spec.ndim - 1


@_rule("not-finite", "error")
def _not_finite(case):
    for layer in case.layers:
        seen = case.rows[id(layer)].seen
        if case.has_data and seen.not_finite:
            shown = ", ".join(map(str, seen.not_finite[:5]))
            yield Found(
                case.names([layer]),
                f"Its inputs aren't finite in batch {shown}"
                + (" and others" if len(seen.not_finite) > 5 else "")
                + ", counted from 0.",
                "Clean the data, or mask them"
                + ("." if _is_ours(layer) else "; Keras's layer never recovers."),
            )


@_rule("statistics-off", "warning")
def _off(case):
    found = [
        layer
        for layer in case.layers
        if case.rows[id(layer)].error > NOTICEABLE
        and not case.rows[id(layer)].never_updated
    ]
    if found:
        worst = max(case.rows[id(layer)].error for layer in found)
        yield Found(
            case.names(sorted(found, key=lambda la: -case.rows[id(la)].error)),
            "Moving statistics are far from those of the data: normalized outputs are "
            f"off by up to {worst:.2g} deviations at inference.",
            "`keras_bnx.recalibrate(model, x)`; `statistics_report` shows each layer.",
            severity="warning" if worst > HARMFUL else "info",
        )


@_rule("never-updated", "warning")
def _never_updated(case):
    found = [layer for layer in case.layers if case.rows[id(layer)].never_updated]
    if found:
        yield Found(
            case.names(found),
            "The moving statistics are the initial ones: inference normalizes by them.",
            "Train the model, load its weights, or `keras_bnx.recalibrate(model, x)`.",
        )


@_rule("dead-channels", "info")
def _dead(case):
    rows = [(layer, case.rows[id(layer)]) for layer in case.layers]
    for severity, found in (
        ("warning", [la for la, row in rows if row.dead > row.channels / 2]),
        ("info", [la for la, row in rows if 0 < row.dead <= row.channels / 2]),
    ):
        if found:
            count = sum(case.rows[id(layer)].dead for layer in found)
            yield Found(
                case.names(found),
                f"{count} channels are multiplied by a gamma below 1e-3, and add "
                "nothing.",
                "Prune them; or regularize gamma less, and don't start it at 0.",
                severity=severity,
            )


@_rule("below-epsilon", "info")
def _below_epsilon(case):
    found = [
        layer
        for layer in case.layers
        if case.has_data and case.rows[id(layer)].below_epsilon
    ]
    if found:
        count = sum(case.rows[id(layer)].below_epsilon for layer in found)
        yield Found(
            case.names(found),
            f"{count} channels have a variance below epsilon, which then decides how "
            "they are scaled.",
            "Scale the inputs, or choose a smaller epsilon; channels of one value are "
            "best left out.",
        )


@_rule("moved-at-inference", "error")
def _moved_at_inference(case):
    found = case.seen(lambda seen: seen.told_to_train)
    if found:
        yield Found(
            found,
            "The model calls it with `training=True` at inference: it normalizes by "
            "the batch there, and moves its statistics.",
            "Pass on the `training` that the model is called with.",
        )
