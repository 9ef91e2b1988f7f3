"""Columns with results of our own making, to see what the page makes of them."""

import json

ROWS = [
    {"name": "plain `fit`", "group": "What is as in Keras", "beyond": False},
    {"name": "an empty batch", "group": "What differs", "beyond": False},
    {"name": "ghost batches", "group": "What it can do beyond", "beyond": True},
]


def case(row, layer, name="one", outcome="passed", worst="0.3", problem=None):
    return {
        "row": row,
        "case": name,
        "reason": f"the reason of {name}",
        "layer": layer,
        "outcome": outcome,
        "worst": worst,
        "problem": problem,
    }


def column(name, *changed, commit="abc1234567", date="2026-11-01T10:00"):
    """A column in which everything passes but the cases that are given."""
    cases = {
        (row["name"], layer, which): case(row["name"], layer, which)
        for row in ROWS
        for layer in ("here", "keras")
        for which in ("one", "two")
    }
    cases |= {(c["row"], c["layer"], c["case"]): c for c in changed}
    return {
        "column": name,
        "date": date,
        "commit": commit,
        "modified": False,
        "versions": {"Keras": "3.15.1", "JAX": "0.10.2"},
        "note": "",
        "rows": ROWS,
        "cases": list(cases.values()),
    }


def write(folder, *columns):
    for found in columns:
        (folder / f"{found['column']}.json").write_text(json.dumps(found))
    return folder


FAULT = case("an empty batch", "here", "two", "failed", "20", "outputs: got 3")
KERASS_FAULT = case("an empty batch", "keras", "one", "failed", "inf", "got nan")
ABSENT = [
    case("ghost batches", "keras", name, "failed", None, "ValueError: unrecognized")
    for name in ("one", "two")
]
# What a backend lacks: of one row both cases, of another one beside a case that passes.
SKIPPED = [
    {
        **case(row, "here", name, "skipped", worst, f"needs {what}, which NumPy lacks"),
        "needs": what,
    }
    for row, name, what, worst in (
        ("an empty batch", "one", "gradients", "0.7"),
        ("an empty batch", "two", "`fit`", None),
        ("ghost batches", "two", "gradients", "0.1"),
    )
]
