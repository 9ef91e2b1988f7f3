import numpy as np
import pytest
from frameworks import to_numpy
from keras import ops

from keras_bnx.ops.conditions import both, select


@pytest.mark.parametrize("a", [True, False, "tensor"])
@pytest.mark.parametrize("b", [True, False, "tensor"])
def test_known_conditions_are_not_computed(a, b):
    tensor = ops.array([True, False])
    x, y = (tensor if v == "tensor" else v for v in (a, b))
    found = both(x, y)
    values = [to_numpy(ops.convert_to_tensor(v)) for v in (x, y, found)]
    *values, computed = (np.broadcast_to(value, 2) for value in values)
    np.testing.assert_array_equal(computed, np.logical_and(*values))
    if "tensor" not in (a, b):
        assert found is (a and b)
    assert select(True, "a", "b") == "a" and select(False, "a", "b") == "b"
