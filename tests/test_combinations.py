"""Random combinations of everything, and those that have failed once."""

import signal
import sys

import fuzz
import keras
import numpy as np
import pytest
from combinations import Combination, check, draw, simplified
from hypothesis import given, settings
from hypothesis import strategies as st

# Seeds in each of two processes: what takes 20 seconds of one core. JAX compiles
# each, TensorFlow traces some; `nox -s fuzz` goes on from there.
COUNT = {"torch": 200, "tensorflow": 60, "jax": 30}[keras.config.backend()]


@pytest.mark.parametrize("first", [0, 1_000_000])
def test_random_combinations_are_the_oracles(first):
    assert fuzz.run_in_a_process(first, COUNT) == COUNT


FAILED = {
    "a mask of channels, virtual batches, a traced `training` that is False": (
        Combination(
            shape=(2, 5),
            axis=0,
            mask=(2, 5),
            arguments={"center": False, "virtual_batch_size": 2},
            training="traced False",
            how="compiled",
            seed=505,
        )
    ),
    "an empty batch, channels first": Combination(shape=(0, 3, 4), axis=1),
    "an empty batch in 16 bits": Combination(
        shape=(0, 3), dtype="float16", policy="mixed_float16", training=False
    ),
    "an axis of no elements": Combination(
        shape=(3, 5, 0), axis=1, arguments={"virtual_batch_size": 2}
    ),
    "float64 and virtual batches": Combination(
        dtype="float64", policy="float64", arguments={"virtual_batch_size": 3}
    ),
    "float64 and renorm's limits": Combination(
        dtype="float64",
        policy="float64",
        arguments={"renorm": True, "renorm_clipping": {"rmax": 1.1, "dmax": 0.1}},
    ),
    "float64 and debiased averages": Combination(
        dtype="float64",
        policy="float64",
        arguments={"debias_moving_statistics": True},
        calls=3,
    ),
    "virtual batches, a mask, unknown sizes": Combination(
        shape=(8, 4, 3),
        mask=(8, 4),
        arguments={"virtual_batch_size": 3},
        how="unknown",
    ),
    "virtual batches, a mask of one row, unknown sizes": Combination(
        shape=(8, 4, 3),
        mask=(1, 4),
        arguments={"virtual_batch_size": 3},
        how="unknown",
    ),
    "two channel axes from the first on, at inference": Combination(
        shape=(3, 4, 5), axis=(0, 2), training=False
    ),
    "two channel axes of two": Combination(
        shape=(7, 4), axis=(-2, 1), layout="strided"
    ),
    "permuted, virtual batches of the second axis": Combination(
        shape=(3, 8, 2),
        axis=0,
        layout="permuted",
        arguments={"virtual_batch_size": 3},
    ),
    "a momentum of 1 and debiased averages": Combination(
        arguments={"momentum": 1.0, "debias_moving_statistics": True}, calls=2
    ),
    "float64, one inf, far from the moving mean": Combination(
        shape=(4, 3, 5),
        axis=1,
        dtype="float64",
        policy="float64",
        ratio=1e3,
        bad=np.inf,
    ),
    "a square that overflows": Combination(bad=1e25),
    "a joined variance that overflows": Combination(
        ratio=1e4, bad=1e25, arguments={"virtual_batch_size": 1}
    ),
    "a variance that only float64 holds": Combination(dtype="float64", bad=1e25),
    "a mean that only float64 holds": Combination(
        shape=(1, 3), dtype="float64", bad=1e300
    ),
    "a square that overflows where the weight is 0": Combination(
        shape=(7, 2), axis=-2, mask=(2,), mask_kind="weights", bad=1e25, seed=144
    ),
    "a masked mean that XLA rounds in two ways": Combination(
        shape=(8, 3), mask=(8,), mask_kind="poison", ratio=1e4, how="compiled", seed=2
    ),
    "an inf, and a mask of one element": Combination(
        shape=(7, 8, 1), axis=-3, mask=(1, 1), mask_kind="poison", bad=np.nan
    ),
    "a square that overflows, virtual batches and a mask": Combination(
        shape=(7, 2, 7),
        axis=1,
        mask=(7, 2, 7),
        bad=1e25,
        arguments={"virtual_batch_size": 100},
        seed=28,
    ),
    "bfloat16, every second column": Combination(
        shape=(64, 4), layout="strided", dtype="bfloat16", policy="mixed_bfloat16"
    ),
    "a channel that a mask leaves out, at inference": Combination(
        shape=(2, 4), mask=(2, 4), training=False, seed=1
    ),
    "renorm, virtual batches and a channel left out": Combination(
        shape=(5, 2, 3),
        axis=1,
        mask=(5, 2, 3),
        arguments={"virtual_batch_size": 2, "renorm": True},
    ),
    "a mask of no rows": Combination(
        shape=(0, 4, 1), mask=(0, 1, 1), arguments={"virtual_batch_size": 100}
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_what_has_failed_once_is_the_oracles(name):
    check(FAILED[name])


@pytest.mark.parametrize(
    "combination",
    [
        Combination(shape=(36000, 1)),
        Combination(shape=(11003, 3)),  # a prime number of rows
        Combination(shape=(40, 60, 10, 2), ratio=1e4),
        Combination(shape=(12000, 3), training=False),
        Combination(shape=(12000, 3), frozen="statistics"),
        Combination(shape=(12000, 3), bad=np.inf),
        Combination(shape=(12000, 3), dtype="float64", policy="float64"),
        Combination(shape=(12000, 3), dtype="bfloat16", policy="mixed_bfloat16"),
        Combination(shape=(7000, 4, 3), layout="permuted"),
        Combination(shape=(4096, 2, 7), axis=(1, 2)),
        Combination(shape=(12000, 3), mask=(12000,)),
        Combination(shape=(4096, 15), arguments={"virtual_batch_size": 2048}),
        Combination(shape=(12000, 3), arguments={"renorm": True}, calls=2),
        Combination(shape=(12000, 3), arguments={"scale": False, "center": False}),
        Combination(shape=(12000, 3), arguments={"activation": "silu"}),
        Combination(shape=(12000, 3), how="compiled"),
        Combination(shape=(12000, 3), how="unknown"),
        Combination(shape=(40, 60, 10, 2), how="unknown"),
    ],
    ids=lambda combination: str(combination.shape),
)
def test_rows_that_are_seen_as_one_meet_every_other_option(combination):
    """Those of few channels are, on CPUs, where their number can be divided."""
    check(combination)


@pytest.mark.parametrize(
    "break_check",
    ["os.kill(os.getpid(), signal.SIGFPE)", "raise RuntimeError('a kernel of ours')"],
)
def test_an_example_is_named_also_when_it_kills_its_process(break_check, monkeypatch):
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
import combinations, fuzz
def check(combination):
    if combination.seed == 1:
        {break_check}
combinations.check = check
fuzz.run(0, 3)
"""
    with pytest.raises(AssertionError) as error:
        fuzz.report([sys.executable, "-c", code])
    expected = f"signal {int(signal.SIGFPE)} at {draw(1)}"
    if "raise" in break_check:
        expected = f"Seed 1, {draw(1)}, or simpler: Combination(shape="
        assert "a kernel of ours" in str(error.value)
    assert expected in str(error.value)


def test_a_failure_is_simplified_to_what_it_needs():
    found = simplified(
        draw(1),
        lambda c: c.shape == draw(1).shape and c.arguments == draw(1).arguments,
    )
    kept = Combination(
        shape=draw(1).shape, axis=draw(1).axis, arguments=draw(1).arguments
    )
    assert found == kept


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_seed_is_one_combination_that_can_be_copied(seed):
    # As text: a combination with NaN in it isn't equal to another.
    text = repr(draw(seed))
    assert repr(draw(seed)) == text
    assert repr(eval(text, vars(np) | {"Combination": Combination})) == text
