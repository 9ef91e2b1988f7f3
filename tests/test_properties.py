"""What has to hold between two calls of the layer, whatever the right numbers are."""

import keras
import numpy as np
import pytest
from frameworks import statistics, to_numpy, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bnx import BatchNormalization, force_implementation

# An eager gradient on JAX is 50 small compilations.
HOW = "compiled" if keras.config.backend() == "jax" else "eager"
# JAX compiles each shape anew.
few = settings(
    max_examples=5 if keras.config.backend() == "jax" else 20,
    deadline=None,
    derandomize=True,
)

SHAPES = st.sampled_from([(6, 3), (8, 2, 3), (5, 4, 2, 3)])
ARGUMENTS = st.sampled_from(
    [
        {},
        {"renorm": True},
        {"momentum": None, "unbiased_moving_variance": True},
        {"debias_moving_statistics": True, "epsilon": 1e-5},
    ]
)
RATIOS = st.sampled_from([0.0, 3.0, 1e4])


def called(x, dy, mask=None, **arguments):
    """Outputs, gradients and statistics of one call, as a dictionary of arrays."""
    layer = BatchNormalization(**{"momentum": 0.5, **arguments})
    layer.build(x.shape)
    run = with_gradients(layer, how=HOW)
    mask = None if mask is None else ops.convert_to_tensor(mask)
    found = run(*map(ops.convert_to_tensor, (x, dy)), mask)
    return {k: to_numpy(v) for k, v in found.items()} | statistics(layer)


def data(shape, ratio, seed):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(ratio, 1.0, shape).astype("float32"),
        rng.normal(size=shape).astype("float32"),
    )


def assert_equal_but_for_rounding(found, expected, rows=slice(None), kept=slice(None)):
    """`rows` of the first call's outputs are those of the second's `kept` ones."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        mine = found[name]
        if name in ("y", "dx"):
            mine, value = mine[rows], value[kept]
        np.testing.assert_allclose(mine, value, rtol=2e-5, atol=5e-5, err_msg=name)


@few
@given(SHAPES, RATIOS, ARGUMENTS, st.integers(0, 9))
def test_the_order_of_rows_is_that_of_the_outputs(shape, ratio, arguments, seed):
    x, dy = data(shape, ratio, seed)
    order = np.random.default_rng(seed).permutation(len(x))

    assert_equal_but_for_rounding(
        called(x[order], dy[order], **arguments), called(x, dy, **arguments), kept=order
    )


@few
@given(SHAPES, RATIOS, ARGUMENTS, st.integers(1, 4))
def test_rows_that_are_masked_change_nothing_else(shape, ratio, arguments, more):
    x, dy = data(shape, ratio, more)
    # Whatever is in them, as long as nothing flows back.
    padding = np.full((more, *shape[1:]), np.nan, "float32")
    mask = np.arange(len(x) + more) < len(x)
    found = called(
        np.concatenate([x, padding]),
        np.concatenate([dy, np.zeros_like(padding)]),
        mask,
        **arguments,
    )

    expected = called(x, dy, **arguments)
    assert_equal_but_for_rounding(found, expected, rows=slice(0, len(x)))
    np.testing.assert_array_equal(found["dx"][len(x) :], np.zeros_like(padding))


@few
@given(SHAPES, RATIOS, ARGUMENTS, st.integers(0, 9))
def test_weight_2_is_a_row_twice(shape, ratio, arguments, seed):
    x, dy = data(shape, ratio, seed)
    weights = np.where(np.arange(len(x)) == 1, 2.0, 1.0).astype("float32")
    twice = np.concatenate([x, x[1:2]])
    # Nothing flows back to the second copy but through the statistics.
    dys = np.concatenate([dy, np.zeros_like(dy[1:2])])
    found, expected = (
        called(x, dy, weights, **arguments),
        called(twice, dys, **arguments),
    )

    expected["dx"][1] += expected["dx"][-1]
    assert_equal_but_for_rounding(found, expected, kept=slice(0, len(x)))


@few
@given(SHAPES, RATIOS, st.integers(-6, 6), st.sampled_from(["generic", "native"]))
def test_a_power_of_two_only_scales(shape, ratio, power, implementation):
    x, dy = data(shape, ratio, power + 9)
    scale = np.float32(2.0**power)
    with force_implementation(implementation):
        plain = called(x, dy, epsilon=1e-3, momentum=0.0)
        scaled = called(x * scale, dy, epsilon=1e-3 * scale**2, momentum=0.0)

    factors = {"dx": 1 / scale, "moving_mean": scale, "moving_variance": scale**2}
    # XLA's roots aren't of the same digits for each power of two.
    exact = keras.config.backend() == "torch" and implementation == "generic"
    near = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    for name, value in plain.items():
        factor = factors.get(name, np.float32(1.0))
        np.testing.assert_allclose(scaled[name] / factor, value, err_msg=name, **near)


@few
@given(SHAPES, RATIOS, ARGUMENTS, st.booleans())
def test_native_is_generic(shape, ratio, arguments, masked):
    x, dy = data(shape, ratio, 3)
    mask = np.arange(len(x)) != 2 if masked else None
    found = []
    for implementation in ("native", "generic"):
        with force_implementation(implementation):
            found.append(called(x, dy, mask, **arguments))

    assert_equal_but_for_rounding(*found)


@pytest.mark.parametrize("ratio", [0.0, 1e4])
def test_equal_virtual_batches_are_batches_of_their_own(ratio):
    """As replicas that aren't synchronized are, which test_synchronized.py has."""
    x, dy = data((8, 2, 3), ratio, 5)
    found = called(x, dy, virtual_batch_size=4)
    halves = [called(x[i : i + 4], dy[i : i + 4]) for i in (0, 4)]

    for name in ("y", "dx"):
        expected = np.concatenate([half[name] for half in halves])
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=5e-5)
    for name in ("gamma", "beta"):
        expected = sum(half[name] for half in halves)
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-4)
    whole = called(x, dy)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(found[name], whole[name], rtol=2e-5)
