"""What PyTorch users do with a layer beyond `fit`."""

import functools
import itertools
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from frameworks import statistics
from torch.autograd import forward_ad

from keras_bnx import BatchNormalization, force_implementation
from keras_bnx.backends import torch as backend
from keras_bnx.backends.contract import Activation, Affine, Batch, Statistics

X = torch.tensor(np.random.default_rng(0).normal(2.0, 1.0, (8, 3)).astype("float32"))
G, B = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)


def built(**arguments):
    layer = BatchNormalization(**arguments)
    layer.build((None, 3))
    return layer


def function(training=True, **arguments):
    layer = built(**arguments)
    state = [v.value for v in layer.non_trainable_variables]

    def f(gamma, beta, x):
        return layer.stateless_call([gamma, beta], state, x, training=training)[0]

    return f


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("renorm", [True, False])
def test_func_grad_and_jvp_agree(training, renorm):
    f = function(training, renorm=renorm)
    tangents = tuple(torch.cos(7 * v + 1) for v in (G, B, X))

    def loss(*args):
        return (f(*args) * torch.sin(5 * X)).sum()

    _, forward = torch.func.jvp(loss, (G, B, X), tangents)
    reverse = torch.func.grad(loss, (0, 1, 2))(G, B, X)
    expected = sum((a * b).sum() for a, b in zip(reverse, tangents, strict=True))
    torch.testing.assert_close(forward, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_dual_numbers_have_the_tangent_of_jvp(training):
    f, tangent = function(training), torch.cos(7 * X + 1)
    with forward_ad.dual_level():
        y = built()(forward_ad.make_dual(X, tangent), training=training)
        found = forward_ad.unpack_dual(y).tangent
    plain = torch.ones(3), torch.zeros(3)
    _, expected = torch.func.jvp(lambda x: f(*plain, x), (X,), (tangent,))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_subclasses_of_tensors_stay_what_they_are(training):
    class Own(torch.Tensor):
        pass

    y = built()(X.as_subclass(Own), training=training)
    assert type(y) is Own
    expected = built()(X, training=training)
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_inputs_and_over_weights(training):
    f = function(training)
    xs, gammas, betas = (torch.stack([v, 2 * v + 1]) for v in (X, G, B))

    over_inputs = torch.vmap(lambda x: f(G, B, x))(xs)
    over_weights = torch.vmap(lambda g, b: f(g, b, X))(gammas, betas)
    for i in range(2):
        torch.testing.assert_close(over_inputs[i], f(G, B, xs[i]), rtol=1e-5, atol=1e-5)
        expected = f(gammas[i], betas[i], X)
        torch.testing.assert_close(over_weights[i], expected, rtol=1e-5, atol=1e-5)


def test_hessian():
    f = function()
    hessian = torch.func.hessian(lambda x: (f(G, B, x) ** 3).sum())(X[:4])
    hessian = hessian.reshape(12, 12)

    assert hessian.abs().max() > 0.1
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_compile_makes_one_graph_for_all_batch_sizes(training):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    layer, eager = built(), built()
    # Keras creates a global at its first call, which the next one's guards miss.
    expected = [eager(X[:rows], training=training) for rows in (8, 5, 7)]
    run = torch.compile(
        lambda x: layer(x, training=training),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for y in expected:
        torch.testing.assert_close(run(X[: len(y)].clone()), y, rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


def test_a_network_is_one_graph():
    """With Keras's layer it breaks at each normalization."""
    graphs = []
    torch._dynamo.reset()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(4, 3),
            BatchNormalization(renorm=True),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    x = torch.randn(4, 8, 8, 3)
    # Keras creates a global at its first call, which the next one's guards miss.
    model(x, training=True)

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    run = torch.compile(lambda x: model(x, training=True), backend=counting)
    run(x).sum().backward()
    assert len(graphs) == 1
    assert all(v.value.grad is not None for v in model.trainable_variables)


def test_the_code_generator_compiles_a_training_step():
    torch._dynamo.reset()
    layer, eager = built(momentum=0.5), built(momentum=0.5)
    run = torch.compile(lambda x: layer(x, training=True), fullgraph=True)
    grads = []
    for f in (run, lambda x: eager(x, training=True)):
        x = X.clone().requires_grad_()
        (f(x) ** 3).sum().backward()
        grads.append(x.grad)

    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    for name, value in statistics(eager).items():
        np.testing.assert_allclose(statistics(layer)[name], value, rtol=1e-5)


class Module(torch.nn.Module):
    """What is exported: a module that calls a layer in one of its modes."""

    def __init__(self, layer, training):
        super().__init__()
        self.layer, self.trains = layer, training

    def forward(self, x):
        return self.layer(x, training=self.trains)


@pytest.mark.parametrize("training", [True, False])
def test_export_keeps_the_numbers(training):
    layer = built()
    layer(X, training=True)
    layer.eval()
    program = torch.export.export(Module(layer, training), (X,))
    expected = layer(X, training=training)
    torch.testing.assert_close(program.module()(X), expected, rtol=1e-5, atol=1e-5)


def test_one_graph_serves_masks_of_one_column_and_of_all():
    """The size of the mask becomes symbolic, while that of the inputs isn't."""
    torch._dynamo.reset()
    layer, eager = built(), built()
    x = torch.randn(8, 5, 3)
    masks = [torch.rand(8, columns) > 0.3 for columns in (1, 5, 1)]
    expected = [eager(x, training=True, mask=mask) for mask in masks]
    run = torch.compile(
        lambda x, mask: layer(x, training=True, mask=mask),
        fullgraph=True,
        backend=lambda graph, inputs: graph.forward,
    )
    for mask, y in zip(masks, expected, strict=True):
        torch.testing.assert_close(run(x, mask), y, rtol=1e-5, atol=1e-5)


def test_tracing_an_export_warns_of_nothing_in_this_package(recwarn):
    layer = built()
    layer(X, training=True)
    layer.eval()
    traced = torch.jit.trace(Module(layer, False), (X,))
    ours = [w for w in recwarn if "keras_bnx" in w.filename]

    assert not ours, [str(w.message) for w in ours]
    torch.testing.assert_close(traced(X + 1), layer(X + 1), rtol=1e-5, atol=1e-5)


def test_the_names_of_pytorch_that_are_private_exist():
    """Without them replicas, remat and transforms would be silently wrong."""
    assert torch.nn.parallel.DistributedDataParallel._get_active_ddp_module() is None
    assert torch._C._current_graph_task_id() == -1
    assert torch._C._are_functorch_transforms_active() is False
    # Not private, and not documented either.
    for name in ("batch_norm_update_stats", "native_batch_norm"):
        assert callable(getattr(torch, name))
    for name in ("batch_norm_backward_reduce", "batch_norm_backward_elemt"):
        assert callable(getattr(torch, name))
    assert callable(torch.ops.aten.native_batch_norm_backward)


def test_recomputing_is_only_inside_backward():
    seen = []

    def f(x):
        seen.append(backend.is_recomputing())
        return x.sin()

    x = X.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False).sum().backward()
    assert seen == [False, True]
    assert not backend.is_recomputing()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_torchs_own_checkpoint_updates_once(use_reentrant):
    layer, plain = built(momentum=0.5), built(momentum=0.5)
    x = X.clone().requires_grad_()
    y = torch.utils.checkpoint.checkpoint(
        lambda x: layer(x, training=True), x, use_reentrant=use_reentrant
    )
    y.pow(3).sum().backward()
    plain(X, training=True)

    for name, value in statistics(plain).items():
        np.testing.assert_array_equal(statistics(layer)[name], value)


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_moving_statistics_may_move_before_the_backward_pass(shape, masked):
    """An inference pass of a teacher, say, while the layer goes on training."""
    layer, mask = built(axis=1), torch.arange(8) > 2 if masked else None
    x = torch.randn(shape, requires_grad=True)
    y = layer(x, training=False, mask=mask)
    layer(x, training=True)
    (dx,) = torch.autograd.grad(y.sum(), x)

    torch.testing.assert_close(dx, torch.full(shape, (1 + 1e-3) ** -0.5))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(
    ("dtype", "ratio"), [("float32", 1.0), ("float32", 1e6), ("bfloat16", 1.0)]
)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((8, 40, 40, 3), -1),  # several rows seen as one
        ((8, 3, 40, 40), 1),
        ((8, 4096, 40), -1),  # sums of each virtual batch by the kernels
        ((8, 40, 4096), 1),
        ((12, 2, 4096, 6), -1),
    ],
)
def test_virtual_batches_of_every_size_and_layout(shape, axis, dtype, ratio, permuted):
    arguments = {"virtual_batch_size": 4}
    if dtype == "bfloat16":
        arguments["dtype"] = "mixed_bfloat16"
    layer, plain = BatchNormalization(axis, **arguments), built_for(shape, axis)
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(ratio, 1.0, shape)).to(getattr(torch, dtype))
    dy = torch.tensor(rng.normal(size=shape)).to(x.dtype)
    if permuted:
        # As a convolution leaves it: the same numbers, otherwise in memory.
        order = (0, *range(len(shape) - 1, 0, -1))
        x = x.permute(order).contiguous().permute(order)
    x = x.requires_grad_()
    y = layer(x, training=True)
    dx, dgamma, dbeta = torch.autograd.grad(y, [x, *gamma_and_beta(layer)], dy)

    # In float64, one virtual batch after the other.
    parts = []
    for rows, upstream in zip(x.detach().split(4), dy.split(4), strict=True):
        rows = rows.double().requires_grad_()
        out = plain(rows, training=True)
        found = torch.autograd.grad(
            out, [rows, *gamma_and_beta(plain)], upstream.double()
        )
        parts.append((out, *found))
    out, rows, gammas, betas = zip(*parts, strict=True)
    near = {"rtol": 1e-2, "atol": 1e-2} if dtype == "bfloat16" else TOLERANCE
    for actual, expected in ((y, out), (dx, rows)):
        torch.testing.assert_close(actual.double(), torch.cat(expected), **near)
    scale = dy.double().abs().sum() / x.shape[axis]
    for actual, expected in ((dgamma, gammas), (dbeta, betas)):
        assert ((actual - sum(expected)).abs() / scale).max() < 1e-6


