"""PyTorch: ATen's batch norm kernels, where they keep the digits.

The kernels of `torch.nn.BatchNorm` are taken one by one, so that statistics and
normalization stay two steps: `batch_norm_update_stats` (the sums),
`native_batch_norm` in inference mode (the elementwise pass) and
`native_batch_norm_backward`. Around them, what they lack on a CPU:

- Channels last, the kernel adds a column row by row: at 100,000 rows the mean is
  off by up to 500 units of rounding. Viewing 64 rows as one row of 64 times the
  channels costs nothing, shortens the chains, and fills vector registers where
  channels are few (3 channels: 25 times as fast).
- Channels first, its sums are scalar: those of each row by vector registers, in two
  passes, take a fifth of the time.
- So is its gradient slow where channels are few: rows that are seen as one have sums
  of their own, which are added, and dx is two more elementwise passes.
- The elementwise pass of rows takes twice the time of a copy; `addcmul` that of a copy.
- The elementwise pass is `x * a + b`, which loses digits where the mean is large.
  There, and only there, `x - shift` takes the place of `x` in all three kernels;
  how large the mean is, a CPU can look up at no cost. A GPU would have to be waited
  for; but its kernel subtracts first, and its sums are Welford's.

The gradient keeps `x` and vectors. What the kernels don't know (masks, gradients of
gradients, and on a CPU channels that are normalized by other numbers) is the formula in
`generic.gradients`. Where tensors are small, a kernel that takes the sums once more has
a gradient in C++, and none is written here.
"""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from keras_bnx.backends import generic as in_keras_ops
from keras_bnx.backends.contract import (
    Affine,
    Batch,
    Implementation,
    Moments,
    Replicas,
)
from keras_bnx.backends.generic import generic  # noqa: F401 (the contract)

# From mean/std = 10 on, `x * a + b` and a rounded mean may cost more than 1e-6.
_CONDITION_LIMIT = 10.0
# Up to so many elements, sums that are taken twice cost less than a gradient in
# Python: a training step on (256, 64) took 0.64 ms in place of 0.80, on (1024, 512)
# 1.9 in place of 2.1.
_REPEATED = 2**20
# Elements of a virtual batch from which on the kernels are called for each.
_SMALL = 2**17
# Additions of a chain in one channel, and values that fill a row of the kernel. Fewer
# channels than these fill no row: on (4194304, 1) its gradient took 185 ms, seen as
# (8192, 512) 3.
_CHAIN, _WIDTH, _FEW = 512, 512, 64


def obstacles(batch, *, synchronized):
    x, found = batch.x, []
    if torch.compiler.is_compiling():
        found.append("torch.compile and torch.export fuse the generic arithmetic.")
    elif torch.jit.is_tracing():
        found.append("torch.jit.trace can't follow kernels chosen by values.")
    elif torch._C._are_functorch_transforms_active():
        found.append("The transforms of torch.func differentiate plain arithmetic.")
    elif forward_ad.unpack_dual(x).tangent is not None:
        found.append("Forward-mode differentiation needs plain arithmetic.")
    elif type(x) not in (torch.Tensor, torch.nn.Parameter):
        found.append(f"Kernels take plain tensors, not {type(x).__name__}.")
    elif x.device.type not in ("cpu", "cuda"):
        found.append(f"The kernels were tried on CPU and CUDA, not {x.device.type}.")
    return found


