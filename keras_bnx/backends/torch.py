"""PyTorch: ATen's batch norm kernels, where they keep the digits.

The kernels of `torch.nn.BatchNorm` are taken one by one, so that statistics and
normalization stay two steps: `batch_norm_update_stats` (the sums),
`native_batch_norm` in inference mode (the elementwise pass) and
`native_batch_norm_backward`. Around them, what they lack on a CPU:

- Channels last, the kernel adds a column row by row: at 100,000 rows the mean is
  off by up to 500 units of rounding. Viewing 64 rows as one row of 64 times the
  channels costs nothing, shortens the chains, and fills vector registers where
  channels are few (3 channels: 50 times as fast).
- Channels first, its sums are scalar. A vectorized sum and norm of each row take
  a sixth of the time.
- The elementwise pass of rows takes twice the time of a copy; `addcmul` takes that of
  a copy, and with several rows seen as one also where channels are few.
- The elementwise pass is `x * a + b`, which loses digits where the mean is large.
  There, and only there, `x - shift` takes the place of `x` in all three kernels;
  how large the mean is, a CPU can look up at no cost. A GPU would have to be waited
  for; but its kernel subtracts first, and its sums are Welford's.

The gradient keeps `x` and vectors. Gradients of gradients are PyTorch's own, of
the formula in `_gradients`.
"""

import collections
import functools
import math
from typing import NamedTuple

import torch
from torch import distributed
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

from keras_bnx.backends import Arithmetic, Moments, Replicas
from keras_bnx.backends import generic as in_keras_ops
from keras_bnx.backends.generic import (  # noqa: F401 (the contract)
    generic,
    other_axes,
)

# From mean/std = 10 on, `x * a + b` and a rounded mean may cost more than 1e-6.
_LARGE = 10.0
# The norm of a row gives its sum of squares about 0; where the mean of a channel is
# beyond four deviations, their difference to the variance costs a digit and more.
_FAR = 4.0
# Elements of a virtual batch below which calls for each cost more than a pass over all
# of them: sums for the backward pass took 0.27 ms by each at 2**16, 0.74 by kernels at
# 2**18, and 1.12 and 0.27 the other way round.
_SMALL = 2**17
# Additions of a chain in one channel, and values that fill a row of the kernel.
_CHAIN, _WIDTH = 4096, 512

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def obstacles(x, *, axes, synchronized):
    found = []
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
    if x.dtype not in _DTYPES:
        found.append(f"There are no kernels for {x.dtype}.")
    if len(axes) > 1 and not (len(axes) == 2 and axes[0] == 0):
        found.append("The kernels take one channel axis, and one of virtual batches.")
    return found


def moments(x, weights, *, axes):
    with torch.no_grad():
        if weights is not None or x.numel() == 0:
            return in_keras_ops.moments(x, weights, axes=axes)
        if len(axes) == 1:
            return _moments(x, *axes)
        return _moments_of_virtual(x, axes[1])


def _moments_of_virtual(x, axis):
    if x[0].numel() < _SMALL:
        layout = _Layout.of(x, axis, virtual=True)
        values = _widened(layout.view(x))
        n = values[0].numel() // layout.channels

        def centered(mean):
            return values - layout.per_element(mean)

        mean = layout.total(values) / n
        variance = layout.total(centered(mean).square_()) / n
        rest = 0.0
        if values.device.type != "cpu" or _is_beyond(_LARGE, mean, variance):
            rest = layout.total(centered(mean)) / n
            variance = (variance - rest.square()).clamp_(min=0.0)
        return Moments(n, n, mean, rest, variance)
    parts = [_moments(part, axis - 1) for part in x.unbind()]
    (n, *_), _, shift, rest, variance = zip(*parts, strict=True)
    shift, variance = torch.stack(shift), torch.stack(variance)
    if all(isinstance(r, float) for r in rest):
        rest = 0.0
    else:
        rest = torch.stack([r + torch.zeros_like(shift[0]) for r in rest])
    return Moments(n, n, shift, rest, variance)


def _moments(x, axis):
    values = _Layout.of(x, axis).view(x)
    n = values.numel() // values.shape[1]
    mean, variance = _look(values, n)
    rest = 0.0
    if values.device.type == "cpu" and _is_beyond(_LARGE, mean, variance):
        rest, variance = _look(_shifted(values, mean), n)
    return Moments(n, n, mean, rest, variance)