# Outputs and gradients of size 1 to 5, in float32, at any mean.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def built_for(shape, axis):
    layer = BatchNormalization(axis, dtype="float64")
    layer.build(shape)
    return layer


def gamma_and_beta(layer):
    return [layer.gamma.value, layer.beta.value]


def weights_of(layer):
    return [v.value for v in layer.trainable_variables]


LAYOUTS = {
    "contiguous": lambda x: x,
    "reversed in memory": lambda x: (
        x.permute(*range(x.dim())[::-1]).contiguous().permute(*range(x.dim())[::-1])
    ),
    "every other one": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one for all": lambda x: x[:1].expand(x.shape),
}


# Each of both, and each beside the usual one.
LAYOUT_PAIRS = [(name, name) for name in LAYOUTS]
LAYOUT_PAIRS += [("contiguous", name) for name in LAYOUTS if name != "contiguous"]
LAYOUT_PAIRS += [(name, "contiguous") for name in LAYOUTS if name != "contiguous"]


def in_layout(x, layout):
    return LAYOUTS[layout](x).detach().requires_grad_()


# A kernel that divides by a size kills the process, and so this file's whole run.
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((0, 3), -1),
        ((0, 3, 4), 1),
        ((0, 4, 3), -1),
        ((4, 3, 0), 1),
        ((4, 0, 3), 1),  # no channels
        ((4, 0), -1),
        ((5000, 0), -1),
        ((0, 3, 4), (0, 1)),
        ((2, 0, 4), (0, 2)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_an_empty_batch_has_empty_and_zero_gradients(shape, axis, dtype):
    policy = f"mixed_{dtype}" if "16" in dtype else dtype
    empty = torch.zeros(shape, dtype=getattr(torch, dtype))
    for training, mask, layout, size in itertools.product(
        (True, False), (None, torch.ones(shape)), LAYOUTS, (None, 2)
    ):
        layer = BatchNormalization(axis, dtype=policy, virtual_batch_size=size)
        layer.build(shape)
        before = statistics(layer)
        x = in_layout(empty, layout)
        y = layer(x, training=training, mask=mask)
        weights = weights_of(layer)
        dx, *found = torch.autograd.grad(y, [x, *weights], torch.ones_like(y))

        assert y.shape == dx.shape == shape
        assert y.dtype == dx.dtype == x.dtype
        for gradient, weight in zip(found, weights, strict=True):
            assert gradient.dtype == weight.dtype
            torch.testing.assert_close(gradient, torch.zeros_like(weight))
        for name, value in statistics(layer).items():
            np.testing.assert_array_equal(value, before[name])


def assert_layouts_change_nothing(shape, axis, dtype, tolerance, **arguments):
    """Numbers and gradients of every layout are those of the generic float64 run."""
    rng = np.random.default_rng(0)
    values, upstream = (
        torch.tensor(rng.normal(size=shape)).to(getattr(torch, dtype)) for _ in "xy"
    )
    policy = f"mixed_{dtype}" if "16" in dtype else dtype
    exact = BatchNormalization(axis, dtype="float64", **arguments)
    layer = BatchNormalization(axis, dtype=policy, **arguments)
    exact.build(shape)
    layer.build(shape)
    for (of_x, of_dy), training in itertools.product(LAYOUT_PAIRS, (True, False)):
        x, dy = in_layout(values, of_x), LAYOUTS[of_dy](upstream)
        y = layer(x, training=training)
        found = [y, *torch.autograd.grad(y, [x, *weights_of(layer)], dy)]
        with force_implementation("generic"):
            x = x.detach().to(torch.float64).requires_grad_()
            y = exact(x, training=training)
            grads = torch.autograd.grad(y, [x, *weights_of(exact)], dy.to(y.dtype))
        assert [v.dtype for v in found[2:]] == [w.dtype for w in weights_of(layer)]
        for name, actual, expected in zip(
            ("y", "dx", "dgamma", "dbeta"), found, (y, *grads), strict=True
        ):
            near = tolerance if name.startswith("d") and name != "dx" else None
            near = near or max(tolerance, 2e-2 if "16" in dtype else 0)
            torch.testing.assert_close(
                actual.double(),
                expected,
                rtol=near,
                atol=near,
                msg=lambda m, what=(name, of_x, of_dy, training): f"{what}: {m}",
            )


@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [
        ((3, 5, 4), (0, 2), None),
        ((3, 4, 5), (0, 1), None),
        ((3, 4), (0, 1), None),
        ((3, 4, 1, 5), (0, 1), None),
        ((3, 4, 5), (0, 1), 2),
        ((4, 6), 0, 3),
        ((4, 6, 5), 0, 3),
        ((6, 4, 5), 1, 3),
        ((6, 1, 5), 1, 3),
        ((6, 5, 4), -1, None),
        ((6, 4, 5), 1, None),
        ((5,), 0, None),
    ],
)
def test_layouts_change_no_number(shape, axis, size):
    assert_layouts_change_nothing(shape, axis, "float64", 1e-9, virtual_batch_size=size)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    # Few enough for sums that are taken again, and too many.
    [((300, 6), -1), ((600, 6), -1), ((6, 600), 0), ((40, 6, 15), 1)],
)
def test_gradients_of_gamma_and_beta_arent_rounded_to_16_bits(shape, axis, dtype):
    # A millionth of each of 600 terms; rounding to 16 bits would cost 1e-2 and more.
    assert_layouts_change_nothing(shape, axis, dtype, 600e-6)