def moments(batch):
    x = batch.x.detach()
    if not _has_kernels(batch):
        return in_keras_ops.moments(batch._replace(x=x))
    if _has_large_parts(batch):
        return Moments(*_one_by_one(moments, batch))
    values = _Layout.of(x, batch.axes).view(x)
    n = values.numel() // values.shape[1]
    mean, variance = _two_pass_moments(values, n)
    residual, all_finite = 0.0, False
    if values.is_cpu:
        lowest, highest = _bounds(mean, variance)
        all_finite = highest < math.inf
        # NaN, of a channel that isn't finite, hides what the others are.
        if not lowest >= 0.0:
            # Once more about the mean: what it was off by rounding, the residual says.
            # On one thread, chains of 500 of what is left cost 7e-6 of an output.
            shifted = _shifted(values, mean)
            residual, variance = _two_pass_moments(shifted, n, _CHAIN // 8)
            all_finite = math.isfinite(variance.sum())
    if len(batch.axes) > 1:
        sizes = [x.shape[axis] for axis in batch.axes]
        mean, residual, variance = (
            v.view(sizes) if isinstance(v, torch.Tensor) else v
            for v in (mean, residual, variance)
        )
    return Moments(n, n, mean, residual, variance, all_finite)


def normalize(
    batch, statistics, affine, *, epsilon, activation=None, sum_gradients=None
):
    if not torch.is_grad_enabled():
        return _forward(batch, statistics, affine, epsilon, activation)
    if sum_gradients is None and _may_repeat_sums(batch, statistics, activation):
        return _repeating(batch, affine, epsilon, activation)
    if statistics.are_constants:
        # They may be the moving statistics, which the next batch changes in place.
        statistics = statistics._replace(
            shift=statistics.shift.clone(), variance=statistics.variance.clone()
        )
    return _Normalize.apply(
        batch.x, *affine, batch, statistics, epsilon, activation, sum_gradients
    )


native = Implementation(
    "native", "ATen's batch norm kernels, forward and backward", moments, normalize
)


class _Normalize(torch.autograd.Function):
    """Normalizes; the gradient counts the statistics as functions of `x`."""

    @staticmethod
    def forward(ctx, x, gamma, beta, batch, statistics, *how):
        ctx.save_for_backward(x, batch.weights, gamma, beta)
        ctx.batch = batch._replace(x=None, weights=None)
        ctx.statistics, ctx.how = statistics, how
        epsilon, activation, _ = how
        affine, ctx.view = Affine(gamma, beta), _View.of(batch, statistics, epsilon)
        return _forward(batch, statistics, affine, epsilon, activation, ctx.view)

    @staticmethod
    def backward(ctx, dy):
        x, weights, *affine = ctx.saved_tensors
        batch = ctx.batch._replace(x=x, weights=weights)
        found = _gradients(
            dy,
            batch,
            ctx.statistics,
            Affine(*affine),
            *ctx.how,
            wanted=ctx.needs_input_grad[:3],
            view=ctx.view,
        )
        return *found, *[None] * 5


def _has_kernels(batch):
    # A kernel divides by sizes: where there is nothing it kills the process.
    return batch.weights is None and batch.x.numel() > 0


def _may_repeat_sums(batch, statistics, activation):
    """Whether the kernel that takes the sums again serves: it has a gradient in C++.

    On so few elements a gradient that is written in Python costs more.
    """
    size = batch.x.numel()
    return (
        size <= min(_REPEATED, _CHAIN * statistics.variance.numel())
        # Keras writes these in several steps, each of which keeps something.
        and (activation is None or activation.name not in ("mish", "squareplus"))
        and batch.x.is_cpu
        # In 16 bits it sums the gradients of gamma and beta in 16 bits.
        and batch.x.dtype == statistics.shift.dtype
        and isinstance(statistics.residual, float)
        and isinstance(statistics.inverse_count, float)
        and not statistics.are_constants
        and _has_kernels(batch)
    )


def _repeating(batch, affine, epsilon, activation):
    """Normalizes by sums that are taken once more."""
    layout = _Layout.of(batch.x, batch.axes)

    def normalized(*tensors):
        return torch.native_batch_norm(*tensors, None, None, True, 0.0, epsilon)[0]

    gamma, beta = map(_flat, affine)
    y = normalized(layout.view(batch.x), gamma, beta)
    if activation is None:
        return layout.restore(y)
    node, address = y.grad_fn, y.data_ptr()

    def is_input(tensor):
        return tensor.data_ptr() == address

    @torch.no_grad()
    def again(is_input):
        z = normalized(node._saved_input, node._saved_weight, beta)
        return z if is_input else activation(z)

    # What the activation keeps, its inputs or its outputs, is computed anew, from what
    # the normalization keeps.
    with saved_tensors_hooks(is_input, again):
        return layout.restore(activation(y))


def _forward(batch, statistics, affine, epsilon, activation=None, view=None):
    if not _has_kernels(batch):
        return in_keras_ops.normalize(
            batch, statistics, affine, epsilon=epsilon, activation=activation
        )
    if _has_large_parts(batch):
        function = functools.partial(_forward, epsilon=epsilon, activation=activation)
        return _one_by_one(function, batch, statistics, affine)
    view = view or _View.of(batch, statistics, epsilon)
    y = view.normalize(view.values(batch.x), affine)
    if activation is not None:
        y = _activated(activation, y)
    return view.layout.restore(y).to(batch.x.dtype)


def _gradients(
    dy,
    batch,
    statistics,
    affine,
    epsilon,
    activation,
    sum_gradients,
    wanted=(True, True, True),
    view=None,
):
    """Returns the gradients of `x`, gamma and beta, by a kernel where one serves."""
    inverse_count = statistics.inverse_count
    knows_all = isinstance(inverse_count, float) and sum_gradients is None
    again = torch.is_grad_enabled()
    if again or not _has_kernels(batch) or not (knows_all or _is_on_gpu(batch.x)):
        return in_keras_ops.gradients(
            dy,
            batch,
            statistics,
            affine,
            epsilon=epsilon,
            through_activation=activation
            and functools.partial(_through_again if again else _through, activation),
            sum_gradients=sum_gradients,
            differentiable=again,
        )
    if _has_large_parts(batch):
        function = functools.partial(
            _gradients,
            epsilon=epsilon,
            activation=activation,
            sum_gradients=sum_gradients,
            wanted=wanted,
        )
        return _one_by_one(function, dy, batch, statistics, affine)
    view = view or _View.of(batch, statistics, epsilon)
    layout, rows, _, mean, variance, _ = view
    values, inverse = view.values(batch.x), view.inverse
    dy = layout.view(dy).to(values.dtype)
    if activation is not None:
        dy = _through(activation, dy, view.normalize(values, affine), overwrites=True)
    shape, gamma = affine.gamma.shape, view.repeated(affine.gamma)
    if knows_all:
        # The sums of each row of a block are its own; dx is a matter of all of them.
        apart = rows > 1 and not statistics.are_constants
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy,
            values,
            gamma,
            mean,
            variance,
            mean,
            inverse,
            not statistics.are_constants,
            epsilon,
            (False, True, True) if apart else wanted,
        )
        if rows > 1:
            dgamma, dbeta = map(view.added, (dgamma, dbeta))
        if apart and wanted[0]:
            sums = dbeta, dgamma
            dx = view.through(dy, values, gamma, *(inverse_count * s for s in sums))
    else:
        # Two kernels of synchronized batch normalization, between which the sums are
        # summed over replicas, and zeroed in channels of other statistics.
        *sums, dgamma, dbeta = torch.batch_norm_backward_reduce(
            dy, values, mean, inverse, gamma, True, True, True
        )
        sums = in_keras_ops.through_statistics(
            torch.stack(sums), _flat(inverse_count), sum_gradients
        )
        one = torch.ones(1, dtype=torch.int32, device=values.device)
        dx = torch.batch_norm_backward_elemt(
            dy, values, mean, inverse, gamma, *sums, one
        )
    return (
        layout.restore(dx).to(batch.x.dtype) if wanted[0] else None,
        dgamma.view(shape) if wanted[1] else None,
        dbeta.view(shape) if wanted[2] else None,
    )


