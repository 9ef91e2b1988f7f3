"""PyTorch: arithmetic by `generic`, differentiable to any order."""

import torch

from keras_bnx.backends.generic import (  # noqa: F401 (the contract)
    all_reduce_sum,
    moments,
    normalize,
)


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
