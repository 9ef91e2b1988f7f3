"""Conditions that may be known: Python's bools, or bool tensors.

Where a condition is known nothing is computed. On PyTorch, where each operation costs
microseconds, the usual step never makes a tensor of one.
"""

from keras import ops


def both(a, b):
    """Computes `logical_and`."""
    if a is True or b is False:
        return b
    if b is True or a is False:
        return a
    return ops.logical_and(a, b)


def select(condition, a, b):
    """Computes `where`."""
    if condition is True:
        return a
    return b if condition is False else ops.where(condition, a, b)