class _Form(NamedTuple):
    """How ATen computes an activation.

    Attributes:
        in_place: function of a tensor, which it overwrites, and the arguments.
        kernel: the kernel that autograd calls for the gradient of the inputs.
        backward: function of that kernel, `dy`, the inputs `z`, and the arguments.
    """

    in_place: Callable
    kernel: Any
    backward: Callable = lambda kernel, dy, z: kernel(dy, z)


def _gelu(approximate):
    return {"approximate": "tanh" if approximate else "none"}


_aten = torch.ops.aten
_FORMS = {
    "elu": _Form(
        functional.elu_,
        _aten.elu_backward,
        lambda kernel, dy, z, alpha: kernel(dy, alpha, 1, 1, False, z),
    ),
    "gelu": _Form(
        lambda z, approximate: _aten.gelu_(z, **_gelu(approximate)),
        _aten.gelu_backward,
        lambda kernel, dy, z, approximate: kernel(dy, z, **_gelu(approximate)),
    ),
    "hard_sigmoid": _Form(
        _aten.hardsigmoid_,
        # Its own kernel has 1 / 6 in float32, for float64 too.
        _aten.hardtanh_backward,
        lambda kernel, dy, z: kernel(dy / 6, z, -3, 3),
    ),
    "hard_silu": _Form(_aten.hardswish_, _aten.hardswish_backward),
    "leaky_relu": _Form(
        functional.leaky_relu_,
        _aten.leaky_relu_backward,
        lambda kernel, dy, z, negative_slope: kernel(dy, z, negative_slope, False),
    ),
    "mish": _Form(_aten.mish_, _aten.mish_backward),
    "relu": _Form(
        torch.relu_,
        _aten.threshold_backward,
        lambda kernel, dy, z: kernel(dy, z, 0),
    ),
    "relu6": _Form(
        lambda z: functional.hardtanh_(z, 0.0, 6.0),
        _aten.hardtanh_backward,
        lambda kernel, dy, z: kernel(dy, z, 0, 6),
    ),
    "sigmoid": _Form(
        torch.sigmoid_,
        _aten.sigmoid_backward,
        lambda kernel, dy, z: kernel(dy, z.sigmoid()),
    ),
    "silu": _Form(_aten.silu_, _aten.silu_backward),
    "softplus": _Form(
        lambda z: _aten.softplus.out(z, out=z),
        _aten.softplus_backward,
        lambda kernel, dy, z: kernel(dy, z, 1, 20),
    ),
    "squareplus": _Form(
        lambda z, b: z.add_((z * z).add_(b).sqrt_()).mul_(0.5),
        torch.mul,
        lambda kernel, dy, z, b: kernel(dy, 0.5 + 0.5 * z * (z * z + b).rsqrt()),
    ),
    "tanh": _Form(
        torch.tanh_,
        _aten.tanh_backward,
        lambda kernel, dy, z: kernel(dy, z.tanh()),
    ),
}


