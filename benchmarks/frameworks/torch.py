"""PyTorch: eager, as Keras runs it by default; native is `torch.nn.BatchNorm`."""

import torch

from benchmarks.frameworks import EPSILON, MOMENTUM

PACKAGES = ("torch",)


def accelerator():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copy_step(x):
    return lambda: torch.neg(x)


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
    """A `torch.nn.BatchNorm`, which has the channels second.

    Channels that are last reach it as a view; its kernels know that order.
    """

    def __init__(self, shape, axis, dtype):
        # PyTorch's momentum weighs the new value. Parameters are float32 whatever
        # the inputs are, as under Keras's mixed policies.
        cls = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
        self.module = getattr(torch.nn, cls[len(shape)])(
            shape[axis], eps=EPSILON, momentum=1 - MOMENTUM
        ).to(accelerator() and "cuda")
        self.axis = axis
        self.trainable = list(self.module.parameters())

    def __call__(self, x, training):
        self.module.train(training)
        return self.module(x.movedim(self.axis, 1)).movedim(1, self.axis)

    @property
    def moving_mean(self):
        return self.module.running_mean


def training_step(subject, x, dy):
    x = x.detach().requires_grad_()

    def step():
        y = subject(x, training=True)
        dx, *_ = torch.autograd.grad(y, [x, *subject.trainable], dy)
        return y.detach(), dx

    return step


def inference_step(subject, x):
    def step():
        with torch.inference_mode():
            return subject(x, training=False)

    return step


def bytes_kept(subject, x):
    return _kept(lambda: subject(x.detach().requires_grad_(), training=True))


def model_bytes(model, x):
    weights = {w.value.untyped_storage().data_ptr() for w in model.weights}
    return _kept(lambda: model(torch.as_tensor(x), training=True), weights)


def allocated_peak(function):
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated()


def _kept(function, leave_out=()):
    """The bytes that autograd keeps, each storage once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in leave_out:
            # Held, so that no other tensor is given the same address meanwhile.
            storages[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        function()
    return sum(storage.nbytes() for storage in storages.values())
