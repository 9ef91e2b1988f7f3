"""Schedules of renorm's limits over training."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_bnx")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """A number that goes from one value to another, linearly, between two steps.

    Args:
        initial: float, the value up to step `start`.
        final: float, the value from step `end` on.
        start, end: integers, training steps, `start < end`.
        reciprocal: whether to return 1 / value.

    Raises:
        ValueError: unless `0 <= start < end`.

    Example:

    >>> import keras_bnx
    >>> ramp = keras_bnx.Ramp(1.0, 3.0, start=100, end=200)
    >>> [float(ramp(step)) for step in (0, 150, 1000)]
    [1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        initial: float,
        final: float,
        *,
        start: int,
        end: int,
        reciprocal: bool = False,
    ) -> None:
        if not 0 <= start < end:
            raise ValueError(
                "A ramp starts at a step of at least 0 and ends after it. "
                f"Received: start={start}, end={end}. Correct the steps."
            )
        self.initial, self.final = float(initial), float(final)
        self.start, self.end, self.reciprocal = start, end, reciprocal

    def __call__(self, step: Any) -> Any:
        passed = (ops.cast(step, "float32") - self.start) / (self.end - self.start)
        value = self.initial + (self.final - self.initial) * ops.clip(passed, 0.0, 1.0)
        return 1.0 / value if self.reciprocal else value

    def get_config(self) -> dict[str, Any]:
        return {
            "initial": self.initial,
            "final": self.final,
            "start": self.start,
            "end": self.end,
            "reciprocal": self.reciprocal,
        }


def renorm_schedule(
    rmax: float = 3.0,
    dmax: float = 5.0,
    *,
    start: int = 5000,
    rmax_end: int = 40000,
    dmax_end: int = 25000,
) -> dict[str, Ramp]:
    """The limits of batch renormalization as its paper relaxes them.

    Plain batch normalization (r = 1, d = 0) up to step `start`, then r between
    `1 / rmax` and `rmax`, d between `-dmax` and `dmax`, each limit reached linearly.
    The defaults are the paper's, for 160,000 steps (Ioffe 2017, section 4.2,
    https://arxiv.org/abs/1702.03275); scale them to the length of your training.

    Args:
        rmax: float of at least 1, the final limit of r.
        dmax: float of at least 0, the final limit of d.
        start: integer, the step up to which the limits are those of plain batch
            normalization.
        rmax_end, dmax_end: integers, the steps at which the limits are reached.

    Returns:
        Dictionary for `renorm_clipping`.

    Raises:
        ValueError: if `rmax` is below 1, `dmax` below 0, or an end not after `start`.

    Example:

    >>> import keras_bnx
    >>> limits = keras_bnx.renorm_schedule(start=100, rmax_end=800, dmax_end=500)
    >>> layer = keras_bnx.BatchNormalization(renorm=True, renorm_clipping=limits)
    >>> [float(limits[name](10**6)) for name in ("rmax", "dmax")]
    [3.0, 5.0]
    """
    if rmax < 1 or dmax < 0:
        raise ValueError(
            "`rmax` must be at least 1 and `dmax` at least 0. "
            f"Received: rmax={rmax}, dmax={dmax}. 1 and 0 are plain batch "
            "normalization."
        )
    return {
        "rmin": Ramp(1.0, rmax, start=start, end=rmax_end, reciprocal=True),
        "rmax": Ramp(1.0, rmax, start=start, end=rmax_end),
        "dmax": Ramp(0.0, dmax, start=start, end=dmax_end),
    }