def _activated(activation, z):
    """Applies an activation to a tensor, which it overwrites."""
    return _FORMS[activation.name].in_place(z, **dict(activation.arguments))


def _through(activation, dy, z, *, overwrites=False):
    """The gradient of an activation's inputs `z`, which it may overwrite.

    On a CPU a new tensor of that size may take more time than the arithmetic.
    """
    _, kernel, backward = _FORMS[activation.name]
    if overwrites and hasattr(kernel, "grad_input"):
        kernel = functools.partial(kernel.grad_input, grad_input=z)
    else:
        kernel = kernel.default if hasattr(kernel, "default") else kernel
    return backward(kernel, dy, z, **dict(activation.arguments))


def _through_again(activation, dy, z):
    """The same, to be differentiated: not all of the kernels are."""
    return torch.autograd.grad(activation(z), z, dy, create_graph=True)[0]


def _is_on_gpu(x):
    return x.is_cuda


def _has_large_parts(batch):
    """Whether each virtual batch is worth a call of the kernels of its own.

    Otherwise virtual batches are more channels to them, which takes a copy: (64, 32,
    32, 64) by 16 takes 3 times as long so, and (256, 64) by 8 a tenth.
    """
    x = batch.x
    return batch.virtual_axis == 0 and x.is_cpu and x[0].numel() >= _SMALL


def _one_by_one(function, *arguments):
    """Calls a function for each virtual batch, and stacks what it returns."""
    (count,) = {len(a.x) for a in arguments if isinstance(a, Batch)}
    results = [function(*(_of_part(a, i) for a in arguments)) for i in range(count)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results)
    return [_stacked(values) for values in zip(*results, strict=True)]


def _of_part(value, i):
    """What belongs to a virtual batch."""
    if isinstance(value, Batch):
        axes = tuple(axis - 1 for axis in value.axes[1:])
        return value._replace(x=value.x[i], axes=axes, virtual_axis=None)
    if isinstance(value, tuple):
        return type(value)(*(_of_part(v, i) for v in value))
    return value[i] if isinstance(value, torch.Tensor) else value


def _stacked(values):
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if not tensors:
        # Counts are the same for all; of bools that are known, all have to be true.
        return min(values) if values[0] is not None else None
    zeros = torch.zeros_like(tensors[0])
    return torch.stack([v if isinstance(v, torch.Tensor) else zeros for v in values])


def _flat(vector):
    """One number for each combination of several channel axes."""
    several = isinstance(vector, torch.Tensor) and vector.dim() > 1
    return vector.reshape(-1) if several else vector


