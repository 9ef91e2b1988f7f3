"""The matrix's pages: of planted results, and those in `docs/`."""

import re
from types import SimpleNamespace

import page
import planted
import pytest
import recording
from planted import ABSENT, FAULT, KERASS_FAULT, SKIPPED, column


@pytest.fixture
def read(tmp_path):
    return lambda *columns: page.read(planted.write(tmp_path, *columns))


OURS = ("ghost batches", "here", "one", "failed")


def cells(matrix):
    """The state of each cell, by row, column and layer."""
    return {
        (row.name, cell.column.id, cell.layer): cell.state
        for row in matrix.rows
        for cell in row.cells
        if cell.column.found
    }


def test_a_fault_turns_its_cell_red_and_no_other(read):
    matrix = read(column("jax-cpu", FAULT), column("torch-cpu"))

    states = cells(matrix)
    assert states.pop(("an empty batch", "jax-cpu", "here")) == "failed"
    assert set(states.values()) == {"passed"}
    html = page.render(matrix, "page.html")
    assert html.count('<summary class="failed">') == 1
    assert "✗ 1 of 2" in html and "outputs: got 3" in html
    assert matrix.result("here") == "11 of 12"
    assert "| 5 of 6 | 6 of 6 |" in page.excerpt(matrix)
    assert page.render(matrix, "page.svg").count('<rect class="failed"') == 1 + 1


def test_what_keras_does_not_offer_is_no_failure(read):
    matrix = read(column("jax-cpu", KERASS_FAULT, *ABSENT))

    states = cells(matrix)
    assert states["ghost batches", "jax-cpu", "keras"] == "absent"
    assert states["an empty batch", "jax-cpu", "keras"] == "failed"
    # Nor counted; a case of such a row that passes is.
    assert matrix.result("keras") == "3 of 4; 2 not offered"
    assert "| 6 of 6 | 3 of 4; 2 not offered |" in page.excerpt(matrix)
    matrix = read(column("jax-cpu", ABSENT[0]))
    cell = matrix.rows[2].cell(matrix.columns[1], "keras")
    assert (cell.state, cell.text) == ("absent", "not offered; ✓ 1")
    assert matrix.result("keras") == "5 of 5; 1 not offered"
    # This layer has no such excuse.
    states = cells(read(column("jax-cpu", planted.case(*OURS))))
    assert states["ghost batches", "jax-cpu", "here"] == "failed"


def test_what_a_backend_lacks_is_neither_passed_nor_failed(read):
    matrix = read(column("jax-cpu"), column("numpy-cpu", *SKIPPED))

    states = cells(matrix)
    assert states.pop(("an empty batch", "numpy-cpu", "here")) == "skipped"
    assert set(states.values()) == {"passed"}
    texts = {row.name: row.cell(matrix.columns[3], "here").text for row in matrix.rows}
    assert texts == {
        "plain `fit`": "✓ 2",
        "an empty batch": "2 need gradients or `fit`",
        "ghost batches": "✓ 1; 1 needs gradients",
    }
    assert matrix.result("here") == "9 of 12; 3 need gradients or `fit`"
    assert matrix.result("keras") == "12 of 12"
    html = page.render(matrix, "page.html")
    assert html.count('<summary class="skipped">2 need gradients or <code>fit') == 1
    assert "needs gradients, which NumPy lacks" in html
    assert page.render(matrix, "page.svg").count('<rect class="skipped"') == 1 + 1
    assert "3 need gradients or `fit`" in page.render(matrix, "page.md")
    assert "| 3 of 6; 3 need gradients or `fit` | 6 of 6 |" in page.excerpt(matrix)


def test_a_fault_is_red_among_what_a_backend_lacks(read):
    fault = planted.case("an empty batch", "here", "two", "failed", "20")
    matrix = read(column("numpy-cpu", *SKIPPED, fault))

    cell = matrix.rows[1].cell(matrix.columns[3], "here")
    assert (cell.state, cell.text) == ("failed", "✗ 1 of 2; 1 needs gradients")
    assert "fails-here-numpy" in matrix.rows[1].classes


