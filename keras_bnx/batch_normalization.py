"""The layer: arguments, weights, training and inference branch, config, files."""

import functools
import math
import numbers

import keras
import numpy as np
from keras import ops

from keras_bnx import backends
from keras_bnx.ops import replicas, virtual
from keras_bnx.ops.bounds import at_least
from keras_bnx.ops.moments import join, moments, unbiased_variance
from keras_bnx.ops.moving import (
    are_kept,
    consistent_stddev,
    newest_weight,
    update_mean,
    update_scale,
)
from keras_bnx.ops.normalize import normalize
from keras_bnx.ops.renorm import renorm_corrections
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

    def __init__(
        self,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        moving_mean_initializer="zeros",
        moving_variance_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        renorm=False,
        renorm_clipping=None,
        renorm_momentum=0.99,
        synchronized=False,
        *,
        virtual_batch_size=None,
        unbiased_moving_variance=False,
        debias_moving_statistics=False,
        axis_name=None,
        **kwargs,
    ):
        super(keras.layers.BatchNormalization, self).__init__(**kwargs)
        # float16 would lose digits, and overflow, before the layer can upcast.
        self.autocast = False
        self.supports_masking = True
        self.axis = _validate_axis(axis)
        self.momentum = (
            None
            if momentum is None
            else _validate_number("momentum", momentum, 0.0, 1.0)
        )
        self.epsilon = _validate_number("epsilon", epsilon, 0.0, above=True)
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
        clipping = _validate_clipping(renorm_clipping)
        self.renorm_clipping = (clipping or {}) if renorm else clipping
        self.renorm_momentum = _validate_number(
            "renorm_momentum", renorm_momentum, 0.0, 1.0
        )
        self.synchronized = _validate_synchronized(synchronized)
        self.axis_name = _validate_axis_name(axis_name)
        self.virtual_batch_size = _validate_virtual_batch_size(virtual_batch_size)
        self.unbiased_moving_variance = bool(unbiased_moving_variance)
        self.debias_moving_statistics = bool(debias_moving_statistics)
        self.gamma = self.beta = None
        self.moving_mean = self.moving_variance = self.history = None
        self._frozen = ()

    def build(self, input_shape):
        axes = self._channel_axes(len(input_shape))
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
        averages = ()
        if self.debias_moving_statistics:
            averages = ("debiased_mean", "debiased_scale")
            if self.renorm:
                averages += ("debiased_renorm_mean", "debiased_renorm_stddev")
        counts = averages or self.momentum is None
        steps = any(map(callable, (self.renorm_clipping or {}).values()))
        if counts or steps:
            self.history = History(averages, counts, steps, name="history")
            self.history.build_for(shape, dtype)
        self._apply_frozen()
        # The rank is free: one layer may serve sequences and single vectors.
        last = max(self._axes)
        self.input_spec = keras.InputSpec(
            ndim=len(input_shape) if len(axes) > 1 else None,
            min_ndim=max(last + 1, -min(self._axes)),
            axes={axis: input_shape[axis] for axis in self._axes},
        )

    def compute_output_shape(self, input_shape):
        self._channel_axes(len(input_shape))
        return tuple(input_shape)

    def call(self, inputs, training=None, mask=None):
        x = self._widen(inputs)
        axes = self._channel_axes(len(x.shape))
        backend = backends.active()
        dtype = _statistics_dtype(x)
        weights = None if mask is None else mask_to_weights(mask, x, dtype, axes=axes)
        gamma = None if self.gamma is None else self._read(self.gamma, dtype)
        beta = None if self.beta is None else self._read(self.beta, dtype)

        traced = backend.is_traced(training)
        beside = backend.replicas(self.axis_name)
        trains = self.trainable and "statistics" not in self._frozen
        trains = trains and (traced or training)
        # An empty batch, known to be empty, has no statistics to take; but where
        # replicas wait for each other's sums, each has to take part. It isn't asked
        # for at inference, where PyTorch's tracing would warn of the question.
        if trains and (beside is not None or 0 not in tuple(x.shape)):
            trains = ops.cast(training, "bool") if traced else True
            outputs = self._train(x, weights, axes, dtype, gamma, beta, trains, beside)
        else:
            arithmetic, x = self._choose(x, axes, dtype)
            mean, variance = self._inference_statistics(dtype)
            if vary_by_channel(weights, axes):
                counted = are_counted(weights, axes)
                gamma = ops.ones_like(mean) if gamma is None else gamma
                gamma = leave_out_absent(gamma, counted, range(len(axes)))
            outputs = normalize(
                x,
                weights,
                axes=axes,
                arithmetic=arithmetic,
                shift=mean,
                mean=0.0,
                variance=variance,
                epsilon=self.epsilon,
                gamma=gamma,
                beta=beta,
            )
        return _cast(outputs, self.compute_dtype)

    def _train(self, x, weights, axes, dtype, gamma, beta, trains, beside):
        """Normalizes by the batch, or virtual batches; updates the statistics."""
        backend = backends.active()
        shape = tuple(x.shape)
        selects = vary_by_channel(weights, axes)
        inference = self._inference_statistics(dtype)
        renorm = self._renorm_statistics(dtype) if self.renorm else None
        axis = virtual.batch_axis(len(shape), axes)
        divides = self.virtual_batch_size is not None and axis is not None
        parts, masks, lift = [x], [weights], lambda vector: vector
        # Where vectors have the channels: all of their axes but the virtual batches'.
        channels = range(len(axes))
        if divides:
            parts, masks = virtual.split(x, weights, self.virtual_batch_size, axis)
            axes = virtual.with_virtual_axis(axes, axis)
            channels = [i for i, a in enumerate(axes) if a != axis]

            def lift(vector):
                return None if vector is None else ops.expand_dims(vector, axis)

        # Virtual batches are a replica's own; what it joins is their statistics.
        sums = bool(self.synchronized and beside and not divides)
        sum_replicas = None
        if sums:
            sum_replicas = functools.partial(
                replicas.sum_group, replicas=beside, size=self.synchronized
            )
        outputs, batches, known = [], [], True
        for part, mask in zip(parts, masks, strict=True):
            arithmetic, part = self._choose(part, axes, dtype, sums)
            native = arithmetic is backend.native
            batch = moments(part, mask, axes=axes, arithmetic=arithmetic)
            if sums:
                native, of_all = False, replicas.gather(batch, beside)
                of_group = replicas.group(of_all, beside, self.synchronized)
                batch = join([of_group], 0, leave_out=False)
            usable = _both(self._is_usable(batch, native), trains)
            y = self._normalize(
                part,
                mask,
                axes,
                arithmetic,
                batch,
                usable,
                *map(lift, (gamma, beta, *inference)),
                renorm=None if renorm is None else [*map(lift, renorm)],
                channels=channels if selects else None,
                sum_replicas=sum_replicas,
            )
            outputs.append(y)
            batches.append(batch)
            known = known and usable is True
        if not (backend.is_recomputing() or are_kept()):
            joins = beside and (self.synchronized or beside.joins)
            joins = joins and not (sums and self.synchronized is True)
            if divides:
                batch = join(batches, axis, leave_out=not known)
            if joins:
                of_all = of_all if sums else replicas.gather(batch, beside)
                batch = join([of_all], 0)
            if joins or divides:
                # The joined variance may overflow where none of the parts' does.
                usable = _both(self._is_usable(batch, native and known), trains)
            if not native:
                batch = batch._replace(
                    mean=ops.stop_gradient(batch.mean),
                    variance=ops.stop_gradient(batch.variance),
                )
            self._update_statistics(batch, usable, dtype)
            if self.history is not None and self.history.counts_steps:
                self.history.steps.assign_add(ops.cast(trains, "int32"))
        return virtual.join(outputs, axis) if divides else outputs[0]

    def _normalize(
        self,
        x,
        weights,
        axes,
        arithmetic,
        batch,
        usable,
        gamma,
        beta,
        mean,
        variance,
        *,
        renorm,
        channels,
        sum_replicas,
    ):
        """Normalizes by the batch; by `mean` and `variance` what isn't usable."""
        if renorm is not None:
            gamma, beta = self._renormalize(batch, usable, gamma, beta, *renorm)
        if channels is not None:
            gamma = ops.ones_like(mean) if gamma is None else gamma
            gamma = leave_out_absent(gamma, batch.size > 0, channels)
        if len(axes) > len(self._axes):
            # Virtual batches share gamma and beta.
            gamma, beta = (
                None if v is None else v + ops.zeros_like(batch.variance)
                for v in (gamma, beta)
            )
        if usable is True:
            shift, rest, share = batch.shift, batch.mean, 1.0 / batch.count
            variance = batch.variance
        else:
            shift = ops.where(usable, batch.shift, mean)
            # A choice of two Python numbers would be float32.
            rest = batch.mean
            rest = rest if isinstance(rest, float) else ops.where(usable, rest, 0.0)
            variance = ops.where(usable, batch.variance, variance)
            infinity = ops.full_like(shift, math.inf)
            share = 1.0 / ops.where(usable, batch.count, infinity)
        return normalize(
            x,
            weights,
            axes=axes,
            arithmetic=arithmetic,
            shift=shift,
            mean=rest,
            variance=variance,
            epsilon=self.epsilon,
            gamma=gamma,
            beta=beta,
            share=share,
            sum_replicas=sum_replicas,
        )

    def rematerialized_call(self, layer_call, *args, **kwargs):
        """Returns `layer_call`, which rematerialization leaves as it is.

        A `keras.RematScope` computes a layer's intermediate results a second time
        instead of keeping them. This layer keeps its inputs and vectors, which a
        second pass would need as well, so there is nothing to save; and a second
        pass would have to know that it moves no statistics.
        """
        return layer_call

    def reset_moving_statistics(self):
        """Sets the moving statistics to their initial values, and all counts to 0.

        A cumulative average (`momentum=None`) starts anew. gamma and beta stay.
        """
        if not self.built:
            return
        for weight, initializer in (
            (self.moving_mean, self.moving_mean_initializer),
            (self.moving_variance, self.moving_variance_initializer),
        ):
            weight.assign(initializer(weight.shape, dtype=weight.dtype))
        if self.renorm:
            self._start_renorm(ops.sqrt(self.moving_variance))
        if self.history is not None:
            self.history.reset()

    def freeze(self, statistics=True, affine=True):
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

    def unfreeze(self):
        """Undoes `freeze`, and `trainable=False`."""
        self._frozen = ()
        self.trainable = True
        # On TensorFlow an attribute that has the value already isn't set.
        self._apply_frozen()

    @property
    def frozen(self):
        """Tuple of what is frozen: `"statistics"`, `"affine"`."""
        return self._frozen

    @keras.layers.Layer.trainable.setter
    def trainable(self, value):
        keras.layers.Layer.trainable.fset(self, value)
        self._apply_frozen()

    def _apply_frozen(self):
        for weight in (self.gamma, self.beta):
            if weight is not None:
                weight.trainable = self.trainable and "affine" not in self._frozen

    def get_config(self):
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

    @classmethod
    def from_config(cls, config):
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

    def load_own_variables(self, store):
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
            self._start_renorm(ops.sqrt(self.moving_variance + self.epsilon))

    def _start_renorm(self, stddev):
        self.moving_stddev.assign(stddev)
        # Copies: JAX keeps the array it is given, and lets none be donated twice.
        self.renorm_stddev.assign(ops.copy(stddev))
        self.renorm_mean.assign(ops.copy(self.moving_mean))

    @property
    def _axes(self):
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def _channel_axes(self, ndim):
        """The channel axes, ascending and not negative."""
        for axis in self._axes:
            if not -ndim <= axis < ndim:
                raise ValueError(
                    "`axis` has to be an axis of the inputs. "
                    f"Received: axis={self.axis} for inputs of rank {ndim}. Choose "
                    "the axis of the channels, -1 in channels-last data."
                )
        axes = tuple(sorted({axis % ndim for axis in self._axes}))
        if len(axes) < len(self._axes):
            raise ValueError(
                "`axis` names an axis twice. "
                f"Received: axis={self.axis} for inputs of rank {ndim}. Name each "
                "channel axis once."
            )
        return axes

    def _choose(self, x, axes, dtype, sums=False):
        """Returns the arithmetic, and the inputs as it takes them."""
        arithmetic = backends.choose(x, axes=axes, synchronized=sums)
        if arithmetic is backends.active().generic:
            # Gradients through the outputs and the statistics meet before they are
            # rounded to 16 bits.
            x = _cast(x, dtype)
        return arithmetic, x

    def _read(self, weight, dtype):
        """The value of a weight, of the shape of the channel axes."""
        value = _cast(weight, dtype)
        if isinstance(self.axis, tuple):
            axes = self._channel_axes(len(weight.shape))
            value = ops.reshape(value, [weight.shape[i] for i in axes])
        return value

    def _is_usable(self, batch, native):
        """Where there are statistics; `True` where that is known without waiting."""
        # The variance is finite only where the mean is.
        vectors = [batch.variance]
        stored = keras.backend.standardize_dtype(self.moving_mean.dtype)
        if stored != keras.backend.standardize_dtype(batch.variance.dtype):
            # What float64 holds may be inf where it is stored.
            vectors = [batch.variance, batch.shift + batch.mean]
            vectors = [ops.cast(vector, stored) for vector in vectors]
        usable = batch.size > 0
        for vector in vectors:
            known = native and backends.active().is_known_finite(vector)
            usable = _both(usable, known or ops.isfinite(vector))
        return usable

    def _inference_statistics(self, dtype):
        """Mean and variance that take the place of a batch's."""
        mean = self._read(self.moving_mean, dtype)
        variance = self._read(self.moving_variance, dtype)
        # With a momentum of 1 no batch has any weight: there is nothing to divide.
        if not self.debias_moving_statistics or self.momentum == 1.0:
            return mean, variance
        history = self.history
        scale = self._read(history.debiased_scale, dtype)
        if self.renorm:
            scale = _variance_of(scale, self.epsilon)
        return (
            ops.where(
                self._read(history.mean_updates, dtype) > 0,
                self._read(history.debiased_mean, dtype),
                mean,
            ),
            ops.where(self._read(history.scale_updates, dtype) > 0, scale, variance),
        )

    def _widen(self, inputs):
        """Returns the inputs in the dtype that holds them and the outputs.

        Inputs in 16 bits stay so where the outputs are of the same dtype: the
        arithmetic is float32 whatever the dtype it reads and writes.
        """
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if "complex" in dtype:
            raise ValueError(
                "Inputs have to be real. "
                f"Received: inputs.dtype={dtype}. Normalize the real and imaginary "
                "parts as channels of their own."
            )
        dtypes = {dtype, self.compute_dtype, self.variable_dtype}
        if "float64" in dtypes:
            return _cast(inputs, "float64")
        narrow = dtype == self.compute_dtype and dtype in ("bfloat16", "float16")
        return inputs if narrow else _cast(inputs, "float32")

    def _renorm_statistics(self, dtype):
        """renorm_mean, renorm_stddev, and from where on they are to be used."""
        if not self.debias_moving_statistics or self.renorm_momentum == 1.0:
            mean = self._read(self.renorm_mean, dtype)
            return mean, self._read(self.renorm_stddev, dtype), None
        history = self.history
        return (
            self._read(history.debiased_renorm_mean, dtype),
            self._read(history.debiased_renorm_stddev, dtype),
            self._read(history.scale_updates, dtype) > 0,
        )

    def _renormalize(self, batch, usable, gamma, beta, mean, stddev, known):
        """Returns gamma and beta for `x_hat * r + d`."""
        limits = {
            k: limit(self.history.steps.value) if callable(limit) else limit
            for k, limit in self.renorm_clipping.items()
        }
        r, d = renorm_corrections(
            batch,
            renorm_mean=mean,
            renorm_stddev=stddev,
            epsilon=self.epsilon,
            **limits,
        )
        if known is not None:
            usable = _both(usable, known)
        r = _select(usable, r, ops.ones_like(r))
        d = _select(usable, d, ops.zeros_like(d))
        if gamma is not None:
            r, d = r * gamma, d * gamma
        return r, d if beta is None else d + beta

    def _update_statistics(self, batch, usable, dtype):
        """Moves each statistic of each usable channel towards the batch's."""
        history, averages = self.history, self.debias_moving_statistics
        # One element has a mean but no variance; 0 would be far from any truth.
        has_variance, variance = _both(usable, batch.size > 1), batch.variance
        if self.unbiased_moving_variance:
            variance, exists = unbiased_variance(batch)
            has_variance = _both(has_variance, exists)

        def write(weight, where, new, old):
            new = _select(where, new, old)
            if isinstance(self.axis, tuple):
                new = ops.reshape(new, weight.shape)
            weight.assign(new)

        def average(update, weight, where, new, momentum, updates, *, debias=False):
            old = self._read(weight, dtype)
            share = newest_weight(momentum, updates, debias=debias)
            write(weight, where, update(old, new, share), old)

        mean_updates = scale_updates = None
        if history is not None and history.counts:
            old = self._read(history.mean_updates, dtype)
            mean_updates = old + 1.0
            write(history.mean_updates, usable, mean_updates, old)
            old = self._read(history.scale_updates, dtype)
            scale_updates = old + 1.0
            write(history.scale_updates, has_variance, scale_updates, old)
        of_mean = usable, batch, self.momentum, mean_updates
        scale = ops.sqrt(variance + self.epsilon) if self.renorm else variance
        of_scale = has_variance, scale, self.momentum, scale_updates

        average(update_mean, self.moving_mean, *of_mean)
        if averages:
            average(update_mean, history.debiased_mean, *of_mean, debias=True)
            average(update_scale, history.debiased_scale, *of_scale, debias=True)
        if not self.renorm:
            average(update_scale, self.moving_variance, *of_scale)
            return
        old = self._read(self.moving_variance, dtype)
        stddev = self._read(self.moving_stddev, dtype)
        start = consistent_stddev(stddev, old, epsilon=self.epsilon)
        new = update_scale(start, scale, newest_weight(self.momentum, scale_updates))
        write(self.moving_stddev, has_variance, new, stddev)
        write(self.moving_variance, has_variance, _variance_of(new, self.epsilon), old)
        momentum = self.renorm_momentum
        # r compares deviations with the divisor n.
        scale = ops.sqrt(batch.variance + self.epsilon)
        of_mean = usable, batch, momentum, mean_updates
        of_scale = has_variance, scale, momentum, scale_updates
        average(update_mean, self.renorm_mean, *of_mean)
        average(update_scale, self.renorm_stddev, *of_scale)
        if averages:
            average(update_mean, history.debiased_renorm_mean, *of_mean, debias=True)
            average(
                update_scale, history.debiased_renorm_stddev, *of_scale, debias=True
            )