def normalize(
    x,
    weights,
    *,
    axes,
    shift,
    mean,
    variance,
    epsilon,
    gamma,
    beta,
    share=None,
    sum_replicas=None,
):
    if x.device.type != "cpu":
        # A GPU's kernel subtracts first; for virtual batches there is none.
        large = len(axes) > 1
    elif isinstance(share, float):
        # All are the batch's own statistics; a second look has left a rest.
        large = isinstance(mean, torch.Tensor)
    else:
        large = _is_beyond(_LARGE, shift, variance + epsilon)
    if not isinstance(mean, torch.Tensor):
        mean = None
    if share is None and torch.is_grad_enabled():
        # They may be the moving statistics, which the next batch changes in place.
        shift, variance = shift.clone(), variance.clone()
    statistics = shift, mean, variance, epsilon
    plain = weights is None and not large and len(axes) == 1 and x.numel() > 0
    if plain and share is None and not torch.is_grad_enabled():
        return _forward(x, None, *axes, *statistics, gamma, beta, False)
    how = share, sum_replicas, large
    return _Normalize.apply(x, weights, axes, *statistics, gamma, beta, *how)


native = Arithmetic(
    "native", "ATen's batch norm kernels, forward and backward", moments, normalize
)


class _Normalize(torch.autograd.Function):
    """Normalizes; the gradient counts the statistics as functions of `x`."""

    @staticmethod
    def forward(
        ctx,
        x,
        weights,
        axes,
        shift,
        mean,
        variance,
        epsilon,
        gamma,
        beta,
        share,
        sum_replicas,
        large,
    ):
        ctx.save_for_backward(x, weights, shift, mean, variance, gamma)
        ctx.constants = axes, epsilon, share, sum_replicas, large
        if x.numel() == 0:
            # Not for kernels: they divide by sizes, and kill the process.
            return x.clone()
        vectors = shift, mean, variance, epsilon, gamma, beta
        if len(axes) == 1:
            return _forward(x, weights, *axes, *vectors, large)
        return _forward_virtual(x, weights, axes, *vectors, large)

    @staticmethod
    def backward(ctx, dy):
        x, weights, shift, mean, variance, gamma = ctx.saved_tensors
        axes, epsilon, share, sum_replicas, large = ctx.constants
        wanted = [ctx.needs_input_grad[i] for i in (0, 7, 8)]
        statistics = shift, mean, variance, epsilon
        if weights is not None or x.numel() == 0 or torch.is_grad_enabled():
            how = gamma, share, sum_replicas
            found = _gradients(dy, x, weights, axes, *statistics, *how)
        elif len(axes) > 1:
            how = gamma, share, sum_replicas, large, wanted
            found = _backward_virtual(dy, x, axes[1], *statistics, *how)
        elif sum_replicas is None and not isinstance(share, torch.Tensor):
            how = gamma, share, large, wanted
            found = _backward(dy, x, *axes, *statistics, *how)
        else:
            # As one virtual batch: the kernel knows neither replicas nor channels that
            # are normalized by other numbers.
            dy, x, shift, mean, variance, gamma, share = (
                v[None] if isinstance(v, torch.Tensor) else v
                for v in (dy, x, shift, mean, variance, gamma, share)
            )
            statistics = shift, mean, variance, epsilon
            how = gamma, share, sum_replicas, large, wanted
            found = _backward_virtual(dy, x, axes[0] + 1, *statistics, *how)
            found = (None if v is None else v[0] for v in found)
        dx, dgamma, dbeta = found
        dx, dgamma, dbeta = (
            d if w else None for d, w in zip((dx, dgamma, dbeta), wanted, strict=True)
        )
        return dx, *[None] * 6, dgamma, dbeta, *[None] * 3


def _forward(x, weights, axis, shift, mean, variance, epsilon, gamma, beta, large):
    layout = _Layout.of(x, axis)
    if weights is None and not large:
        values, mean = x, _sum(shift, mean)
    else:
        values, _ = _centered(x, weights, shift, mean, (axis,))
        mean = torch.zeros_like(shift) if mean is None else mean
    y = _kernel_normalize(layout.view(values), mean, variance, epsilon, gamma, beta)
    return layout.restore(y).to(x.dtype)


