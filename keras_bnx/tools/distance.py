"""How far moving statistics are from the statistics of data."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Distance:
    """How far moving statistics are from others, by channel.

    Attributes:
        layer: name of the layer.
        mean: vector, `(moving_mean - mean) / sqrt(variance + epsilon)`, in deviations.
        ratio: vector, `sqrt((moving_variance + epsilon) / (variance + epsilon))`, of
            deviations.
    """

    layer: str
    mean: np.ndarray
    ratio: np.ndarray

    @classmethod
    def between(
        cls,
        layer: str,
        moving: tuple[np.ndarray, np.ndarray],
        population: Any,
        epsilon: float,
    ) -> Self:
        """The distance of moving statistics from the data's.

        Channels of which nothing was seen are at no distance.

        Args:
            layer: string, its name.
            moving: pair of the moving mean and variance.
            population: `Population`, of the data.
            epsilon: float, the layer's.
        """
        mean, variance = moving
        seen = population.count > 0
        scale = np.sqrt(population.variance + epsilon)
        # One element has no variance to compare with.
        has_variance = population.size > 1
        return cls(
            layer,
            np.where(seen, (mean - population.mean) / scale, 0.0),
            np.where(has_variance, np.sqrt(variance + epsilon) / scale, 1.0),
        )

    @property
    def error(self) -> np.ndarray:
        """How far normalized outputs are off at inference, a vector of deviations.

        The root of the mean square over all inputs, before gamma and beta: with `z`
        the inputs as they should be normalized, inference has `(z - mean) / ratio`.
        """
        return np.hypot(self.mean, self.ratio - 1.0) / self.ratio


def root_mean_square(values):
    """The root of the mean square of a vector; 0 for none."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def geometric_mean(values):
    """The geometric mean of a vector of positive numbers; 1 for none."""
    return math.exp(np.mean(np.log(values))) if len(values) else 1.0