class _View(NamedTuple):
    """A batch as the kernels read it: its layout, and vectors of its statistics.

    Attributes:
        layout: `_Layout`.
        rows: how many rows are seen as one, with vectors repeated as often.
        shift: what is subtracted from the inputs beforehand, or `None`.
        mean, variance: those of the inputs, less the shift.
        epsilon: float, added to the variance.
    """

    layout: Any
    rows: int
    shift: Any
    mean: Any
    variance: Any
    epsilon: float

    @classmethod
    def of(cls, batch, statistics, epsilon):
        """A view; `None` of a batch that kernels don't take, or not as one."""
        if not _has_kernels(batch) or _has_large_parts(batch):
            return None
        shift, residual, variance, inverse_count = map(_flat, statistics)
        is_vector = isinstance(residual, torch.Tensor)
        if not batch.x.is_cpu:
            needs_shift = False
        elif isinstance(inverse_count, float) and inverse_count > 0.0:
            # The moments have looked.
            needs_shift = is_vector
        else:
            needs_shift = not _bounds(shift, variance + epsilon)[0] >= 0.0
        if needs_shift:
            mean = residual if is_vector else torch.zeros_like(shift)
        else:
            mean, shift = shift + residual if is_vector else shift, None
        layout, rows = _Layout.of(batch.x, batch.axes), 1
        if batch.x.is_cpu and len(layout.shape) == 2:
            n, channels = layout.shape
            rows = _rows_at_once(n, channels)
        view = cls(layout, rows, shift, mean, variance, epsilon)
        if rows == 1:
            return view
        layout = layout._replace(shape=(n // rows, rows * channels))
        vectors = map(view.repeated, (shift, mean, variance))
        return cls(layout, rows, *vectors, epsilon)

    def repeated(self, vector):
        """A vector of the channels, for each of the rows that are seen as one."""
        if self.rows == 1 or vector is None:
            return _flat(vector)
        return vector.flatten().repeat(self.rows)

    def added(self, vector):
        """The sums of the rows that are seen as one, one for each channel."""
        return None if vector is None else vector.view(self.rows, -1).sum(0)

    @property
    def inverse(self):
        return (self.variance + self.epsilon).rsqrt()

    def values(self, x):
        values = self.layout.view(x)
        return values if self.shift is None else _shifted(values, self.shift)

    def normalize(self, values, affine):
        """The elementwise pass."""
        gamma, beta = map(self.repeated, affine)
        mean, variance = self.mean, self.variance
        if values.dim() == 2 and values.is_cpu and values.dtype == mean.dtype:
            # The kernel's own `x * a + b`, in half of its time.
            scale = self.inverse * gamma
            offset = torch.addcmul(beta, mean, scale, value=-1)
            return torch.addcmul(offset, values, scale)
        return torch.native_batch_norm(
            values, gamma, beta, mean, variance, False, 0.0, self.epsilon
        )[0]

    def through(self, dy, values, gamma, first, second):
        """`scale * (dy - first - x_hat * second)`: dx, by vectors that are sums / n."""
        inverse = self.inverse
        scale = gamma * inverse
        slope = -scale * inverse * self.repeated(second)
        offset = -torch.addcmul(self.mean * slope, scale, self.repeated(first))
        return torch.addcmul(offset, dy, scale).addcmul_(values, slope)


@functools.lru_cache
def _rows_at_once(n, channels):
    """How many rows of few channels to see as one: as many as fill the kernel's."""
    if n <= _CHAIN or channels >= _FEW:
        return 1
    return next(rows for rows in range(_WIDTH // channels, 0, -1) if n % rows == 0)


def _bounds(mean, variance):
    """The least and the largest number of `variance - (mean / limit)**2`.

    Where the least isn't negative no mean is beyond the limit of standard deviations;
    where the largest is finite too, all are. A NaN makes both so.
    """
    margin = torch.addcmul(variance, mean, mean, value=-(_CONDITION_LIMIT**-2))
    lowest, highest = torch.aminmax(margin)
    return lowest.item(), highest.item()


def _shifted(values, shift):
    return values.to(shift.dtype) - (shift if values.dim() == 2 else shift[:, None])


def _two_pass_moments(values, n, chain=_CHAIN):
    """Mean and variance per channel, as exact as one number for the mean can be."""
    if not values.is_cpu:
        return torch.batch_norm_update_stats(values, None, None, 0.0)
    # In 16 bits the kernel returns 16 bits.
    values = values if values.dtype == torch.float64 else values.float()
    if values.dim() == 3:
        mean = values.sum(2).sum(0) / n
        norms = torch.linalg.vector_norm(values - mean[:, None], dim=2)
        return mean, norms.square_().sum(0) / n
    channels = values.shape[1]
    rows = math.ceil(n / chain)
    if channels < _FEW:
        rows = max(rows, min(n // _WIDTH, _WIDTH // channels))
    if rows > 1:
        return _moments_of_blocks(values, n, rows)
    return torch.batch_norm_update_stats(values, None, None, 0.0)


def _moments_of_blocks(values, n, rows):
    """Moments where several rows are seen as one (Chan et al. 1983)."""
    channels, count = values.shape[1], n // rows
    whole, tail = values[: count * rows], values[count * rows :]
    means, variances = (
        moment.view(rows, channels)
        for moment in torch.batch_norm_update_stats(
            whole.view(count, rows * channels), None, None, 0.0
        )
    )
    mean = (count * means.sum(0) + tail.sum(0)) / n
    within = count * (variances + (means - mean).square()).sum(0)
    return mean, (within + (tail - mean).square().sum(0)) / n


class _Layout(NamedTuple):
    """How to see a tensor as (rows, channels), or (examples, channels, inner).

    Several channel axes, also one of virtual batches, are seen as one. Strides decide,
    not axes: a convolution's outputs are often a permuted view. What is contiguous in
    no such order is copied into rows: on other memory some kernels take sums in 16
    bits.
    """

    order: tuple  # of the axes, or None where they stay
    sizes: tuple  # in that order
    shape: tuple

    @classmethod
    def of(cls, x, axes):
        order, permuted, first = None, x, axes[0]
        are_adjacent = axes[-1] - first == len(axes) - 1
        if not (are_adjacent and x.is_contiguous()):
            others = [i for i in range(x.dim()) if i not in axes]
            for order in ((*others[:1], *axes, *others[1:]), (*others, *axes)):
                permuted, first = x.permute(order), order.index(axes[0])
                if permuted.is_contiguous():
                    break
        sizes, last = permuted.shape, first + len(axes)
        shape = math.prod(sizes[:first]), math.prod(sizes[first:last])
        inner = math.prod(sizes[last:])
        return cls(order, sizes, shape if inner == 1 else (*shape, inner))

    # Each view that isn't needed would be a step of the backward pass, too.

    def view(self, x):
        x = x if self.order is None else x.permute(self.order)
        x = x if x.shape == self.shape else x.reshape(self.shape)
        return x.contiguous()

    def restore(self, values):
        x = values if values.shape == self.sizes else values.view(self.sizes)
        if self.order is None:
            return x
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return x.permute(inverse)


def replicas(axis_name):
    """The processes of `torch.distributed` that train one model.

    Inside of `DistributedDataParallel` they are those of its process group; outside,
    all of them. Those that aren't synchronized join their statistics inside only:
    outside, nothing says that they train one model.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    # PyTorch has no public name for it.
    parallel = DistributedDataParallel._get_active_ddp_module()
    group = None
    if parallel is not None:
        group = parallel.process_group
        _repeated.append(group)
    elif is_recomputing() and _repeated:
        # Rematerialization repeats the forward pass outside of the module's own.
        group = _repeated[0]
    count = distributed.get_world_size(group)
    if count == 1:
        return None
    return Replicas(
        count,
        distributed.get_rank(group),
        # The backward pass runs outside, where the group can't be looked up.
        functools.partial(_all_reduce_sum, group=group),
        group is not None,
    )


# The process group of the last forward pass inside of `DistributedDataParallel`.
_repeated: collections.deque = collections.deque(maxlen=1)


def _all_reduce_sum(value, group):
    return _AllReduceSum.apply(value, group)


class _AllReduceSum(torch.autograd.Function):
    """PyTorch's own differentiable sum refuses to be compiled."""

    @staticmethod
    def forward(ctx, value, group):
        ctx.group = group
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, upstream):
        return _AllReduceSum.apply(upstream, ctx.group), None


def is_traced(value):
    return isinstance(value, torch.Tensor) and torch.compiler.is_compiling()


def is_recomputing():
    """Whether autograd is running backward, and so repeats a forward pass.

    `torch.utils.checkpoint` (`keras.remat`) runs the forward pass again from
    inside the backward pass, and would update moving statistics twice a step
    (pytorch/pytorch#96136). PyTorch has no public name for this; its own
    checkpointing asks the same function. Dynamo can't trace it and needn't: it
    compiles a checkpointed region as one function.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