def _backward(dy, x, axis, shift, mean, variance, epsilon, gamma, share, large, wanted):
    layout = _Layout.of(x, axis)
    values, dy = layout.view(x), layout.view(dy)
    if large:
        values = _shifted(values, shift)
        mean = torch.zeros_like(shift) if mean is None else mean
    else:
        mean = _sum(shift, mean)
    inverse = (variance + epsilon).rsqrt()
    if share is not None and _are_few(values):
        dx, dgamma, dbeta = _gradients_of_few(dy, values, gamma, mean, inverse, share)
    else:
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy.to(values.dtype),
            values,
            gamma,
            mean,
            variance,
            mean,
            inverse,
            share is not None,
            epsilon,
            wanted,
        )
    return layout.restore(dx).to(x.dtype) if wanted[0] else None, dgamma, dbeta


def _forward_virtual(
    x, weights, axes, shift, mean, variance, epsilon, gamma, beta, large
):
    """One pass over all virtual batches: with so many numbers no kernel helps."""
    layout = _Layout.of(x, axes[1], virtual=True)
    center = _sum(shift, mean)
    if weights is not None or large:
        x, dtype = _centered(x, weights, shift, mean, axes)[0], x.dtype
        center = mean
    else:
        dtype = x.dtype
    scale = (variance + epsilon).rsqrt()
    scale = scale if gamma is None else scale * gamma
    offset = torch.zeros_like(scale) if beta is None else beta
    offset = offset if center is None else offset - center * scale
    values = _widened(layout.view(x))
    y = torch.addcmul(layout.per_element(offset), values, layout.per_element(scale))
    return layout.restore(y).to(dtype)


def _backward_virtual(
    dy,
    x,
    axis,
    shift,
    mean,
    variance,
    epsilon,
    gamma,
    share,
    sum_replicas,
    large,
    wanted,
):
    layout = _Layout.of(x, axis, virtual=True)
    values, dy = _widened(layout.view(x)), _widened(layout.view(dy))
    center = _sum(shift, mean)
    if large:
        values = values - layout.per_element(shift)
        center = torch.zeros_like(shift) if mean is None else mean
    inverse, dx = (variance + epsilon).rsqrt(), None
    if x[0].numel() < _SMALL:
        dbeta = layout.total(dy)
        dx = (values - layout.per_element(center)).mul_(dy)
        dgamma = layout.total(dx) * inverse
    else:
        statistics = map(layout.repeat, (center, variance, inverse))
        sums = [
            torch.ops.aten.native_batch_norm_backward(
                d, v, None, m, s, m, i, True, epsilon, [False, True, True]
            )[1:]
            for d, v, m, s, i in zip(dy, values, *statistics, strict=True)
        ]
        dgamma, dbeta = (layout.fold(torch.stack(s)) for s in zip(*sums, strict=True))
    if wanted[0]:
        scale = inverse if gamma is None else gamma * inverse
        if share is None:
            dx = dy * layout.per_element(scale)
        else:
            sums = torch.stack([dbeta, dgamma])
            first, second = _of_statistics(sums, share, sum_replicas)
            slope = -scale * inverse * second
            offset = -scale * first - slope * center
            offset, slope, scale = map(layout.per_element, (offset, slope, scale))
            # In place: fresh memory would cost more than the sum.
            dx = torch.addcmul(offset, values, slope, out=dx).addcmul_(dy, scale)
        dx = layout.restore(dx).to(x.dtype)
    return dx, dgamma, dbeta


def _of_statistics(sums, share, sum_replicas):
    """`share` times sums of all replicas: what flows through mean and variance.

    Nothing does in a channel that is normalized by other numbers. There 0 times sums
    that aren't finite would be NaN, for every element of the channel.
    """
    if sum_replicas is not None:
        sums = sum_replicas(sums)
    if isinstance(share, torch.Tensor):
        sums = torch.where(share > 0, sums, 0.0)
    return share * sums