class History(keras.layers.Layer):
    """What averages know of their past, beside the statistics that Keras stores.

    A layer of its own, so that the file of a `BatchNormalization` has the variables
    of Keras's, in their order, and either loads into the other.

    Attributes:
        mean_updates, scale_updates: how many batches each channel has seen; `inf`
            after loading a file that doesn't say.
        debiased_mean, debiased_scale: the averages of the mean, and of the variance
            (under renorm of the standard deviation, `sqrt(variance + epsilon)`).
        debiased_renorm_mean, debiased_renorm_stddev: those of renorm's statistics.
        steps: scalar integer, training passes, for schedules.
    """

    def __init__(self, averages, counts, steps, **kwargs):
        super().__init__(**kwargs)
        self.averages, self.counts, self.counts_steps = averages, counts, steps

    def build_for(self, shape, dtype):
        names = ("mean_updates", "scale_updates") if self.counts else ()
        for name in (*names, *self.averages):
            weight = self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            setattr(self, name, weight)
        if self.counts_steps:
            self.steps = self.add_weight(
                name="steps", dtype="int32", initializer="zeros", trainable=False
            )
        self.built = True

    def reset(self):
        for weight in self.weights:
            weight.assign(ops.zeros_like(weight.value))

    def continue_from(self, layer):
        """Takes moving statistics of unknown history for the average so far.

        A cumulative average, for which that says nothing, starts anew.
        """
        self.reset()
        if not self.averages or layer.momentum is None:
            return
        self.debiased_mean.assign(ops.copy(layer.moving_mean))
        scale = ops.copy(layer.moving_variance)
        self.debiased_scale.assign(
            ops.sqrt(scale + layer.epsilon) if layer.renorm else scale
        )
        if layer.renorm:
            self.debiased_renorm_mean.assign(ops.copy(layer.renorm_mean))
            self.debiased_renorm_stddev.assign(ops.copy(layer.renorm_stddev))
        for updates in (self.mean_updates, self.scale_updates):
            updates.assign(ops.full_like(updates.value, math.inf))

    def load_own_variables(self, store):
        if len(store.keys()):
            super().load_own_variables(store)


