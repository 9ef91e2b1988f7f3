"""What a case finds can fail, and a fault of the package turns the right row red."""

import numpy as np
import pytest
from behaviours import ROWS
from findings import Findings

from keras_bnx import BatchNormalization, batch_normalization


def test_errors_are_multiples_of_what_is_allowed():
    findings = Findings()
    findings.near("outputs", [1.0, 2.2, 3.05], np.array([1.0, 2.0, 3.0]), 0.1)
    findings.near("gradients", [0.05], [0.0], 0.1)

    assert findings.worst == pytest.approx(2.0)
    problem = "outputs: got 2.2, expected 2, 2 times what is allowed"
    assert findings.problems == [problem]


def test_the_rule_is_that_of_the_tests():
    findings = Findings()
    findings.rule("outputs", [1.0 + 2.0**-20], np.array([1.0]), scale=0.0, units=8.0)
    assert findings.worst == pytest.approx(1.0) and not findings.problems
    findings.rule("outputs", [1.0 + 2.0**-20], np.array([1.0]), scale=0.0)
    assert findings.worst == pytest.approx(2.0) and findings.problems


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_the_worst(value):
    findings = Findings()
    findings.near("outputs", [0.0, value], [0.0, 0.0], 1.0)
    assert findings.worst == np.inf
    assert findings.problems == [f"outputs: got {value}, expected 0"]
    with pytest.raises(ValueError, match="expected outputs aren't finite"):
        findings.near("outputs", [0.0], [value], 1.0)


def test_what_has_to_be_the_same_is():
    findings = Findings()
    findings.equal("class", list, list)
    findings.equal("moving_mean", np.ones(2), np.ones(2))
    findings.finite("outputs", [1.0, 2.0])
    findings.near("nothing", np.ones((0, 3)), np.ones((0, 3)), 0.0)
    assert findings.worst is None and not findings.problems

    findings.equal("moving_mean", np.ones(2), np.array([1.0, 1.0 + 2.0**-52]))
    findings.equal("traces", 2, 1)
    assert findings.worst is None
    findings.finite("outputs", [1.0, np.nan])
    assert findings.worst == np.inf
    findings.near("outputs", np.ones(3), np.ones(2), 9.0)
    assert findings.problems[1:] == [
        "traces: got 2, expected 1",
        "outputs: 50% of them finite",
        "shape of outputs: got [3], expected [2]",
    ]
    assert findings.problems[0].startswith("moving_mean")


def failing():
    """The rows of some cheap cases that fail."""
    found = set()
    for row in ROWS:
        for example in row.examples:
            if example.name in ("bools", "one_row", "nan", "dense", "training"):
                findings = Findings()
                example.run(findings, BatchNormalization)
                if findings.problems:
                    found.add(row.name)
    return found


@pytest.mark.parametrize(
    ("name", "fault", "rows"),
    [
        (
            "leave_out_absent",
            lambda gamma, counted, batch: gamma,
            {"channels that a mask leaves out give `beta`"},
        ),
        (
            "exist",
            lambda moments, narrow_to=None: True,
            {"a fully masked batch", "one inf or NaN in a batch"},
        ),
    ],
)
def test_a_fault_turns_its_rows_red(name, fault, rows, monkeypatch):
    assert failing() == set()
    monkeypatch.setattr(batch_normalization, name, fault)
    assert failing() == rows
