import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.backends.contract import Moments, Statistics
from keras_bnx.ops import statistics


def test_an_unbiased_variance_exists_where_more_than_one_counts():
    def moments(count, variance):
        return Moments(count, None, None, None, ops.array(variance))

    variance, exists = statistics.unbiased_variance(
        moments(ops.array([0.5, 1.0, 1.5, 4.0]), [2.0, 2.0, 2.0, 3.0])
    )
    np.testing.assert_array_equal(to_numpy(exists), [False, False, True, True])
    np.testing.assert_array_equal(to_numpy(variance)[2:], [6.0, 4.0])
    for count, exists, expected in ((1, False, 3.0), (4, True, 4.0)):
        variance, found = statistics.unbiased_variance(moments(count, [3.0]))
        assert found is exists and to_numpy(variance) == [expected]


@pytest.mark.parametrize("ratio", [0.0, 1e5])
@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("rows", [(6, 6), (6, 3)])
def test_merged_moments_are_those_of_the_batch(rows, leave_out, ratio):
    x = np.random.default_rng(0).normal(ratio, 1.0, (sum(rows), 2)).astype("float32")
    parts, start = [], 0
    for n in rows:
        part, start = x[start : start + n].astype("float64"), start + n
        shift, variance = (
            ops.array(v[None].astype("float32")) for v in (part[0], part.var(0))
        )
        mean = ops.array((part - part[0]).mean(0)[None].astype("float32"))
        parts.append(Moments(n, n, shift, mean, variance))
    if rows[0] == rows[1]:
        # As one part of two virtual batches; a count is that of each.
        vectors = (ops.concatenate(v, 0) for v in list(zip(*parts, strict=True))[2:5])
        parts = [Moments(rows[0], rows[0], *vectors)]
    merged = statistics.merge(parts, 0, leave_out=leave_out)

    x = x.astype("float64")
    np.testing.assert_array_equal(to_numpy(ops.convert_to_tensor(merged.count)), len(x))
    mean = to_numpy(merged.shift).astype("float64") + to_numpy(merged.residual)
    np.testing.assert_allclose(mean, x.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(to_numpy(merged.variance), x.var(0), rtol=1e-5)


def test_what_is_not_finite_is_left_out_or_makes_the_rest_so():
    vectors = [
        ops.array([[v], [w]]) for v, w in ((0.5, 1.0), (0.0, 0.0), (3.0, np.nan))
    ]
    part = Moments(4, 4, *vectors)
    assert to_numpy(statistics.merge([part], 0).shift) == [0.5]
    assert np.isnan(to_numpy(statistics.merge([part], 0, leave_out=False).variance))


def moments_of(variance, **changes):
    zeros = ops.zeros((len(variance),))
    fields = {"count": 4, "size": 4, "shift": zeros + 3.0, "residual": 0.0}
    return Moments(**{**fields, "variance": ops.array(variance), **changes})


def test_statistics_exist_where_something_counts_and_all_is_finite():
    variance = [1.0, np.inf, np.nan]
    found = statistics.exist(moments_of(variance))
    np.testing.assert_array_equal(to_numpy(found), [True, False, False])
    # What is known isn't looked at.
    assert statistics.exist(moments_of([1.0], all_finite=True)) is True
    size = ops.array([4.0, 0.0, 1.0])
    found = statistics.exist(moments_of([1.0] * 3, size=size))
    np.testing.assert_array_equal(to_numpy(found), [True, False, True])


def test_other_statistics_take_the_place_of_what_is_not_usable():
    usable = ops.array([True, False])

    def constants():
        return ops.array([7.0, 8.0]), ops.array([9.0, 10.0])

    for count in (4, ops.array([4.0, 0.0])):
        moments = moments_of([1.0, np.nan], count=count)
        found = statistics.choose(usable, moments, constants)
        for value, expected in zip(
            found, ([3.0, 8.0], 0.0, [1.0, 10.0], [0.25, 0.0]), strict=True
        ):
            value = to_numpy(ops.convert_to_tensor(value))
            np.testing.assert_array_equal(value, expected)
    found = statistics.choose(True, moments_of([1.0]), constants)
    assert found.inverse_count == 0.25 and not found.are_constants
    assert Statistics(None, 0.0, None).are_constants
