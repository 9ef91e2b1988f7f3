"""TensorFlow: one `tf.function` over the step; native is its fused operation.

Without autograph, which nothing here needs, and which hides errors behind paths.
"""

import math

import tensorflow as tf

from benchmarks.frameworks import EPSILON, MOMENTUM

PACKAGES = ("tensorflow",)


def accelerator():
    devices = tf.config.list_physical_devices("GPU")
    return devices and tf.config.experimental.get_device_details(devices[0]).get(
        "device_name", "GPU"
    )


def synchronize():
    tf.test.experimental.sync_devices()


def copy_step(x):
    # Not as a tf.function: starting one takes longer than copying a megabyte.
    return lambda: tf.negative(x)


class keras_layer:
    def __init__(self, layer, shape):
        layer.build(shape)
        self.layer = layer
        self.trainable = [v.value for v in layer.trainable_variables]

    def __call__(self, x, training):
        return self.layer(x, training=training)

    @property
    def moving_mean(self):
        return self.layer.moving_mean.value


class native_layer:
    """`FusedBatchNormV3`, which takes images: all other axes become their height."""

    def __init__(self, shape, axis, dtype):
        channels, height = shape[axis], math.prod(shape[1:]) // shape[axis]
        last = axis in (-1, len(shape) - 1)
        self.format = "NHWC" if last else "NCHW"
        self.image = (-1, height, 1, channels) if last else (-1, channels, height, 1)
        self.gamma = tf.Variable(tf.ones(channels))
        self.beta = tf.Variable(tf.zeros(channels))
        self.moving_mean = tf.Variable(tf.zeros(channels), trainable=False)
        self.moving_variance = tf.Variable(tf.ones(channels), trainable=False)
        self.trainable = [self.gamma, self.beta]

    def __call__(self, x, training):
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(x, self.image),
            scale=self.gamma,
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=EPSILON,
            exponential_avg_factor=1 - MOMENTUM,
            data_format=self.format,
            is_training=training,
        )
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return tf.reshape(y, x.shape)


def training_step(subject, x, dy):
    @tf.function(autograph=False)
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = subject(x, training=True)
        return y, *tape.gradient(y, [x, *subject.trainable], output_gradients=dy)

    return lambda: step(x, dy)[:2]


def inference_step(subject, x):
    step = tf.function(lambda x: subject(x, training=False), autograph=False)
    return lambda: step(x)


def bytes_kept(subject, x):
    forward = set()

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = subject(x, training=True)
        graph = tf.compat.v1.get_default_graph()
        forward.update(operation.name for operation in graph.get_operations())
        ones = tf.ones(y.shape, y.dtype)
        return tape.gradient(y, [x, *subject.trainable], output_gradients=ones)

    # What operations of the backward pass read of those before them.
    kept = {}
    for operation in step.get_concrete_function(x).graph.get_operations():
        if operation.name in forward or operation.type == "Shape":
            continue
        for tensor in operation.inputs:
            tensor = _buffer(tensor)
            # A workspace has no known shape: empty here, some bits of cuDNN's on a GPU.
            if tensor.op.name in forward and tensor.shape.is_fully_defined():
                kept[tensor.name] = math.prod(tensor.shape) * tensor.dtype.size
    return sum(kept.values())


def _buffer(tensor):
    """The tensor whose memory this one shares."""
    while tensor.op.type in ("Identity", "IdentityN", "Reshape", "StopGradient"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def model_bytes(model, x):
    return None  # TensorFlow doesn't say


def allocated_peak(function):
    if not accelerator():
        return None
    tf.config.experimental.reset_memory_stats("GPU:0")
    function()
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
