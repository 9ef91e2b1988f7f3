"""The layer: arguments, weights, training and inference branch, config, files."""

import math
import numbers

import keras
from keras import ops

from keras_bnx import backends
from keras_bnx.ops.moments import moments
from keras_bnx.ops.moving import consistent_stddev, update_mean, update_scale
from keras_bnx.ops.normalize import normalize
from keras_bnx.ops.renorm import renorm_corrections
from keras_bnx.ops.weights import mask_to_weights


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
    they are. A single element (a last batch of one row) has a mean but no
    variance: its output is `beta`, the moving mean follows it, the moving
    variance stays.

    **Masking.** Statistics are weighted: `n = sum(w)`, `mean = sum(w*x) / n`,
    `variance = sum(w * (x - mean)**2) / n`. A mask is the weight 0 or 1 of each
    element; real weights do as well (rows of sample weight 0, say). All
    elements are normalized, and the mask is passed on. Where the weight is 0 the
    input may be NaN or inf: it reaches neither statistics nor gradients, and its
    output is that of the mean, `beta` (under renorm `beta + d * gamma`). So is the
    output of a channel that a mask of the inputs' rank leaves out as a whole.

    **Mixed precision.** Statistics, weights and arithmetic are float32 under
    16-bit policies, also under `"float16"` and `"bfloat16"`, where a moving
    average in 16 bits would stall; inputs aren't autocast, so float32 inputs
    beyond float16's 65504 survive `"mixed_float16"`. float64 inputs or policies
    are computed in float64 (on JAX where x64 is enabled). The output has the
    policy's compute dtype.

    Args:
        axis: integer, the channel axis; 1 after layers with
            `data_format="channels_first"`. A sequence of one integer, as Keras 2
            stored it, is taken for the integer.
        momentum: float in [0, 1], the weight of the old moving value.
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
        renorm_momentum: float in [0, 1], the momentum of `renorm_mean` and
            `renorm_stddev`.
        synchronized: whether to take statistics over all replicas of a
            `tf.distribute` strategy. TensorFlow only.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: real tensor of shape `(batch, ..., channels, ...)`; one layer
            serves inputs of several ranks. Integers are cast to float.
        training: whether to use and follow the batch's statistics: a bool of
            Python or NumPy, or a scalar tensor, also under compilation.
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
        **kwargs,
    ):
        super(keras.layers.BatchNormalization, self).__init__(**kwargs)
        # float16 would lose digits, and overflow, before the layer can upcast.
        self.autocast = False
        self.supports_masking = True
        self.axis = _validate_axis(axis)
        self.momentum = _validate_number("momentum", momentum, 0.0, 1.0)
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
        if synchronized and backends.active().all_reduce_sum is None:
            raise ValueError(
                "`synchronized=True` needs the TensorFlow backend. "
                f"Received: synchronized={synchronized} on the backend "
                f"{keras.config.backend()!r}. Leave it False; under JAX's jit the "
                "statistics of sharded arrays are global anyway."
            )
        self.synchronized = synchronized
        self.gamma = self.beta = None
        self.moving_mean = self.moving_variance = None

    def build(self, input_shape):
        axis = self._channel_axis(len(input_shape))
        channels = input_shape[axis]
        if channels is None:
            raise ValueError(
                f"The size of the channel axis, axis={self.axis}, has to be known. "
                f"Received: input_shape={tuple(input_shape)}. Give the inputs a "
                "static size there, or choose another `axis`."
            )

        dtype = "float64" if self.variable_dtype == "float64" else "float32"

        def add(name, initializer, **kwargs):
            return self.add_weight(
                name=name,
                shape=(channels,),
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
        # The rank is free: one layer may serve sequences and single vectors.
        self.input_spec = keras.InputSpec(
            min_ndim=self.axis + 1 if self.axis >= 0 else -self.axis,
            axes={self.axis: channels},
        )

    def compute_output_shape(self, input_shape):
        self._channel_axis(len(input_shape))
        return tuple(input_shape)

    def call(self, inputs, training=None, mask=None):
        x = self._widen(inputs)
        axis = self._channel_axis(len(x.shape))
        backend = backends.active()
        arithmetic = backends.choose(x, synchronized=self.synchronized)
        dtype = _statistics_dtype(x)
        if arithmetic is backend.generic:
            # Gradients through the outputs and the statistics meet before they are
            # rounded to 16 bits.
            x = _cast(x, dtype)
        weights = None if mask is None else mask_to_weights(mask, x, dtype, axis=axis)
        gamma = None if self.gamma is None else _cast(self.gamma, dtype)
        beta = None if self.beta is None else _cast(self.beta, dtype)
        moving_mean = _cast(self.moving_mean, dtype)
        moving_variance = _cast(self.moving_variance, dtype)
        shift, mean, variance, share = moving_mean, 0.0, moving_variance, None

        traced = backend.is_traced(training)
        # An empty batch, known to be empty, has no statistics to take; but where
        # replicas wait for each other's sums, each has to take part.
        takes_part = self.synchronized or 0 not in tuple(x.shape)
        if self.trainable and (traced or training) and takes_part:
            batch = moments(
                x,
                weights,
                axis=axis,
                arithmetic=arithmetic,
                all_reduce_sum=backend.all_reduce_sum if self.synchronized else None,
            )
            # The variance is finite only where the mean is.
            native = arithmetic is backend.native
            usable = native and backend.is_known_finite(batch.variance)
            usable = _both(batch.size > 0, usable or ops.isfinite(batch.variance))
            if traced:
                usable = _both(usable, ops.cast(training, "bool"))
            if self.renorm:
                gamma, beta = self._renormalize(batch, usable, gamma, beta, dtype)
            if weights is not None and weights.shape[axis] != 1:
                # Channels of padding alone, in a batch that isn't padding alone.
                absent = ops.logical_and(batch.size == 0, ops.any(usable))
                gamma = ops.ones_like(shift) if gamma is None else gamma
                gamma = ops.where(absent, ops.zeros_like(gamma), gamma)
            shift = _select(usable, batch.shift, shift)
            mean = _select(usable, batch.mean, mean)
            variance = _select(usable, batch.variance, variance)
            share = 1.0 / (
                batch.count
                if usable is True
                else ops.where(usable, batch.count, ops.full_like(shift, math.inf))
            )
            if not backend.is_recomputing():
                if not native:
                    batch = batch._replace(
                        mean=ops.stop_gradient(batch.mean),
                        variance=ops.stop_gradient(batch.variance),
                    )
                self._update_statistics(
                    batch, usable, moving_mean, moving_variance, dtype
                )

        outputs = normalize(
            x,
            weights,
            axis=axis,
            arithmetic=arithmetic,
            shift=shift,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            gamma=gamma,
            beta=beta,
            share=share,
        )
        return _cast(outputs, self.compute_dtype)

    def get_config(self):
        config = super(keras.layers.BatchNormalization, self).get_config()
        clipping = self.renorm_clipping
        return {
            **config,
            "axis": self.axis,
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
            "renorm_clipping": None if clipping is None else dict(clipping),
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
        }

    @classmethod
    def from_config(cls, config):
        """Creates a layer from the config of this layer, Keras's, or Keras 2's.

        Keras 2 stored three arguments more: `fused`, a choice of kernel, has no
        meaning any more; `virtual_batch_size` and `adjustment` have to be `None`.
        """
        config = dict(config)
        config.pop("fused", None)
        for name in ("virtual_batch_size", "adjustment"):
            value = config.pop(name, None)
            if value is not None:
                raise ValueError(
                    f"`{name}` of Keras 2 isn't supported. "
                    f"Received: {name}={value!r}. Set it to None: inference doesn't "
                    "depend on it."
                )
        return super().from_config(config)

    def load_own_variables(self, store):
        """Loads weights, of a layer with or without `renorm`.

        What only renorm has is left out, or started from the moving statistics.
        """
        plain = 2 + (self.gamma is not None) + (self.beta is not None)
        if not self.built or {len(store.keys()), len(self.weights)} != {
            plain,
            plain + 3,
        }:
            return super().load_own_variables(store)
        order = self.weights
        if self.renorm:
            order = [w for w in (self.gamma, self.beta) if w is not None]
            order += [self.moving_mean, self.moving_variance]
        for i, weight in enumerate(order):
            weight.assign(store[f"{i}"])
        if self.renorm:
            stddev = ops.sqrt(self.moving_variance + self.epsilon)
            self.moving_stddev.assign(stddev)
            # Copies: JAX keeps the array it is given, and lets none be donated twice.
            self.renorm_stddev.assign(ops.copy(stddev))
            self.renorm_mean.assign(ops.copy(self.moving_mean))

    def _channel_axis(self, ndim):
        if not -ndim <= self.axis < ndim:
            raise ValueError(
                "`axis` has to be an axis of the inputs. "
                f"Received: axis={self.axis} for inputs of rank {ndim}. Choose the "
                "axis of the channels, -1 in channels-last data."
            )
        return self.axis % ndim

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

    def _renormalize(self, batch, usable, gamma, beta, dtype):
        """Returns gamma and beta for `x_hat * r + d`."""
        r, d = renorm_corrections(
            batch,
            renorm_mean=_cast(self.renorm_mean, dtype),
            renorm_stddev=_cast(self.renorm_stddev, dtype),
            epsilon=self.epsilon,
            **self.renorm_clipping,
        )
        r = _select(usable, r, ops.ones_like(r))
        d = _select(usable, d, ops.zeros_like(d))
        if gamma is not None:
            r, d = r * gamma, d * gamma
        return r, d if beta is None else d + beta

    def _update_statistics(self, batch, usable, moving_mean, moving_variance, dtype):
        """Moves each statistic of each usable channel towards the batch's."""
        # One element has a mean but no variance; 0 would be far from any truth.
        has_variance = _both(usable, batch.size > 1)

        def follow_mean(weight, old, momentum):
            new = update_mean(old, batch, momentum=momentum)
            weight.assign(_select(usable, new, old))

        def follow_scale(weight, old, start, new, momentum):
            new = update_scale(start, new, momentum=momentum)
            weight.assign(_select(has_variance, new, old))
            return new

        follow_mean(self.moving_mean, moving_mean, self.momentum)
        if not self.renorm:
            follow_scale(
                self.moving_variance,
                moving_variance,
                moving_variance,
                batch.variance,
                self.momentum,
            )
            return
        batch_stddev = ops.sqrt(batch.variance + self.epsilon)
        old = _cast(self.moving_stddev, dtype)
        start = consistent_stddev(old, moving_variance, epsilon=self.epsilon)
        stddev = follow_scale(
            self.moving_stddev, old, start, batch_stddev, self.momentum
        )
        new_variance = ops.maximum(
            ops.square(stddev) - self.epsilon, ops.zeros_like(stddev)
        )
        self.moving_variance.assign(
            _select(has_variance, new_variance, moving_variance)
        )
        old = _cast(self.renorm_mean, dtype)
        follow_mean(self.renorm_mean, old, self.renorm_momentum)
        old = _cast(self.renorm_stddev, dtype)
        follow_scale(self.renorm_stddev, old, old, batch_stddev, self.renorm_momentum)


def _cast(x, dtype):
    """Returns a tensor; where there is nothing to cast, in no time."""
    if keras.backend.standardize_dtype(x.dtype) != dtype:
        return ops.cast(x, dtype)
    return x.value if isinstance(x, keras.Variable) else x


def _statistics_dtype(x):
    dtype = keras.backend.standardize_dtype(x.dtype)
    return "float64" if dtype == "float64" else "float32"


def _both(a, b):
    """`logical_and` that does nothing where a condition is known to be true."""
    if a is True or b is True:
        return b if a is True else a
    return ops.logical_and(a, b)


def _select(condition, a, b):
    """`where` that does nothing where the condition is known to be true."""
    return a if condition is True else ops.where(condition, a, b)


def _validate_axis(axis):
    value = axis
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(
            f"`axis` must be an integer. Received: axis={axis!r}. Pass the index of "
            "the channel axis, -1 for the last."
        )
    return int(value)


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
        if value is None:
            continue
        if key == "dmax" and isinstance(value, numbers.Real) and value < 0:
            raise ValueError(
                "dmax should be non-negative in `renorm_clipping`. "
                f"Received: dmax={value}. d is clipped to [-dmax, dmax]."
            )
        limits[key] = _validate_number(f"renorm_clipping[{key!r}]", value, 0.0)
    rmin, rmax = limits.get("rmin", 0.0), limits.get("rmax", math.inf)
    if rmin > rmax:
        raise ValueError(
            "rmax should be at least rmin in `renorm_clipping`. "
            f"Received: rmax={rmax}, rmin={rmin}. r is clipped to [rmin, rmax]."
        )
    return limits