@pytest.mark.parametrize("layer", ["here", "keras"])
def test_a_row_without_cases_fails(read, layer):
    found = column("jax-cpu")
    found["cases"] = [
        c for c in found["cases"] if (c["row"], c["layer"]) != ("plain `fit`", layer)
    ]

    with pytest.raises(page.IncompleteError, match=r"plain `fit`.*on jax-cpu"):
        read(column("torch-cpu"), found)


def test_a_column_without_rows_fails(read):
    with pytest.raises(page.IncompleteError, match="torch-cpu has no case"):
        read(column("jax-cpu"), {**column("torch-cpu"), "cases": []})
    skipped = [{**case, **SKIPPED[0]} for case in column("torch-cpu")["cases"]]
    with pytest.raises(page.IncompleteError, match="torch-cpu has no case"):
        read(column("jax-cpu"), {**column("torch-cpu"), "cases": skipped})
    with pytest.raises(page.IncompleteError, match="has no column"):
        page.read("nowhere")


def test_columns_of_other_rows_fail(read):
    other = {**column("torch-cpu"), "rows": planted.ROWS[:2]}
    with pytest.raises(page.IncompleteError, match="other rows"):
        read(column("jax-cpu", date="2026-11-02T10:00"), other)
    found = column("jax-cpu", planted.case("no row at all", "here"))
    with pytest.raises(page.IncompleteError, match="'no row at all', which is no row"):
        read(found)


def test_a_case_without_a_result_fails(read):
    skipped = planted.case("an empty batch", "here", "two", "skipped")
    with pytest.raises(page.IncompleteError, match="'two' of 'an empty batch'"):
        read(column("jax-cpu", skipped))


def test_what_was_not_run_says_so(read):
    old = column("torch-cpu", FAULT, commit="0ld0000000", date="2026-10-01T10:00")
    matrix = read(column("jax-cpu"), old)

    states = cells(matrix)
    assert {v for k, v in states.items() if k[1] == "torch-cpu"} == {"not run"}
    assert {v for k, v in states.items() if k[1] == "jax-cpu"} == {"passed"}
    assert matrix.result("here") == "6 of 6"
    html = page.render(matrix, "page.html")
    assert "last 2026-10-01 10:00 UTC at 0ld0000000, Keras 3.15.1" in html
    # What it was stays behind the cell.
    assert "not run; was ✗ 1 of 2" in html and "outputs: got 3" in html
    assert '<summary class="failed">' not in html
    assert "and never before" in html  # the GPU's
    assert re.search(r"\| PyTorch, CPU \|.*\| not run \| not run", page.excerpt(matrix))


def test_other_versions_are_listed_and_no_columns(read):
    lowest = {**column("minimums-jax", FAULT), "note": "the lowest of all"}
    matrix = read(column("jax-cpu"), lowest)

    assert matrix.result("here") == "6 of 6"
    for name in ("page.html", "page.md"):
        text = page.render(matrix, name)
        assert "JAX, the lowest Keras" in text and "5 of 6" in text
        assert "the lowest of all" in text and "PyTorch, Python 3.13" in text
    assert "outputs: got 3" in page.render(matrix, "page.html")
    excerpt = page.excerpt(matrix)
    # Versions are named where they aren't those of the first.
    assert "| JAX, CPU | Keras 3.15.1, JAX 0.10.2 | 6 of 6" in excerpt
    assert "| JAX, the lowest Keras | the lowest of all | 5 of 6" in excerpt
    assert "3.13" not in excerpt
    other = {**lowest, "versions": {"Keras": "3.14.0", "JAX": "0.10.2"}}
    excerpt = page.excerpt(read(column("jax-cpu"), other))
    assert "| JAX, the lowest Keras | Keras 3.14.0; the lowest of all | 5" in excerpt
    with pytest.raises(page.IncompleteError, match="minimums-jax has no case"):
        read(column("jax-cpu"), {**lowest, "cases": []})


