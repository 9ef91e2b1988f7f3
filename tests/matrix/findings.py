"""What a case of the matrix finds, each number as a multiple of what is allowed."""

import numpy as np
from tolerance import allowed_error, times_allowed


class Findings:
    """Collects comparisons; a case goes on after one that fails.

    Attributes:
        worst: the largest error as a multiple of what its comparison allows; inf
            where a number isn't finite, `None` where no numbers were compared.
        problems: what was wrong, one sentence each.
    """

    def __init__(self):
        self.worst = None
        self.problems = []

    def near(self, what, actual, expected, allowed):
        """Compares numbers; `allowed` is the error that still passes."""
        actual = np.asarray(actual, "float64")
        expected = np.asarray(expected, "float64")
        if actual.shape != expected.shape:
            self.equal(f"shape of {what}", actual.shape, expected.shape)
            return
        if not np.isfinite(expected).all():
            raise ValueError(f"The expected {what} aren't finite.")
        if not actual.size:
            return
        times = times_allowed(actual, expected, np.broadcast_to(allowed, actual.shape))
        times = np.where(np.isfinite(actual), times, np.inf)
        index = np.unravel_index(np.argmax(times), times.shape)
        worst = float(times[index])
        self.worst = worst if self.worst is None else max(self.worst, worst)
        if worst > 1.0:
            found = f"{what}: got {actual[index]:.6g}, expected {expected[index]:.6g}"
            if np.isfinite(worst):
                found += f", {worst:.2g} times what is allowed"
            self.problems.append(found)

    def rule(self, what, actual, expected, **tolerance):
        """Compares numbers by the rule of `tolerance.py`, with its arguments."""
        self.near(what, actual, expected, allowed_error(expected, **tolerance))

    def equal(self, what, actual, expected):
        """Compares what has to be the same, arrays bit for bit."""
        if not np.array_equal(actual, expected):
            texts = [
                np.array2string(np.asarray(v), precision=4) for v in (actual, expected)
            ]
            self.problems.append("{}: got {}, expected {}".format(what, *texts))

    def finite(self, what, actual):
        share = np.isfinite(np.asarray(actual, "float64")).mean()
        if share < 1.0:
            self.worst = float("inf")
            self.problems.append(f"{what}: {share:.0%} of them finite")
