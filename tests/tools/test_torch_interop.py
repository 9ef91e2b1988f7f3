"""Exchange with PyTorch's own modules, which are the oracle."""

import keras
import numpy as np
import pytest
import torch
from frameworks import to_numpy
from keras import layers

from keras_bnx import BatchNormalization, interop

NORMS = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
SETTINGS = {"epsilon": 1e-5, "momentum": 0.9, "unbiased_moving_variance": True}


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype("float32")


def randomized(module, seed=0):
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, tuple(NORMS.values())) and norm.affine:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.03, None])
@pytest.mark.parametrize("rank", NORMS)
def test_modules_become_layers_and_come_back(rank, momentum, affine):
    module = NORMS[rank](3, eps=2e-5, momentum=momentum, affine=affine)
    x = data(6, 3, *[4] * (rank - 2))
    randomized(module)(torch.from_numpy(x))
    layer = interop.from_torch(module, axis=1)
    back = interop.to_torch(layer)

    assert type(back) is type(module)
    assert (back.eps, back.momentum) == (module.eps, module.momentum)
    assert back.affine == layer.scale == layer.center == affine
    assert layer.epsilon == 2e-5
    assert layer.momentum == (None if momentum is None else 1 - momentum)
    counts = module.num_batches_tracked
    assert back.num_batches_tracked == (counts if momentum is None else 0)
    for leaf, value in module.state_dict().items():
        if leaf != "num_batches_tracked":
            assert torch.equal(back.state_dict()[leaf], value)
    # On and on, all three.
    for seed in range(3):
        x = data(6, 3, *[4] * (rank - 2), seed=seed)
        outputs = [to_numpy(layer(x, training=True))]
        outputs += [m(torch.from_numpy(x)).detach().numpy() for m in (module, back)]
        for y in outputs[1:]:
            np.testing.assert_allclose(outputs[0], y, rtol=1e-5, atol=1e-5)
        for leaf, weight in (
            ("running_mean", layer.moving_mean),
            ("running_var", layer.moving_variance),
        ):
            for m in (module, back):
                np.testing.assert_allclose(
                    to_numpy(weight), getattr(m, leaf).numpy(), rtol=1e-5, atol=1e-6
                )


def test_what_pytorch_alone_has_is_kept_or_named():
    synchronized = torch.nn.SyncBatchNorm(3)
    layer = interop.from_torch(synchronized)
    assert layer.synchronized is True
    assert isinstance(interop.to_torch(layer), torch.nn.SyncBatchNorm)
    scaled = interop.from_torch(torch.nn.BatchNorm1d(3), center=True)
    assert scaled.center
    wide = torch.nn.BatchNorm1d(3).double()
    assert (
        interop.to_torch(interop.from_torch(wide)).running_mean.dtype
        == wide.weight.dtype
    )
    narrow = torch.nn.BatchNorm1d(3).bfloat16()
    torch.nn.init.uniform_(narrow.weight)
    layer = interop.from_torch(narrow)
    np.testing.assert_array_equal(to_numpy(layer.gamma), narrow.weight.float().detach())
    with pytest.raises(ValueError, match=r"another kind.*InstanceNorm1d"):
        interop.from_torch(torch.nn.InstanceNorm1d(3, track_running_stats=True))
    with pytest.raises(ValueError, match="no moving statistics"):
        interop.from_torch(torch.nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"says its epsilon.*momentum=0.5"):
        interop.from_torch(torch.nn.BatchNorm1d(3), momentum=0.5)


def test_a_layer_without_beta_is_a_module_without_bias():
    layer = BatchNormalization(center=False, **SETTINGS)
    layer.build((None, 3))
    layer.gamma.assign([1.0, 2.0, 3.0])
    module = interop.to_torch(layer)
    assert module.bias is None and module.weight.tolist() == [1.0, 2.0, 3.0]
    assert interop.from_torch(module).center is False