# The variance of any isn't finite in float32.
@pytest.mark.parametrize("value", [1e25, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("upstream", [0.0, 1.0, math.inf])
def test_an_unusable_channel_has_the_gradient_of_inference(value, upstream):
    for second_order, ratio, (shape, axis, size, masked) in itertools.product(
        (False, True),
        (1.0, 1e6),
        (
            ((6, 3), -1, None, False),
            ((6, 3, 4), 1, None, False),
            ((6, 3), -1, 2, False),
            ((6, 3), -1, None, True),
        ),
    ):
        layer = BatchNormalization(axis, virtual_batch_size=size)
        layer.build(shape)
        mask = torch.arange(6) < 5 if masked else None
        rng = np.random.default_rng(0)
        clean = torch.tensor(rng.normal(ratio, 1.0, shape)).float()
        dy = torch.tensor(rng.normal(size=shape)).float()
        x = clean.clone()
        x[(0, 1, *[0] * (len(shape) - 2))] = value
        dy[(0, 1, *[0] * (len(shape) - 2))] = upstream
        bad = x != clean
        x, clean = x.requires_grad_(), clean.requires_grad_()

        def grads(x, training, layer=layer, mask=mask, dy=dy, twice=second_order):
            y = layer(x, training=training, mask=mask)
            sources = [x, *gamma_and_beta(layer)]
            return torch.autograd.grad(y, sources, dy, create_graph=twice)

        inference = grads(clean.detach().requires_grad_(), False)[0]
        dx, dgamma, dbeta = grads(x, True)
        usual = grads(clean, True)[0] if upstream != math.inf else None
        of_channel = torch.zeros(shape, dtype=torch.bool)
        of_channel[: size or 6, 1] = True
        finite = of_channel & ~(bad & ~x.isfinite())
        if upstream == math.inf:
            finite &= ~bad
        torch.testing.assert_close(dx[finite], inference[finite])
        if usual is not None:
            torch.testing.assert_close(dx[~of_channel], usual[~of_channel])
            others = [i for i in range(dy.dim()) if i != axis % dy.dim()]
            torch.testing.assert_close(dbeta, dy.sum(others))
        if value != 1e25:
            assert not dgamma[1].isfinite()
        assert dgamma[[0, 2]].isfinite().all()
        if second_order:
            (again,) = torch.autograd.grad(dx[finite].sum(), x)
            assert again[~bad].isfinite().all()


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5)])
def test_float64_stays_float64_where_a_channel_isnt_usable(shape):
    layer = BatchNormalization(1, dtype="float64")
    layer.build(shape)
    layer.moving_mean.assign(1000.0 * torch.ones(3))
    x = torch.ones(shape, dtype=torch.float64)
    x[0, 1] = math.inf
    y = layer(x, training=True)

    assert y.dtype == torch.float64
    expected = torch.full_like(y[1:, 1], -999.0 / math.sqrt(1.001))
    torch.testing.assert_close(y[1:, 1], expected, rtol=1e-14, atol=0)