def _gradients(
    dy, x, weights, axes, shift, mean, variance, epsilon, gamma, share, sum_replicas
):
    """The gradients by their formula, in operations that PyTorch differentiates.

    `dx = gamma * inv * (dy - w * share * (sum(dy) + x_hat * sum(dy * x_hat)))`
    (Ioffe and Szegedy 2015, section 3), with `share = 1 / n`.
    """
    others = other_axes(x, axes)

    def total(values):
        return values.sum(others) if others else values

    def per_element(vector):
        return _per_element(vector, x, axes)

    def of_counted(values):
        # Weight 0 isn't enough: 0 times infinity is NaN.
        return values if weights is None else torch.where(weights > 0, values, 0.0)

    centered, harmless = _centered(x, weights, shift, mean, axes)
    mean = torch.zeros_like(shift) if mean is None else mean
    weight = 1.0 if weights is None else weights.clamp(min=0).nan_to_num()
    if share is not None and torch.is_grad_enabled():
        # The statistics as functions of x: their values stay, and get gradients.
        first = _of_statistics(total(weight * centered), share, sum_replicas)
        mean = mean + (first - first.detach())
        squares = of_counted(centered - per_element(mean)).square()
        second = _of_statistics(total(weight * squares), share, sum_replicas)
        variance = variance + (second - second.detach())
    inverse = (variance + epsilon).rsqrt()
    x_hat = (centered - per_element(mean)) * per_element(inverse)
    if harmless is not None:
        x_hat = torch.where(harmless, x_hat, 0.0)
    dy = dy.to(x_hat.dtype)
    dbeta, dgamma = total(dy), total(dy * x_hat)
    dx, first = dy, dbeta
    if harmless is not None:
        dx = torch.where(harmless, dy, 0.0)
        first = total(dx)
    if share is not None:
        sums = torch.stack([first, dgamma])
        first, second = map(per_element, _of_statistics(sums, share, sum_replicas))
        dx = dx - weight * (first + of_counted(x_hat) * second)
    dx = dx * per_element(inverse if gamma is None else gamma * inverse)
    return dx.to(x.dtype), dgamma, dbeta


def _are_few(values):
    """Whether the kernel's rows are too short for vector registers: 5 times slower."""
    rows, few = values.shape[0], values.dim() == 2 and values.shape[1] < 16
    return few and rows >= 4096 and values.device.type == "cpu"


def _block(values):
    """How many rows are seen as one, a power of two."""
    rows, channels = values.shape
    return math.gcd(rows, 1 << (_WIDTH // channels).bit_length() - 1)


def _gradients_of_few(dy, values, gamma, mean, inverse, share):
    """The same formula where channels are few: several rows are seen as one."""
    rows, channels = values.shape
    block = _block(values)

    def wide(rows):
        return rows.to(mean.dtype).reshape(-1, block * channels)

    def total(values):
        return values.sum(0).view(block, channels).sum(0)

    dy, x_hat = wide(dy), wide(values) - mean.repeat(block)
    x_hat *= inverse.repeat(block)
    dgamma, dbeta = total(dy * x_hat), total(dy)
    scale = inverse if gamma is None else gamma * inverse
    dx = x_hat.mul_((-share * scale * dgamma).repeat(block))
    dx.add_((-share * scale * dbeta).repeat(block)).addcmul_(dy, scale.repeat(block))
    return dx.view(rows, channels), dgamma, dbeta


def _per_element(vector, x, axes):
    return vector.reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])


def _centered(x, weights, shift, mean, axes):
    """`x - shift`, and what is harmless: elements that count or are finite.

    What isn't harmless is taken for the mean.
    """
    centered = x.to(shift.dtype) - _per_element(shift, x, axes)
    if weights is None:
        return centered, None
    harmless = (weights > 0) | x.isfinite()
    mean = torch.zeros_like(shift) if mean is None else mean
    return torch.where(harmless, centered, _per_element(mean, x, axes)), harmless


def _shifted(values, shift):
    return values.to(shift.dtype) - (shift if values.dim() == 2 else shift[:, None])


def _sum(shift, mean):
    return shift if mean is None else shift + mean


def _is_beyond(ratio, mean, variance):
    """Whether any channel's mean is more than `ratio` standard deviations."""
    rest = torch.addcmul(variance, mean, mean, value=-(ratio**-2))
    return bool((rest < 0.0).any())