def _cast(x, dtype):
    """Returns a tensor; where there is nothing to cast, in no time."""
    if keras.backend.standardize_dtype(x.dtype) != dtype:
        return ops.cast(x, dtype)
    return x.value if isinstance(x, keras.Variable) else x


def _statistics_dtype(x):
    dtype = keras.backend.standardize_dtype(x.dtype)
    return "float64" if dtype == "float64" else "float32"


def _variance_of(stddev, epsilon):
    return at_least(ops.square(stddev) - epsilon, 0.0)


def _both(a, b):
    """`logical_and` that does nothing where a condition is known to be true."""
    if a is True or b is True:
        return b if a is True else a
    return ops.logical_and(a, b)


def _select(condition, a, b):
    """`where` that does nothing where the condition is known to be true."""
    return a if condition is True else ops.where(condition, a, b)


def _validate_axis(axis):
    """Returns an integer, or a tuple of several."""
    values = axis if isinstance(axis, (list, tuple)) else [axis]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            break
    else:
        if values and len(set(values)) == len(values):
            axes = tuple(map(int, values))
            return axes if len(axes) > 1 else axes[0]
    raise ValueError(
        "`axis` must be an integer, or a sequence of different integers. "
        f"Received: axis={axis!r}. Pass the index of the channel axis, -1 for the last."
    )