def test_an_infinite_variance_about_a_small_mean():
    """The mean of the channel is 0, and doesn't say that its squares overflow."""
    x = torch.tensor([[1.0, 1e25], [2.0, -1e25], [4.0, 0.0]])
    layer = BatchNormalization(momentum=0.0)
    layer.build(x.shape)
    y = layer(x, training=True)

    found = statistics(layer)
    np.testing.assert_allclose(found["moving_mean"], [7 / 3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["moving_variance"], [14 / 9, 1.0], rtol=1e-6)
    torch.testing.assert_close(y[:, 1], x[:, 1] / math.sqrt(1.001))


def reduce_kernel(dy, x, mean, inverse, gamma, *wanted):
    """What `torch.batch_norm_backward_reduce` computes, which is a GPU's alone."""
    assert wanted == (True, True, True)
    axes = [0, *range(2, x.dim())]
    spatial = (slice(None), *[None] * (x.dim() - 2))
    sum_dy = dy.sum(axes)
    sum_dy_xmu = (dy * (x - mean[spatial])).sum(axes)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * inverse, sum_dy


def elementwise_kernel(dy, x, mean, inverse, gamma, sum_dy, sum_dy_xmu, counts):
    """What `torch.batch_norm_backward_elemt` computes."""
    assert counts.dtype == torch.int32
    spatial = (slice(None), *[None] * (x.dim() - 2))
    n, of_elements = counts.sum(), (x - mean[spatial]) * inverse.square()[spatial]
    dx = dy - (sum_dy / n)[spatial] - of_elements * (sum_dy_xmu / n)[spatial]
    return dx * (inverse * gamma)[spatial]


@pytest.mark.parametrize(("shape", "axis"), [((50, 3), -1), ((8, 3, 5), 1)])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("activation", [None, Activation("silu", ())])
def test_a_gpus_two_kernels_are_the_formula(
    shape, axis, replicas, activation, monkeypatch
):
    """There nobody waits to know whether all is finite. The kernels are emulated."""
    rng = np.random.default_rng(0)
    x, dy = (torch.tensor(rng.normal(2.0, 1.0, shape)).float() for _ in range(2))
    gamma, shift, variance = (torch.tensor(rng.uniform(1, 2, 3)).float() for _ in "123")
    inverse_count = torch.tensor([1.0, 0.0, 1.0]) / (replicas * x.numel() / 3)
    given = Statistics(shift, 0.0, variance, inverse_count)
    batch = Batch(x, None, (axis % x.dim(),), "float32")
    call = {
        "epsilon": 1e-3,
        "sum_gradients": None if replicas == 1 else lambda sums: replicas * sums,
    }
    affine = Affine(gamma, torch.tensor([0.5, -1.0, 0.0]))
    through = activation and functools.partial(backend._through, activation)
    expected = backend.in_keras_ops.gradients(
        dy, batch, given, affine, through_activation=through, **call
    )
    monkeypatch.setattr(backend, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(torch, "batch_norm_backward_reduce", reduce_kernel)
    monkeypatch.setattr(torch, "batch_norm_backward_elemt", elementwise_kernel)
    with torch.no_grad():
        found = backend._gradients(
            dy, batch, given, affine, activation=activation, **call
        )

    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


RANK = """
import os, sys
import numpy as np
import torch
import keras_bnx

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
)
layer = keras_bnx.BatchNormalization(synchronized=True, momentum=0.5)
layer(torch.ones(4, 3), training=True)
if rank == 1:
    os._exit(1)
try:
    layer(torch.full((4, 3), 5.0), training=True)
except RuntimeError as error:
    print("the engine's error:", error)
print("mean", layer.moving_mean.value.tolist())
"""


def test_a_rank_that_dies_is_the_engines_error_and_spoils_nothing(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out, _ = [process.communicate(timeout=120)[0] for process in started]
    assert "the engine's error: " in out and "gloo" in out
    assert "mean [0.5, 0.5, 0.5]" in out


@pytest.mark.parametrize("rows", [1024, 2047, 4096])
@pytest.mark.parametrize(("ratio", "limit"), [(9.0, 1e-5), (1e5, 5e-6)])
def test_sums_of_wide_rows_keep_their_digits(rows, ratio, limit):
    """A kernel adds each column in one chain: 4096 additions were off by 1.7e-5."""
    x = np.random.default_rng(0).normal(ratio, 1.0, (rows, 80)).astype("float32")
    y = BatchNormalization(epsilon=1e-5)(torch.tensor(x), training=True)
    x = x.astype("float64")
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    assert np.abs(y.detach().numpy() - expected).max() < limit
