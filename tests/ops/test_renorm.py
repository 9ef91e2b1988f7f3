import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.backends.contract import Moments
from keras_bnx.ops.renorm import renorm_corrections

BATCH = Moments(*(ops.array([v]) for v in (4.0, 4.0, 5.0, 1.0, 3.0)))


def run(mean=2.0, stddev=4.0, **clipping):
    r, d = renorm_corrections(
        BATCH,
        renorm_mean=ops.array([mean]),
        renorm_stddev=ops.array([stddev]),
        epsilon=1.0,
        **clipping,
    )
    return to_numpy(r)[0], to_numpy(d)[0]


def test_by_hand():
    # The batch: mean 5 + 1, deviation sqrt(3 + 1).
    assert run() == (0.5, 1.0)


@pytest.mark.parametrize(
    ("clipping", "expected"),
    [
        ({"rmin": 0.75}, (0.75, 1.0)),
        ({"rmax": 0.25}, (0.25, 1.0)),
        ({"dmax": 0.5}, (0.5, 0.5)),
        ({"rmin": 0.0, "rmax": float("inf"), "dmax": float("inf")}, (0.5, 1.0)),
        ({"dmax": 0.0}, (0.5, 0.0)),
    ],
)
def test_clipping(clipping, expected):
    assert run(**clipping) == expected


def test_d_is_clipped_below():
    assert run(mean=100.0, dmax=3.0)[1] == -3.0


def test_a_stored_deviation_of_zero_divides_nothing():
    assert run(stddev=0.0) == (2.0, 4.0)
