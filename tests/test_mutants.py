"""The tool that breaks the package: on a package of three lines, and its table."""

import ast
from pathlib import Path

import mutants
import pytest
from mutations import MUTANTS, Mutant

# The tool imports no framework.
pytestmark = pytest.mark.full(except_on="torch")

ROOT = Path(__file__).parents[1]
CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--backend")
    parser.addoption("--full", action="store_true")
"""
MODULE = "def double(x):\n    return 2 * x\n"
TESTS = """
from keras_bnx.module import double

def test_two():
    assert double(2) == 4

def test_three():
    assert double(3) == 6

def test_it_ends():
    assert double(0) == 0
"""


@pytest.fixture
def root(tmp_path):
    """A package and its tests, of the same names as ours."""
    for name, text in {
        "keras_bnx/__init__.py": "",
        "keras_bnx/module.py": MODULE,
        "tests/conftest.py": CONFTEST,
        "tests/test_module.py": TESTS,
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-ra'\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def mutant(new, *, old="2 * x", tests=("tests/test_module.py",), reason=None):
    return Mutant("a_name", "module.py", old, new, tests, reason=reason)


@pytest.mark.parametrize(
    ("new", "verdict", "detail"),
    [
        ("x**2", "failed", "tests/test_module.py::test_three"),
        ("x + x", "passed", ""),
        ("2 * x\n)", "failed", "tests/test_module.py"),
        ("__import__('os').abort()", "failed", "a crash, SIGABRT"),
        ("__import__('time').sleep(60)", "failed", "a time-out"),
    ],
    ids=["killed", "survives", "breaks the import", "crashes", "hangs"],
)
def test_what_becomes_of_a_mutant(root, new, verdict, detail):
    seconds = 3 if "sleep" in new else 60
    found = mutants.try_out(mutant(new), root, seconds)

    assert (found.verdict, found.detail) == (verdict, detail)
    # Only a copy is broken.
    assert (root / "keras_bnx" / "module.py").read_text() == MODULE


def test_a_mutant_with_a_reason_has_to_survive(root):
    survivor, killed = (mutants.Outcome(v, "") for v in ("passed", "failed"))
    plain, excused = mutant("x"), mutant("x", reason="it is the same")

    assert mutants.is_as_expected(plain, killed)
    assert not mutants.is_as_expected(plain, survivor)
    assert mutants.is_as_expected(excused, survivor)
    assert not mutants.is_as_expected(excused, killed)
    text = mutants.table([(plain, survivor), (excused, survivor), (excused, killed)])
    for part in ("a test is missing", "it is the same", "unexpectedly"):
        assert part in text


@pytest.mark.parametrize("wrong", [{"old": "3 * x"}, {"old": "x"}, {"new": "2 * x"}])
def test_stale_rows_are_invalid(root, wrong):
    found = mutants.try_out(mutant(**{"new": "x", **wrong}), root)

    assert found.verdict == "invalid" and "'a_name' is stale" in found.detail


def test_tests_that_are_not_there_are_invalid(root):
    found = mutants.try_out(mutant("x", tests=("tests/test_module.py::no",)), root)

    assert found.verdict == "invalid" and "not found" in found.detail


def test_tests_that_fail_unbroken_stop_everything(root):
    mutants.check_unbroken([mutant("x")], root)
    (root / "keras_bnx" / "module.py").write_text(MODULE.replace("2", "3"))
    with pytest.raises(SystemExit, match="test_two"):
        mutants.check_unbroken([mutant("x")], root)


def test_each_row_breaks_a_line_that_is_there_and_names_tests_that_are():
    for row in MUTANTS:
        ast.parse(row.broken(ROOT / "keras_bnx"))
        for test in row.tests:
            path, _, name = test.partition("::")
            name, text = name.partition("[")[0], (ROOT / path).read_text()
            assert not name or f"def {name}(" in text, (row.name, test)


def test_rows_have_names_of_their_own_and_every_module_has_some():
    assert len({row.name for row in MUTANTS}) == len(MUTANTS) >= 60
    passed_through = {"__init__", "implementation", "reference"}
    modules = {
        path.relative_to(ROOT / "keras_bnx").as_posix()
        for path in (ROOT / "keras_bnx").rglob("*.py")
        if path.stem not in passed_through
    }
    # Names of `tools/interop.py`, and nothing else.
    modules.remove("interop.py")
    assert {row.file for row in MUTANTS} == modules
