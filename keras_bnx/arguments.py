"""Validation of the layer's arguments: what is wrong, what came, what to do.

Each function returns the value as the layer stores it, or raises a `ValueError`.
"""

import math
import numbers

import keras
import numpy as np


def validate_axis(axis):
    """Returns an integer, or a tuple of several."""
    values = axis if isinstance(axis, (list, tuple)) else [axis]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            break
    else:
        if values and len(set(values)) == len(values):
            axes = tuple(map(int, values))
            return axes if len(axes) > 1 else axes[0]
    raise ValueError(
        "`axis` must be an integer, or a sequence of different integers. "
        f"Received: axis={axis!r}. Pass the index of the channel axis, -1 for the last."
    )


def validate_virtual_batch_size(size):
    whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    if size is None or (whole and size >= 1):
        return None if size is None else int(size)
    raise ValueError(
        "`virtual_batch_size` must be an integer of at least 1, or None. "
        f"Received: virtual_batch_size={size!r}. Pass the number of examples in a "
        "virtual batch."
    )


def validate_synchronized(synchronized):
    if isinstance(synchronized, (bool, np.bool_)):
        return bool(synchronized)
    if isinstance(synchronized, numbers.Integral) and synchronized > 1:
        return int(synchronized)
    raise ValueError(
        "`synchronized` must be a bool, or an integer above 1. "
        f"Received: synchronized={synchronized!r}. Pass True for statistics of all "
        "replicas, or the number of replicas in a group."
    )


def validate_axis_name(name):
    if name is None or (isinstance(name, str) and name):
        return name
    raise ValueError(
        "`axis_name` must be a string, or None. "
        f"Received: axis_name={name!r}. Pass the name that JAX's shard_map, pmap or "
        "vmap has for the axis of the replicas."
    )


def validate_number(name, value, low, high=math.inf, *, above=False):
    """Returns `value` as a float in [low, high], or in (low, high) if `above`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not (low < value < high if above else low <= value <= high):
        bounds = (
            f"a finite number above {low:g}"
            if above
            else f"a number from {low:g} to {high:g}"
        )
        raise ValueError(
            f"`{name}` must be {bounds}. Received: {name}={value!r}. Correct the value."
        )
    return float(value)


def validate_clipping(clipping):
    if clipping is None:
        return None
    keys = ("rmax", "rmin", "dmax")
    if not isinstance(clipping, dict) or set(clipping) - set(keys):
        raise ValueError(
            "Received invalid keys for `renorm_clipping`, or no dictionary. "
            f"Received: renorm_clipping={clipping!r}. Use any of {list(keys)}."
        )
    limits = {}
    for key, value in clipping.items():
        if value is not None:
            is_schedule = isinstance(
                value, keras.optimizers.schedules.LearningRateSchedule
            )
            limits[key] = value if is_schedule else _validate_limit(key, value)
    scheduled = any(map(callable, limits.values()))
    # Schedules are looked at from the first step to the ten millionth.
    for step in [0, *(10**i for i in range(8))] if scheduled else [0]:
        now = {
            k: _validate_limit(k, float(v(step)), f" at step {step}")
            if callable(v)
            else v
            for k, v in limits.items()
        }
        rmin, rmax = now.get("rmin", 0.0), now.get("rmax", math.inf)
        if rmin > rmax:
            raise ValueError(
                "rmax should be at least rmin in `renorm_clipping`. "
                f"Received: rmax={rmax}, rmin={rmin}"
                f"{f' at step {step}' if scheduled else ''}. r is clipped to "
                "[rmin, rmax]."
            )
    return limits


def _validate_limit(key, value, when=""):
    if key == "dmax" and isinstance(value, numbers.Real) and value < 0:
        raise ValueError(
            "dmax should be non-negative in `renorm_clipping`. "
            f"Received: dmax={value}{when}. d is clipped to [-dmax, dmax]."
        )
    return validate_number(f"renorm_clipping[{key!r}]{when}", value, 0.0)


def channel_axes(axis, ndim):
    """Returns the channel axes of inputs of a rank, ascending and not negative."""
    # Keras's layer has a list where a file of Keras 2 had one.
    axes = axis if isinstance(axis, (list, tuple)) else (axis,)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(
                "`axis` has to be an axis of the inputs. "
                f"Received: axis={axis} for inputs of rank {ndim}. Choose "
                "the axis of the channels, -1 in channels-last data."
            )
    positions = tuple(sorted({a % ndim for a in axes}))
    if len(positions) < len(axes):
        raise ValueError(
            "`axis` names an axis twice. "
            f"Received: axis={axis} for inputs of rank {ndim}. Name each "
            "channel axis once."
        )
    return positions


def validate_channels(axis, shape, stored):
    """Checks the inputs of a layer that is built.

    It takes a microsecond; Keras's `InputSpec` takes ten in every call.

    Args:
        axis: the argument of the layer.
        shape: that of the inputs.
        stored: the shape of the layer's weights; `None` before they are built.

    Returns:
        The channel axes, ascending and not negative.
    """
    axes = channel_axes(axis, len(shape))
    if stored is None:
        return axes
    # Those of several channel axes have the rank of the inputs.
    several = len(axes) > 1
    fits = not several or len(shape) == len(stored)
    for position in axes if fits else ():
        size = shape[position]
        # Sizes that are symbols of a compiler, or None, aren't known yet.
        known = isinstance(size, int)
        fits = fits and (not known or size == stored[position if several else 0])
    if not fits:
        raise ValueError(
            f"The channels, axis {axis} of the inputs, have to be those that the layer "
            f"was built for. Received: inputs.shape={tuple(shape)} for weights of "
            f"shape {tuple(stored)}. Choose the `axis`, or build another layer."
        )
    return axes