KINDS = {
    "linear": (torch.nn.Linear(4, 6), lambda: layers.Dense(6), ()),
    "conv1d": (torch.nn.Conv1d(4, 6, 3), lambda: layers.Conv1D(6, 3), (7,)),
    "grouped": (
        torch.nn.Conv2d(4, 6, (3, 2), stride=2, groups=2, bias=False),
        lambda: layers.Conv2D(6, (3, 2), 2, groups=2, use_bias=False),
        (7, 8),
    ),
    "dilated": (
        torch.nn.Conv2d(4, 6, (3, 2), dilation=2),
        lambda: layers.Conv2D(6, (3, 2), dilation_rate=2),
        (7, 8),
    ),
    "conv3d": (
        torch.nn.Conv3d(4, 6, (1, 2, 3)),
        lambda: layers.Conv3D(6, (1, 2, 3)),
        (4, 4, 4),
    ),
    "depthwise1d": (
        torch.nn.Conv1d(4, 8, 3, groups=4),
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
        (7,),
    ),
    "depthwise2d": (
        torch.nn.Conv2d(4, 12, (3, 2), groups=4),
        lambda: layers.DepthwiseConv2D((3, 2), depth_multiplier=3),
        (7, 8),
    ),
    "transposed1d": (
        torch.nn.ConvTranspose1d(4, 6, 3, stride=2),
        lambda: layers.Conv1DTranspose(6, 3, 2),
        (5,),
    ),
    "transposed2d": (
        torch.nn.ConvTranspose2d(4, 6, (3, 2)),
        lambda: layers.Conv2DTranspose(6, (3, 2)),
        (5, 6),
    ),
    "transposed3d": (
        torch.nn.ConvTranspose3d(4, 6, (1, 2, 3)),
        lambda: layers.Conv3DTranspose(6, (1, 2, 3)),
        (4, 4, 4),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_compute_what_their_modules_do(kind):
    module, make, sizes = KINDS[kind]
    layer = make()
    model = keras.Sequential([keras.Input((*sizes, 4)), layer])
    parent = torch.nn.ModuleDict({"it": module})
    interop.from_torch(parent, model, {"it": layer.name})
    x = data(2, *sizes, 4)
    y = module(torch.from_numpy(np.moveaxis(x, -1, 1))).detach().numpy()
    np.testing.assert_allclose(
        np.moveaxis(to_numpy(model(x)), -1, 1), y, rtol=1e-5, atol=1e-5
    )
    before = module.weight.detach().clone()
    torch.nn.init.zeros_(module.weight)
    interop.to_torch(model, parent, {"it": layer.name})
    assert torch.equal(module.weight, before)


def test_a_layer_without_weights_is_named():
    model = keras.Sequential([keras.Input((4,)), layers.Flatten(name="culprit")])
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"can't be exchanged.*culprit.*Flatten"):
        interop.from_torch(module, model, {"0": "culprit"})


class Block(torch.nn.Module):
    """A residual block, with a projection where the size changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.conv1 = conv(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.shortcut = torch.nn.Identity()
        if stride > 1:
            self.shortcut = torch.nn.Sequential(
                conv(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.blocks = torch.nn.ModuleList([Block(8, 8, 1), Block(8, 16, 2)])
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def keras_resnet():
    """The same, channels last; and the names of its layers."""
    names = {}

    def norm(name, x):
        names[name] = name.replace(".", "_")
        return BatchNormalization(name=names[name], **SETTINGS)(x)

    def conv(name, filters, size, x, stride=1):
        names[name] = name.replace(".", "_")
        # PyTorch's padding is the same on both sides; Keras's "same" isn't.
        x = layers.ZeroPadding2D(1)(x) if size == 3 else x
        return layers.Conv2D(filters, size, stride, use_bias=False, name=names[name])(x)

    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(norm("bn", conv("stem", 8, 3, inputs)))
    for i, (filters, stride) in enumerate([(8, 1), (16, 2)]):
        name = f"blocks.{i}"
        y = norm(f"{name}.bn1", conv(f"{name}.conv1", filters, 3, x, stride))
        y = conv(f"{name}.conv2", filters, 3, layers.ReLU()(y))
        y = norm(f"{name}.bn2", y)
        if stride > 1:
            x = conv(f"{name}.shortcut.0", filters, 1, x, stride)
            x = norm(f"{name}.shortcut.1", x)
        x = layers.ReLU()(layers.Add()([y, x]))
    names["head"] = "head"
    x = layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x), names


def torch_outputs(module, x):
    with torch.no_grad():
        return module.eval()(torch.from_numpy(np.moveaxis(x, -1, 1))).numpy()


def torch_steps(module, x, y, steps):
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.5)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = module.train()(torch.from_numpy(np.moveaxis(x, -1, 1)))
        loss = torch.nn.functional.mse_loss(outputs, torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_resnet_agrees_after_exchange_and_in_training():
    x, y = data(16, 8, 8, 3), data(16, 4, seed=1)
    there = randomized(ResNet())
    torch_steps(there, x, y, 3)
    model, names = keras_resnet()
    interop.from_torch(there, model, names)
    np.testing.assert_allclose(
        to_numpy(model(x)), torch_outputs(there, x), rtol=1e-5, atol=1e-5
    )

    model.compile(keras.optimizers.SGD(0.02, momentum=0.5), "mse")
    losses = [float(model.train_on_batch(x, y)) for _ in range(5)]
    np.testing.assert_allclose(losses, torch_steps(there, x, y, 5), rtol=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(
        to_numpy(model(x)), torch_outputs(there, x), rtol=1e-5, atol=1e-5
    )

    back = interop.to_torch(model, ResNet(), names)
    np.testing.assert_allclose(
        torch_outputs(back, x), to_numpy(model(x)), rtol=1e-5, atol=1e-5
    )
    state = interop.to_torch(model, names=names)
    for name, value in back.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(state[name], value.numpy())


def other_resnets():
    epsilon = ResNet()
    epsilon.blocks[1].bn2.eps = 1e-3
    momentum = ResNet()
    momentum.blocks[1].bn2.momentum = 0.2
    stride = ResNet()
    stride.blocks[1].conv1.stride = (1, 1)
    bias = ResNet()
    bias.head = torch.nn.Linear(16, 4, bias=False)
    size = ResNet()
    size.head = torch.nn.Linear(16, 5)
    narrow = ResNet()
    narrow.head.to(torch.bfloat16)
    return {
        "epsilon 0.001 and 1e-05": epsilon,
        "momentum 0.8 and 0.9": momentum,
        "Strides.*blocks.1.conv1": stride,
        "other weights.*head": bias,
        "shape.*head": size,
        "kind.*blocks.1.bn2": renamed(),
        "rounded|put back": narrow,
    }


def renamed():
    module = ResNet()
    module.blocks[1].bn2 = torch.nn.InstanceNorm2d(
        16, affine=True, track_running_stats=True
    )
    return module


@pytest.mark.parametrize("match", list(other_resnets()))
def test_modules_that_differ_are_named_and_nothing_is_changed(match):
    module = other_resnets()[match]
    model, names = keras_resnet()
    weights = [to_numpy(w) for w in model.weights]
    state = {k: v.clone() for k, v in module.state_dict().items()}
    if "rounded" not in match:
        with pytest.raises(ValueError, match=match):
            interop.from_torch(module, model, names)
    # The last of the layers are those that differ.
    model.get_layer("head").kernel.assign(data(16, 4))
    weights[-2] = data(16, 4)
    with pytest.raises(ValueError, match=match):
        interop.to_torch(model, module, names)
    for a, b in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(b), a)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