def _look(values, n):
    """Mean and variance per channel, as exact as one number for the mean can be."""
    if values.device.type == "cpu":
        if values.dim() == 3 and values.dtype == torch.float32:
            mean, variance = _moments_of_rows(values, n)
            if not _is_beyond(_FAR, mean, variance):
                return mean, variance
        elif values.dim() == 2:
            channels = values.shape[1]
            block = n // _CHAIN
            if channels < 64:
                block = max(block, min(n // _WIDTH, _WIDTH // channels))
            if block > 1:
                return _moments_of_blocks(values, n, block)
    return _kernel_moments(values, n)


def _kernel_moments(values, n):
    if values.dtype in (torch.float32, torch.float64):
        return torch.batch_norm_update_stats(values, None, None, 0.0)
    # In 16 bits only the running statistics are float32, and the variance unbiased.
    mean, variance = torch.zeros(
        (2, values.shape[1]), dtype=torch.float32, device=values.device
    )
    torch.batch_norm_update_stats(values, mean, variance, 1.0)
    return mean, variance * ((n - 1) / n) if n > 1 else torch.zeros_like(mean)


def _moments_of_rows(values, n):
    mean = values.sum(2).sum(0) / n
    square = torch.linalg.vector_norm(values, dim=2).square().sum(0) / n
    return mean, (square - mean.square()).clamp(min=0.0)


def _moments_of_blocks(values, n, block):
    """Moments of rows by those of every `block`-th row (Chan et al. 1983)."""
    channels, count = values.shape[1], n // block
    whole, tail = values[: count * block], values[count * block :]
    means, variances = (
        moment.view(block, channels)
        for moment in _kernel_moments(whole.view(count, block * channels), count)
    )
    tail = tail.to(means.dtype)
    mean = (count * means.sum(0) + tail.sum(0)) / n
    within = count * (variances + (means - mean).square()).sum(0)
    return mean, (within + (tail - mean).square().sum(0)) / n


def _kernel_normalize(values, mean, variance, epsilon, gamma, beta):
    if values.dim() == 2 and values.device.type == "cpu" and values.dtype == mean.dtype:
        # The kernel's own `x * a + b`, in half of its time.
        scale = (variance + epsilon).rsqrt()
        scale = scale if gamma is None else scale * gamma
        offset = -mean * scale if beta is None else beta.addcmul(mean, scale, value=-1)
        if _are_few(values):
            block = _block(values)
            wide = values.reshape(-1, block * values.shape[1])
            wide = torch.addcmul(offset.repeat(block), wide, scale.repeat(block))
            return wide.view(values.shape)
        return torch.addcmul(offset, values, scale)
    return torch.native_batch_norm(
        values, gamma, beta, mean, variance, False, 0.0, epsilon
    )[0]


class _Layout(NamedTuple):
    """How to see a tensor as (rows, channels), or (examples, channels, inner).

    Strides decide, not the axis: a convolution's outputs are often a permuted
    view. What is contiguous in neither form is copied into rows: on other memory some
    kernels take sums in 16 bits. Virtual batches come first, (virtual batches, rows,
    channels); there several rows are seen as one where channels are few, and vectors
    are repeated as often.
    """

    axis: int
    to: int
    moved: tuple
    shape: tuple
    channels: int
    block: int

    @classmethod
    def of(cls, x, axis, *, virtual=False):
        for to in (axis, min(1 + virtual, x.dim() - 1), -1):
            moved = x if to == axis or x.dim() < 2 else x.movedim(axis, to)
            if moved.is_contiguous():
                break
        sizes = tuple(moved.shape)
        position = to % x.dim()
        channels, block = sizes[position], 1
        rows = math.prod(sizes[virtual:position])
        inner = math.prod(sizes[position + 1 :])
        if virtual and inner == 1:
            block = math.gcd(rows, 1 << max(0, (_WIDTH // channels).bit_length() - 1))
        shape = (rows // block, block * channels)
        shape = shape if inner == 1 else (*shape, inner)
        shape = (sizes[0], *shape) if virtual else shape
        return cls(axis, to, sizes, shape, channels, block)

    def view(self, x):
        moved = x if self.to == self.axis else x.movedim(self.axis, self.to)
        return moved.reshape(self.shape).contiguous()

    def restore(self, values):
        moved = values.view(self.moved)
        return moved if self.to == self.axis else moved.movedim(self.to, self.axis)

    def repeat(self, vectors):
        return vectors if self.block == 1 else vectors.repeat(1, self.block)

    def fold(self, vectors):
        """Sums what `repeat` repeats."""
        if self.block == 1:
            return vectors
        return vectors.view(len(vectors), self.block, self.channels).sum(1)

    def per_element(self, vectors):
        vectors = self.repeat(vectors).unsqueeze(1)
        return vectors if len(self.shape) == 3 else vectors.unsqueeze(-1)

    def total(self, values):
        """Sums over each channel of each virtual batch."""
        values = values if len(self.shape) == 3 else values.sum(3)
        return self.fold(values.sum(1))


def _widened(values):
    return values if values.dtype == torch.float64 else values.float()


def is_known_finite(vector):
    # A sum is finite only where every number is. A GPU would have to be waited for.
    return vector.device.type == "cpu" and math.isfinite(vector.sum())


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
_repeated = collections.deque(maxlen=1)


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
