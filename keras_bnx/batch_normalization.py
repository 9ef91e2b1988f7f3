"""The layer: arguments, weights, training and inference branch, config, files."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_bnx import arguments, backends
from keras_bnx.averages import History, MovingStatistics, are_kept
from keras_bnx.backends.contract import Affine, Batch, Statistics
from keras_bnx.ops import replicas, virtual
from keras_bnx.ops.activations import recognize
from keras_bnx.ops.conditions import both
from keras_bnx.ops.statistics import choose, exist, without_gradient
from keras_bnx.ops.weights import (
    are_counted,
    leave_out_absent,
    mask_to_weights,
    vary_by_channel,
)


@keras.saving.register_keras_serializable(package="keras_bnx")
class BatchNormalization(keras.layers.BatchNormalization):
    """Normalizes each channel to mean 0 and standard deviation 1.

    A drop-in for `keras.layers.BatchNormalization` (arguments, weights, files,
    `isinstance`) on TensorFlow, JAX and PyTorch.

    While training (`fit()`, or `training=True`) a channel is normalized by the
    mean and variance of the batch, taken over all axes but the channel's:
    `y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`. The variance's
    divisor is n, the number of elements. Moving averages follow the batches:
    `moving = moving * momentum + batch * (1 - momentum)`; `momentum` is the
    weight of the old value, which PyTorch calls 1 - momentum. At inference
    (`predict()`, `evaluate()`, the default of a call, and always while
    `trainable=False`) the moving averages take the batch's place.

    **Statistics that can't be taken** never reach the moving ones. A channel in
    which nothing counts (an empty or fully masked batch), or whose statistics
    aren't finite (an inf or NaN in the batch, or values above 1e19, whose
    squares overflow), is normalized by its moving statistics, which stay as
    they are. Its gradients are those of inference: finite for its finite elements,
    whatever the others are; gamma's isn't finite where an element that counts isn't,
    so that an optimizer that scales the loss skips the step. Virtual batches, and
    replicas that aren't synchronized, are judged one by one: the moving statistics
    follow the others. A single element (a last batch of one row) has a mean but no
    variance: its output is `beta`, the moving mean follows it, the moving
    variance stays.

    **Masking.** Statistics are weighted: `n = sum(w)`, `mean = sum(w*x) / n`,
    `variance = sum(w * (x - mean)**2) / n`. A mask is the weight 0 or 1 of each
    element; real weights do as well (rows of sample weight 0, say). All
    elements are normalized, and the mask is passed on. Where the weight is 0 the
    input may be NaN or inf: it reaches neither statistics nor gradients, and its
    output is that of the mean, `beta` (under renorm `beta + d * gamma`). A channel
    that a mask of the inputs' rank leaves out as a whole, while others count, gives
    `beta` too, in training and at inference.

    **Mixed precision.** Statistics, weights and arithmetic are float32 under
    16-bit policies, where kernels read and write 16 bits; also under `"float16"`
    and `"bfloat16"`, where a moving
    average in 16 bits would stall; inputs aren't autocast, so float32 inputs
    beyond float16's 65504 survive `"mixed_float16"`. float64 inputs or policies
    are computed in float64 (on JAX where x64 is enabled). The output has the
    policy's compute dtype.

    **Replicas.** With `synchronized=True` outputs, gradients and statistics are those
    of one batch of all replicas' elements, whatever each has: other counts, masks, no
    row at all. It takes one sum over the replicas forward, of `5 * channels` numbers
    for each, and one backward. Replicas that aren't synchronized normalize by their own
    statistics; the moving ones are joined, and stay the same on all of them (PyTorch:
    inside of `DistributedDataParallel`). The gradients of gamma and beta are a
    replica's own, as the engines expect it: they average or sum them.

    **Speed and memory.** Each framework's own kernels run, forward and backward,
    and the backward pass keeps the inputs, in their dtype, and vectors.
    `keras_bnx.explain_implementation(layer, inputs)` says what runs, and why.

    Args:
        axis: integer, the channel axis; 1 after layers with
            `data_format="channels_first"`. Or a sequence of integers: statistics
            and weights are those of each combination, as in Keras 2, and weights
            have the rank of the inputs. A sequence of one is taken for the integer.
        momentum: float in [0, 1], the weight of the old moving value. Or `None`:
            the moving statistics are the averages over all batches since
            `reset_moving_statistics()`, each of the same weight (PyTorch's
            `momentum=None`). With 1 they never move.
        epsilon: float > 0, added to the variance.
        center: whether to add `beta`.
        scale: whether to multiply by `gamma`.
        beta_initializer, gamma_initializer: initializers of `beta` and `gamma`.
        moving_mean_initializer, moving_variance_initializer: initializers of the
            moving statistics.
        beta_regularizer, gamma_regularizer: optional regularizers.
        beta_constraint, gamma_constraint: optional constraints.
        renorm: whether to train by batch renormalization: the batch's statistics
            are corrected towards moving ones by `x_hat * r + d`, so that training
            and inference agree for small batches. Adds the weights
            `moving_stddev`, `renorm_mean` and `renorm_stddev`; inference is the
            same.
        renorm_clipping: optional dictionary with any of `"rmin"`, `"rmax"` and
            `"dmax"`: `r` is clipped to `[rmin, rmax]`, `d` to `[-dmax, dmax]`.
            Values are floats, or schedules of the layer's training step
            (`keras.optimizers.schedules.LearningRateSchedule`), which
            `keras_bnx.renorm_schedule()` builds as the paper has them.
        renorm_momentum: float in [0, 1], the momentum of `renorm_mean` and
            `renorm_stddev`.
        synchronized: whether to take statistics over all replicas: of
            `torch.distributed`, of a `tf.distribute` strategy, of JAX's axis
            `axis_name`. An integer `g > 1` takes them over groups of `g` consecutive
            replicas. Where there is one replica it changes nothing; arrays sharded
            under JAX's `jit` have the statistics of all devices anyway.
        virtual_batch_size: optional integer. While training, statistics are taken
            of that many examples at a time, in order; the last virtual batch has
            what remains, and a smaller batch is one. The moving statistics are those
            of the whole batch. Inference doesn't know of it.
        unbiased_moving_variance: whether the moving variance is that of the divisor
            n - 1 (what PyTorch stores, and the paper's Algorithm 2). Outputs in
            training take n.
        debias_moving_statistics: whether inference divides the initial values out of
            the moving statistics: after one batch they are that batch's, not
            mostly 0 and 1. Before any they are the initial ones, and with a
            momentum of 1, which gives no batch a weight, they stay so. Renorm's are
            treated likewise, so that it starts as plain batch normalization, and not
            by undoing it. What is stored as moving statistics stays what Keras stores.
        axis_name: optional string, JAX's name of the axis of the replicas in
            `shard_map`, `pmap` or `vmap`. Other backends don't need it.
        activation: optional activation, applied to what has been normalized: the name
            of one in `keras.activations`, a callable, or a layer that keeps the shape.
            What it needs for its gradient is computed anew from the inputs where that
            saves memory: on PyTorch for `elu`, `gelu`, `hard_sigmoid`, `hard_silu`,
            `leaky_relu`, `mish`, `relu`, `relu6`, `sigmoid`, `silu`, `softplus`,
            `squareplus` and `tanh`. Any other is called as a layer behind would be.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: real tensor of shape `(batch, ..., channels, ...)`; one layer
            serves inputs of several ranks. Integers are cast to float.
        training: whether to use and follow the batch's statistics: a bool of
            Python, or a scalar tensor, also under compilation; or NumPy's bool
            (not inside of `torch.compile`, where Keras can't read it).
        mask: optional bools or weights >= 0, of any shape that broadcasts
            against the inputs without their channel axis, batch first: missing
            axes are taken to follow, as in Keras's `(batch, time)` masks, and to
            precede, as in NumPy, only where that doesn't fit. No gradient flows
            to it.

    Output shape:
        That of the inputs.

    Raises:
        ValueError: for arguments, inputs or masks out of the ranges above.

    Example:

    >>> import keras, keras_bnx
    >>> x = keras.random.normal((8, 4, 4, 3), mean=5000.0, stddev=0.1, seed=1)
    >>> y = keras_bnx.BatchNormalization(epsilon=1e-6)(x, training=True)
    >>> print(y.shape[-1], round(float(keras.ops.std(y)), 2))
    3 1.0

    Reference:

    - Ioffe and Szegedy, 2015, [Batch Normalization](
      https://arxiv.org/abs/1502.03167), Algorithm 1.
    - Ioffe, 2017, [Batch Renormalization](https://arxiv.org/abs/1702.03275),
      Algorithm 1.
    - Hoffer et al., 2017, [Train longer, generalize better](
      https://arxiv.org/abs/1705.08741), Algorithm 1, ghost batches.
    """

    axis: int | tuple[int, ...]
    momentum: float | None
    epsilon: float
    activation: Callable
    gamma: keras.Variable | None
    beta: keras.Variable | None
    # Once the layer is built.
    moving_mean: keras.Variable
    moving_variance: keras.Variable
    history: keras.Layer | None
    _frozen: tuple[str, ...]

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str | dict | Callable = "zeros",
        gamma_initializer: str | dict | Callable = "ones",
        moving_mean_initializer: str | dict | Callable = "zeros",
        moving_variance_initializer: str | dict | Callable = "ones",
        beta_regularizer: str | dict | Callable | None = None,
        gamma_regularizer: str | dict | Callable | None = None,
        beta_constraint: str | dict | Callable | None = None,
        gamma_constraint: str | dict | Callable | None = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, Any] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool | int = False,
        *,
        virtual_batch_size: int | None = None,
        unbiased_moving_variance: bool = False,
        debias_moving_statistics: bool = False,
        axis_name: str | None = None,
        activation: str | dict | Callable | None = None,
        **kwargs: Any,
    ) -> None:
        super(keras.layers.BatchNormalization, self).__init__(**kwargs)
        # float16 would lose digits, and overflow, before the layer can upcast.
        self.autocast = False
        self.supports_masking = True
        self.axis = arguments.validate_axis(axis)
        self.momentum = (
            None
            if momentum is None
            else arguments.validate_number("momentum", momentum, 0.0, 1.0)
        )
        self.epsilon = arguments.validate_number("epsilon", epsilon, 0.0, above=True)
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(
            moving_variance_initializer
        )
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.renorm = renorm
        clipping = arguments.validate_clipping(renorm_clipping)
        self.renorm_clipping = (clipping or {}) if renorm else clipping
        self.renorm_momentum = arguments.validate_number(
            "renorm_momentum", renorm_momentum, 0.0, 1.0
        )
        self.synchronized = arguments.validate_synchronized(synchronized)
        self.axis_name = arguments.validate_axis_name(axis_name)
        self.virtual_batch_size = arguments.validate_virtual_batch_size(
            virtual_batch_size
        )
        self.unbiased_moving_variance = bool(unbiased_moving_variance)
        self.debias_moving_statistics = bool(debias_moving_statistics)
        self.activation = keras.activations.get(activation)
        self.gamma = self.beta = None
        self.moving_mean = self.moving_variance = self.history = None
        self._frozen = ()

    def build(self, input_shape: Sequence[int | None]) -> None:
        axes = arguments.channel_axes(self.axis, len(input_shape))
        if None in [input_shape[axis] for axis in axes]:
            raise ValueError(
                f"The size of the channel axis, axis={self.axis}, has to be known. "
                f"Received: input_shape={tuple(input_shape)}. Give the inputs a "
                "static size there, or choose another `axis`."
            )
        # Several channel axes: the shape that Keras 2 gave their weights.
        shape = tuple(n if i in axes else 1 for i, n in enumerate(input_shape))
        shape = shape if len(axes) > 1 else (input_shape[axes[0]],)
        dtype = "float64" if self.variable_dtype == "float64" else "float32"

        def add(name, initializer, **kwargs):
            return self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer=initializer,
                autocast=False,
                **kwargs,
            )

        if self.scale:
            self.gamma = add(
                "gamma",
                self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
            )
        if self.center:
            self.beta = add(
                "beta",
                self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
            )
        self.moving_mean = add(
            "moving_mean", self.moving_mean_initializer, trainable=False
        )
        self.moving_variance = add(
            "moving_variance", self.moving_variance_initializer, trainable=False
        )
        if self.renorm:
            # Start from the moving statistics themselves: a random initializer
            # called again would draw other numbers.
            def mean(shape, dtype):
                return ops.copy(ops.cast(self.moving_mean, dtype))

            def stddev(shape, dtype):
                return ops.sqrt(ops.cast(self.moving_variance, dtype))

            self.moving_stddev = add("moving_stddev", stddev, trainable=False)
            self.renorm_mean = add("renorm_mean", mean, trainable=False)
            self.renorm_stddev = add("renorm_stddev", stddev, trainable=False)
        self.history = History.of(self)
        if self.history is not None:
            self.history.build_for(shape, dtype)
        if isinstance(self.activation, keras.Layer) and not self.activation.built:
            self.activation.build(input_shape)
        self._apply_frozen()

    def compute_output_shape(
        self, input_shape: Sequence[int | None]
    ) -> tuple[int | None, ...]:
        self._channel_axes(input_shape)
        return tuple(input_shape)

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        batch = self._batch(inputs, mask)
        context = backends.active().replicas(self.axis_name)
        trains = self._trains(training, batch, context)
        if trains is False:
            return self._infer(batch)
        return self._train(batch, trains, context)

    def _infer(self, batch):
        """Normalizes by the moving statistics."""
        averages = MovingStatistics(self, batch.dtype)
        implementation, batch = self._implementation(batch, replicas.Alone())
        mean, variance = averages.for_inference(batch)
        gamma, beta = self._gamma_and_beta(averages)
        if vary_by_channel(batch):
            gamma = leave_out_absent(gamma, are_counted(batch), batch)
        recognized = recognize(self.activation)
        outputs = implementation.normalize(
            batch,
            Statistics(mean, 0.0, variance),
            Affine(gamma, beta),
            epsilon=self.epsilon,
            activation=recognized,
        )
        return self._finished(outputs, recognized)

    def _train(self, batch, trains, context):
        """Normalizes by the batch, or virtual batches, which the averages follow.

        Args:
            batch: `Batch`.
            trains: `True`, or a bool tensor that isn't known yet.
            context: `Replicas`, or `None`.
        """
        averages = MovingStatistics(self, batch.dtype)
        parts, reduction = self._parts(batch, context)
        axis, recognized = parts[0].virtual_axis, recognize(self.activation)
        outputs, taken = [], []
        for part in parts:
            implementation, part = self._implementation(part, reduction)
            moments = reduction.statistics(implementation.moments(part))
            usable = both(exist(moments, averages.narrow_to), trains)
            constants = functools.partial(averages.for_inference, part)
            outputs.append(
                implementation.normalize(
                    part,
                    choose(usable, moments, constants),
                    self._affine(part, averages, moments, usable, batch, trains),
                    epsilon=self.epsilon,
                    activation=recognized,
                    sum_gradients=reduction.sum_gradients,
                )
            )
            taken.append(moments)
        outputs = self._finished(virtual.join(outputs, axis), recognized)
        if not (backends.active().is_recomputing() or are_kept()):
            everyone = reduction.everyone(virtual.merge(taken, axis))
            everyone = without_gradient(everyone)
            # Judged anew: what was merged may overflow where none of its parts does.
            usable = both(exist(everyone, averages.narrow_to), trains)
            averages.update(everyone, usable)
            averages.count_step(trains)
        return outputs

    def _finished(self, outputs, recognized):
        """Outputs of the policy's dtype, behind an activation that isn't recognized."""
        outputs = _cast(outputs, self.compute_dtype)
        if recognized is not None or self.activation is keras.activations.linear:
            return outputs
        shape, outputs = outputs.shape, self.activation(outputs)
        if tuple(outputs.shape) != tuple(shape):
            raise ValueError(
                "An activation has to keep the shape. "
                f"Received: activation={self.activation}, which makes "
                f"{tuple(outputs.shape)} of {tuple(shape)}. Call it behind the layer."
            )
        return _cast(outputs, self.compute_dtype)

    def _batch(self, inputs, mask):
        """The inputs in the dtype that holds them and the outputs, and the mask.

        Inputs in 16 bits stay so where the outputs are of the same dtype: the
        arithmetic is float32 whatever the dtype it reads and writes.
        """
        axes = self._channel_axes(inputs.shape)
        of_inputs = keras.backend.standardize_dtype(inputs.dtype)
        if "complex" in of_inputs:
            raise ValueError(
                "Inputs have to be real. "
                f"Received: inputs.dtype={of_inputs}. Normalize the real and "
                "imaginary parts as channels of their own."
            )
        of_outputs, dtype = self.compute_dtype, "float32"
        if "float64" in (of_inputs, of_outputs, self.variable_dtype):
            dtype = "float64"
        is_narrow = of_inputs == of_outputs and of_inputs in ("bfloat16", "float16")
        x = inputs if is_narrow and dtype == "float32" else _cast(inputs, dtype)
        weights = None if mask is None else mask_to_weights(mask, x, dtype, axes=axes)
        return Batch(x, weights, axes, dtype)

    def _channel_axes(self, shape):
        """The channel axes of inputs of a shape, which has to fit the weights."""
        stored = None if self.moving_mean is None else self.moving_mean.shape
        return arguments.validate_channels(self.axis, shape, stored)

    def _trains(self, training, batch, context):
        """Whether the call trains: a bool, or a bool tensor that isn't known yet."""
        if not self.trainable or "statistics" in self._frozen:
            return False
        is_traced = backends.active().is_traced(training)
        if not is_traced and not training:
            return False
        # An empty batch, known to be empty, has no statistics to take; but where
        # replicas wait for each other's sums, each has to take part. It isn't asked
        # for at inference, where PyTorch's tracing would warn of the question.
        if context is None and 0 in tuple(batch.x.shape):
            return False
        return ops.cast(training, "bool") if is_traced else True

    def _parts(self, batch, context):
        """The batches that have statistics of their own, and who joins their sums."""
        parts = virtual.split(batch, self.virtual_batch_size)
        are_virtual = parts[0].virtual_axis is not None
        reduction = replicas.reduction(context, self.synchronized, virtual=are_virtual)
        return parts, reduction

    def _choose(self, batch, reduction):
        """Chooses what computes, and says why it isn't native."""
        synchronized = reduction.sum_gradients is not None
        return backends.choose(batch, synchronized=synchronized)

    def _implementation(self, batch, reduction):
        """What computes, and the batch as it takes it."""
        implementation, _ = self._choose(batch, reduction)
        if implementation is backends.active().generic:
            # Gradients through the outputs and the statistics meet before they are
            # rounded to 16 bits.
            batch = batch._replace(x=_cast(batch.x, batch.dtype))
        return implementation, batch

    def _gamma_and_beta(self, averages):
        """Vectors; ones and zeros where the layer has none."""
        if self.gamma is not None and self.beta is not None:
            return averages.read(self.gamma), averages.read(self.beta)
        like = averages.read(self.moving_mean)
        gamma, beta = ops.ones_like(like), ops.zeros_like(like)
        return (
            gamma if self.gamma is None else averages.read(self.gamma),
            beta if self.beta is None else averages.read(self.beta),
        )

    def _affine(self, batch, averages, moments, usable, whole, trains):
        """What scales and shifts a training batch: gamma and beta, corrected."""
        gamma, beta = self._gamma_and_beta(averages)
        if batch.virtual_axis is not None:
            # Virtual batches share gamma and beta.
            zeros = ops.zeros_like(moments.variance)
            gamma = virtual.expand(gamma, batch) + zeros
            beta = virtual.expand(beta, batch) + zeros
        if self.renorm:
            r, d = averages.renorm_corrections(batch, moments, usable)
            gamma, beta = gamma * r, beta + gamma * d
        if vary_by_channel(batch):
            counted = moments.size > 0
            if batch.virtual_axis is not None and trains is not True:
                # Should this be inference, it knows of no virtual batches.
                everywhere = virtual.expand(are_counted(whole), batch)
                counted = ops.where(trains, counted, everywhere)
            gamma = leave_out_absent(gamma, counted, batch)
        return Affine(gamma, beta)

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        """Returns `layer_call`, which rematerialization leaves as it is.

        A `keras.RematScope` computes a layer's intermediate results a second time
        instead of keeping them. This layer keeps its inputs and vectors, which a
        second pass would need as well, so there is nothing to save; and a second
        pass would have to know that it moves no statistics.
        """
        return layer_call

    def reset_moving_statistics(self) -> None:
        """Sets the moving statistics to their initial values, and all counts to 0.

        A cumulative average (`momentum=None`) starts anew. gamma and beta stay.
        """
        if self.built:
            MovingStatistics(self).reset()

    def freeze(self, statistics: bool = True, affine: bool = True) -> None:
        """Freezes the moving statistics, gamma and beta, or one of the two.

        Frozen survives `fit`, `model.trainable = True`, saving and loading.

        Args:
            statistics: whether to normalize by the moving statistics, and leave them
                as they are, whatever `training` says.
            affine: whether to take gamma and beta out of the trainable weights.
        """
        kinds = {"statistics": statistics, "affine": affine}
        self._frozen = tuple(k for k, on in kinds.items() if on or k in self._frozen)
        self._apply_frozen()

    def unfreeze(self) -> None:
        """Undoes `freeze`, and `trainable=False`."""
        self._frozen = ()
        self.trainable = True
        # On TensorFlow an attribute that has the value already isn't set.
        self._apply_frozen()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Tuple of what is frozen: `"statistics"`, `"affine"`."""
        return self._frozen

    @keras.layers.Layer.trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        self._apply_frozen()

    def _apply_frozen(self):
        for weight in (self.gamma, self.beta):
            if weight is not None:
                weight.trainable = self.trainable and "affine" not in self._frozen

    def get_config(self) -> dict[str, Any]:
        config = super(keras.layers.BatchNormalization, self).get_config()
        clipping = self.renorm_clipping
        if clipping is not None:
            clipping = {
                k: keras.saving.serialize_keras_object(v) if callable(v) else v
                for k, v in clipping.items()
            }
        # What Keras's layer doesn't know is there only where it is used.
        more = {
            "virtual_batch_size": self.virtual_batch_size,
            "unbiased_moving_variance": self.unbiased_moving_variance,
            "debias_moving_statistics": self.debias_moving_statistics,
            "axis_name": self.axis_name,
            "activation": self._serialized_activation(),
            "frozen": list(self._frozen),
            # Keras's reader of `.h5` files drops an `axis` of several.
            "axes": list(self._axes) if len(self._axes) > 1 else None,
        }
        return {
            **config,
            "axis": list(self.axis) if isinstance(self.axis, tuple) else self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": keras.initializers.serialize(
                self.moving_mean_initializer
            ),
            "moving_variance_initializer": keras.initializers.serialize(
                self.moving_variance_initializer
            ),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
            "renorm": self.renorm,
            "renorm_clipping": clipping,
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
            **{name: value for name, value in more.items() if value},
        }

    def _serialized_activation(self):
        if self.activation is keras.activations.linear:
            return None
        return keras.activations.serialize(self.activation)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Creates a layer from the config of this layer, Keras's, or Keras 2's.

        Keras 2 stored two arguments more: `fused`, a choice of kernel, has no
        meaning any more; `adjustment` has to be `None`.
        """
        config = dict(config)
        config.pop("fused", None)
        frozen, axes = config.pop("frozen", ()), config.pop("axes", None)
        if axes is not None:
            config["axis"] = axes
        if config.pop("adjustment", None) is not None:
            raise ValueError(
                "`adjustment` of Keras 2 isn't supported. Received: a config with "
                "`adjustment`. Set it to None: inference doesn't depend on it."
            )
        if config.get("renorm_clipping"):
            config["renorm_clipping"] = {
                k: keras.saving.deserialize_keras_object(v)
                if isinstance(v, dict)
                else v
                for k, v in config["renorm_clipping"].items()
            }
        layer = super().from_config(config)
        layer.freeze("statistics" in frozen, "affine" in frozen)
        return layer

    def load_own_variables(self, store: Any) -> None:
        """Loads weights, of a layer with or without `renorm`.

        What only renorm has is left out, or started from the moving statistics. So
        is what only `debias_moving_statistics` and `momentum=None` have.
        """
        self._load_own_variables(store)
        if self.history is not None:
            # Its own variables, where the file has them, are loaded after these.
            self.history.continue_from(self)

    def _load_own_variables(self, store):
        plain = [w for w in (self.gamma, self.beta) if w is not None]
        plain += [self.moving_mean, self.moving_variance] if self.built else []
        stored = len(plain) + (0 if self.renorm else 3)
        if not self.built or len(store.keys()) != stored:
            return super().load_own_variables(store)
        for i, weight in enumerate(plain):
            weight.assign(store[f"{i}"])
        if self.renorm:
            stddev = ops.sqrt(self.moving_variance + self.epsilon)
            MovingStatistics(self).start_renorm(stddev)

    @property
    def _axes(self):
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)


def _cast(x, dtype):
    """Returns a tensor; where there is nothing to cast, in no time."""
    if keras.backend.standardize_dtype(x.dtype) != dtype:
        return ops.cast(x, dtype)
    return x.value if isinstance(x, keras.Variable) else x
