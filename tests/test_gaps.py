"""What isn't covered has a reason, and the page can't be made without."""

from pathlib import Path

import gaps
import pytest

import keras_bnx

PACKAGE = Path(keras_bnx.__file__).parent
TEXT = "a = 1\nif a:\n    b = 2\n    c = 3\nd = 4\n\ne = 5\n"
FILE = {"executed_lines": [1, 2, 5], "missing_lines": [3, 4, 7]}
FIRST, SECOND = ("m.py", "if a: / b = 2"), ("m.py", "d = 4 / e = 5")
REASONS = {FIRST: "it never is", SECOND: "nor is this"}


def test_gaps_are_runs_of_statements():
    assert gaps.gaps(FILE) == [[3, 4], [7]]
    assert gaps.gaps({"executed_lines": [3], "missing_lines": [1, 2]}) == [[1, 2]]
    assert gaps.gaps({"executed_lines": [3], "missing_lines": []}) == []


def test_the_page_counts_statements_and_says_why():
    page = gaps.page({"m.py": (TEXT, FILE)}, REASONS)
    assert "| `m.py` | 6 | 3 | 50.0 |\n| all | 6 | 3 | 50.0 |" in page
    assert "| `m.py` | `if a: / b = 2` | 2 | it never is |" in page


@pytest.mark.parametrize(
    "reasons, message",
    [
        ({FIRST: "it never is"}, "no reason for m.py: d = 4 / e = 5"),
        ({**REASONS, ("m.py", "a = 1"): "no"}, "no gap at m.py: a = 1"),
    ],
)
def test_gaps_and_reasons_have_to_fit(reasons, message):
    with pytest.raises(ValueError, match=message):
        gaps.page({"m.py": (TEXT, FILE)}, reasons)


def test_no_reason_outlives_its_lines():
    for name, place in gaps.REASONS:
        assert place in gaps.places((PACKAGE / name).read_text()).values(), place
