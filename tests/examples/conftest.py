"""Lets the tests import the examples, which import their common module."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.fixture(autouse=True)
def one_thread():
    """Keeps PyTorch to one thread.

    Networks this small gain nothing from a second one, and wait for it where its core
    is busy: 24 s became more than 200 s beside two other test runs on two cores.
    """
    import keras

    if keras.config.backend() != "torch":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