def test_names_are_escaped(read):
    bad = planted.case("an empty batch", "keras", "<b>", "failed", None, "<script>")
    html = page.render(read(column("jax-cpu", bad)), "page.html")

    assert "&lt;script&gt;" in html and "<script" not in html


@pytest.mark.parametrize(
    ("worst", "text"),
    [
        ("0", "0"),
        ("3e-05", "<0.01"),
        ("0.98", "0.98"),
        ("7.7e+02", "770"),
        ("1.6e+07", "2e7"),
        ("1e+11", "1e11"),
        ("inf", "NaN"),
    ],
)
def test_errors_are_short(worst, text):
    assert page.shown(worst) == text


def report(outcome, message=None, **kwargs):
    crash = SimpleNamespace(reprcrash=SimpleNamespace(message=message))
    properties = [("row", "r"), ("case", "c"), ("layer", "keras"), ("worst", 1234.5)]
    return SimpleNamespace(
        outcome=outcome,
        failed=outcome == "failed",
        skipped=outcome == "skipped",
        longrepr=crash,
        user_properties=properties,
        **kwargs,
    )


def test_a_report_becomes_a_case():
    found = recording.entry(report("passed"))
    assert (found["outcome"], found["worst"]) == ("passed", "1.2e+03")
    assert found["problem"] is None

    # Of Keras's layer failures are expected: pytest calls them skipped.
    message = "AssertionError: outputs: got 3\nassert not ['outputs: got 3']"
    found = recording.entry(report("skipped", message, wasxfail="a result"))
    assert (found["outcome"], found["problem"]) == ("failed", "outputs: got 3")
    assert recording.entry(report("passed", wasxfail=""))["outcome"] == "passed"

    # What pytest says of a skip: where, and why.
    skip = report("skipped")
    skip.longrepr = ("/home/me/test.py", 3, "Skipped: needs `fit`")
    skip.user_properties.append(("needs", "`fit`"))
    found = recording.entry(skip)
    assert (found["outcome"], found["problem"]) == ("skipped", "needs `fit`")
    assert found["needs"] == "`fit`"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("ValueError: in /home/me/lib/site-packages/a.py", "ValueError: in a.py"),
        ("TypeError: Exception encountered when calling B.call().\n\n\x1b[1mno\x1b[0m",
         "TypeError: no"),
        ("RuntimeError: ValueError: two", "ValueError: two"),
        ("A: in user code:\n\n  File a.py\n  B: three", "A: in user code: B: three"),
        ("x" * 400, "x" * 300 + " ..."),
    ],
)  # fmt: skip
def test_a_problem_is_a_line_without_paths(message, line):
    assert recording.problem(report("failed", message)) == line


def test_the_pages_in_docs_are_those_of_the_recorded_columns():
    for path, text in page.pages(page.read(page.ROOT / "docs" / "matrix")).items():
        assert path.read_text() == text, f"{path.name}: run tests/matrix/page.py"


def test_nothing_of_a_machine_is_in_the_recorded_columns():
    for path in (page.ROOT / "docs" / "matrix").glob("*.json"):
        assert not re.search(r'"[^"]*(/home/|/tmp/|/usr/|\\x1b)', path.read_text())


def test_rows_are_those_of_the_readme():
    from behaviours import DIFFERENT, ROWS

    text = (page.ROOT / "docs" / "differences.md").read_text()
    _, _, section = text.partition(f"## {DIFFERENT}\n")
    table = re.findall(r"^\| (.*?) \|", section.partition("\n## ")[0], flags=re.M)
    assert table[2:] == [row.name for row in ROWS if row.group == DIFFERENT]
    for row in ROWS:
        assert row.examples, row.name