def _validate_virtual_batch_size(size):
    whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    if size is None or (whole and size >= 1):
        return None if size is None else int(size)
    raise ValueError(
        "`virtual_batch_size` must be an integer of at least 1, or None. "
        f"Received: virtual_batch_size={size!r}. Pass the number of examples in a "
        "virtual batch."
    )


def _validate_synchronized(synchronized):
    if isinstance(synchronized, (bool, np.bool_)):
        return bool(synchronized)
    if isinstance(synchronized, numbers.Integral) and synchronized > 1:
        return int(synchronized)
    raise ValueError(
        "`synchronized` must be a bool, or an integer above 1. "
        f"Received: synchronized={synchronized!r}. Pass True for statistics of all "
        "replicas, or the number of replicas in a group."
    )


def _validate_axis_name(name):
    if name is None or (isinstance(name, str) and name):
        return name
    raise ValueError(
        "`axis_name` must be a string, or None. "
        f"Received: axis_name={name!r}. Pass the name that JAX's shard_map, pmap or "
        "vmap has for the axis of the replicas."
    )


def _validate_number(name, value, low, high=math.inf, *, above=False):
    """Returns `value` as a float in [low, high], or in (low, high) if `above`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not (low < value < high if above else low <= value <= high):
        bounds = (
            f"a finite number above {low:g}"
            if above
            else f"a number from {low:g} to {high:g}"
        )
        raise ValueError(
            f"`{name}` must be {bounds}. Received: {name}={value!r}. Correct the value."
        )
    return float(value)


def _validate_clipping(clipping):
    if clipping is None:
        return None
    keys = ("rmax", "rmin", "dmax")
    if not isinstance(clipping, dict) or set(clipping) - set(keys):
        raise ValueError(
            "Received invalid keys for `renorm_clipping`, or no dictionary. "
            f"Received: renorm_clipping={clipping!r}. Use any of {list(keys)}."
        )
    limits = {}
    for key, value in clipping.items():
        if value is not None:
            is_schedule = isinstance(
                value, keras.optimizers.schedules.LearningRateSchedule
            )
            limits[key] = value if is_schedule else _validate_limit(key, value)
    scheduled = any(map(callable, limits.values()))
    # Schedules are looked at from the first step to the ten millionth.
    for step in [0, *(10**i for i in range(8))] if scheduled else [0]:
        now = {
            k: _validate_limit(k, float(v(step)), f" at step {step}")
            if callable(v)
            else v
            for k, v in limits.items()
        }
        rmin, rmax = now.get("rmin", 0.0), now.get("rmax", math.inf)
        if rmin > rmax:
            raise ValueError(
                "rmax should be at least rmin in `renorm_clipping`. "
                f"Received: rmax={rmax}, rmin={rmin}"
                f"{f' at step {step}' if scheduled else ''}. r is clipped to "
                "[rmin, rmax]."
            )
    return limits


def _validate_limit(key, value, when=""):
    if key == "dmax" and isinstance(value, numbers.Real) and value < 0:
        raise ValueError(
            "dmax should be non-negative in `renorm_clipping`. "
            f"Received: dmax={value}{when}. d is clipped to [-dmax, dmax]."
        )
    return _validate_number(f"renorm_clipping[{key!r}]{when}", value, 0.0)
