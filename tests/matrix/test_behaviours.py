"""The cases of the matrix, of this layer and of Keras's.

A case of this layer passes or the column fails. What Keras's layer does is a result,
whatever it is: a failure there is expected as much as a pass. What a backend lacks
skips the rest of a case, which fails all the same where something was wrong before.
"""

import keras
import pytest
from behaviours import ROWS
from findings import Findings
from frameworks import LackingError

from keras_bnx import BatchNormalization

LAYERS = {"here": BatchNormalization, "keras": keras.layers.BatchNormalization}
EXAMPLES = [(row, example) for row in ROWS for example in row.examples]
IDS = [f"{row.name}, {example.name}" for row, example in EXAMPLES]


@pytest.mark.full
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("row", "example"), EXAMPLES, ids=IDS)
def test_behaviour(row, example, layer, record_property, request):
    if layer == "keras":
        request.applymarker(pytest.mark.xfail(reason="a result", strict=False))
    record_property("row", row.name)
    record_property("case", example.name)
    record_property("reason", example.reason)
    record_property("layer", layer)
    findings, lacking = Findings(), None
    try:
        example.run(findings, LAYERS[layer])
    except LackingError as error:
        lacking = error
    finally:
        record_property("worst", findings.worst)
    assert not findings.problems, "; ".join(findings.problems)
    if lacking:
        record_property("needs", lacking.args[0])
        pytest.skip(str(lacking))
