"""Wrong arguments, and inputs that don't fit, are errors that say what came."""

import keras
import numpy as np
import pytest
from frameworks import statistics

from keras_bnx import BatchNormalization, Ramp


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"momentum": "0.9"}, "momentum='0.9'"),
        ({"momentum": float("nan")}, "momentum=nan"),
        ({"momentum": True}, "momentum=True"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"epsilon": -1e-3}, "epsilon=-0.001"),
        ({"epsilon": float("inf")}, "epsilon=inf"),
        ({"epsilon": None}, "epsilon=None"),
        ({"axis": 1.9}, "axis=1.9"),
        ({"axis": "1"}, "axis='1'"),
        ({"axis": True}, "axis=True"),
        ({"axis": [1, 1]}, r"axis=\[1, 1\]"),
        ({"axis": []}, r"axis=\[\]"),
        ({"axis": (1, 2.0)}, r"axis=\(1, 2.0\)"),
        ({"virtual_batch_size": 0}, "virtual_batch_size=0"),
        ({"virtual_batch_size": -2}, "virtual_batch_size=-2"),
        ({"virtual_batch_size": 2.5}, "virtual_batch_size=2.5"),
        ({"virtual_batch_size": True}, "virtual_batch_size=True"),
        ({"renorm_momentum": "x"}, "renorm_momentum='x'"),
        ({"renorm_clipping": {"r": 1.0}}, "renorm_clipping={'r': 1.0}"),
        ({"renorm_clipping": 3.0}, "renorm_clipping=3.0"),
        ({"renorm_clipping": {"rmax": 0.5, "rmin": 1.0}}, "rmax=0.5, rmin=1.0"),
        ({"renorm_clipping": {"rmin": -1.0}}, "=-1.0"),
        ({"renorm_clipping": {"dmax": -1.0}}, "dmax=-1.0"),
        ({"renorm_clipping": {"rmax": float("nan")}}, "=nan"),
        (
            {"renorm_clipping": {"rmin": 0.9, "rmax": Ramp(1, 0.5, start=0, end=20)}},
            "rmax=0.75, rmin=0.9 at step 10",
        ),
        (
            {"renorm_clipping": {"dmax": Ramp(1, -1, start=0, end=20)}},
            "dmax=-1.0 at step 100",
        ),
    ],
)
@pytest.mark.parametrize("renorm", [False, True])
def test_bad_arguments_are_value_errors_with_the_value(arguments, value, renorm):
    with pytest.raises(ValueError, match=value):
        BatchNormalization(renorm=renorm, **arguments)


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_out_of_range_is_named(axis):
    layer = BatchNormalization(axis=axis)

    with pytest.raises(ValueError, match=f"axis={axis} for inputs of rank 2"):
        layer.build((None, 3))
    with pytest.raises(ValueError, match=f"axis={axis}"):
        layer.compute_output_shape((None, 3))


def test_an_axis_named_twice_is_refused_once_the_rank_is_known():
    with pytest.raises(ValueError, match=r"twice.*axis=\(1, -1\).*rank 2"):
        BatchNormalization(axis=(1, -1)).build((None, 3))


def test_an_unknown_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"axis=-1.*\(None, 3, None\)"):
        BatchNormalization().build((None, 3, None))


def test_arguments_are_kept_as_plain_numbers():
    layer = BatchNormalization(axis=np.int64(1), momentum=np.float32(0.5), epsilon=1)

    assert type(layer.axis) is int and type(layer.momentum) is float
    assert layer.epsilon == 1.0
    assert BatchNormalization(axis=[3]).axis == 3


@pytest.mark.parametrize(
    ("axis", "built", "shape"),
    [
        (-1, (8, 3), (8, 4)),
        (1, (8, 3, 5), (8, 5, 3)),
        ((1, 2), (8, 3, 5), (8, 3, 4)),
        ((1, 2), (8, 3, 5), (8, 3, 5, 1)),
    ],
)
def test_inputs_of_other_channels_are_refused(axis, built, shape):
    layer = BatchNormalization(axis)
    layer.build(built)
    before = statistics(layer)
    x = np.zeros(shape, "float32")
    for call in (layer, lambda x: layer(keras.Input(batch_shape=x.shape))):
        with pytest.raises(ValueError, match="those that the layer was built for"):
            call(x)
    with pytest.raises(ValueError, match=r"inputs\.shape=.*weights of"):
        layer(x, training=True)
    for name, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[name])
