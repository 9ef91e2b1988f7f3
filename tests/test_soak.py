"""A few seconds of `nox -s soak`, and that it can fail."""

import random

import keras
import numpy as np
import pytest
import soak

import keras_bnx
from keras_bnx import reference


@pytest.mark.parametrize(("policy", "arguments"), soak.RUNS[1:2])
def test_steps_stay_at_the_oracle(policy, arguments):
    soak.steps(150, policy, **arguments)


def test_keras_layer_is_noticed(monkeypatch):
    """It takes an inf, or the mean of no rows, into its statistics."""
    theirs = keras.layers.BatchNormalization
    monkeypatch.setattr(keras_bnx, "BatchNormalization", theirs)
    with pytest.raises(AssertionError, match="moving_mean after step 99"):
        soak.steps(150, "float32")


def test_growth_is_noticed(monkeypatch):
    kept, step = [], reference.batch_normalization

    def leaking(*args, **kwargs):
        kept.append(np.ones(2**17))  # a MiB
        return step(*args, **kwargs)

    monkeypatch.setattr(reference, "batch_normalization", leaking)
    with pytest.raises(AssertionError, match="MiB more after 150 steps"):
        soak.steps(150, "float32")


def test_threads_predict_what_one_does():
    soak.threads(4, 5)


@pytest.mark.full(except_on="torch")
def test_a_killed_command_leaves_a_whole_file(tmp_path):
    found = soak.kill("recalibrating", tmp_path, random.Random(0))
    assert found["recalibrated.keras"] == "whole"


@pytest.mark.full(except_on="torch")
def test_a_file_of_another_state_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "digest", lambda model: 64 * "0")
    with pytest.raises(AssertionError, match="no state of its model"):
        soak.kill("recalibrating", tmp_path, random.Random(0))
