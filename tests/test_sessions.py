"""Every test is run by some session of nox."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text())
IGNORED = {".nox", ".venv", "build", "dist", "site"}


def sessions():
    """The source of each session's function and the tags it has, by name."""
    found = {}
    for node in NOXFILE.body:
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            if any(d.startswith("nox.session") for d in decorators):
                found[node.name] = (ast.unparse(node), " ".join(decorators))
    return found


def defines_tests(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    return any(
        isinstance(n, ast.FunctionDef) and n.name.startswith("test_") for n in nodes
    )


def test_each_file_with_tests_is_collected_or_named_by_who_runs_it():
    """By a session, or by a test that runs it in a process of its own."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    (folder,) = options["ini_options"]["testpaths"]
    # A virtual environment may lie here, too, whatever it is called.
    folders = [
        path
        for path in ROOT.iterdir()
        if path.name not in IGNORED and not (path / "pyvenv.cfg").exists()
    ]
    found = [ROOT.glob("*.py"), *(folder.rglob("*.py") for folder in folders)]
    paths = [path.relative_to(ROOT) for path in itertools.chain(*found)]
    files = [path for path in paths if defines_tests(ROOT / path)]
    assert len(files) > 30
    collected = [
        path
        for path in files
        if path.parts[0] == folder and path.name.startswith("test_")
    ]
    text = "".join(source for source, _ in sessions().values())
    text += "".join((ROOT / path).read_text() for path in collected)
    for path in set(files) - set(collected):
        assert path.as_posix() in text or f'"{path.name}"' in text, path


def constant(file, name):
    """The value of a constant that is written out in a file, without running it."""
    (node,) = (
        node
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return ast.literal_eval(node.value)


def test_each_backend_has_a_column():
    backends = constant("noxfile.py", "BACKENDS")
    # The first decides whose files a column leaves out, the second what is shown.
    assert set(constant("tests/conftest.py", "BACKENDS")) == {*backends}
    assert set(constant("tests/matrix/recording.py", "TITLES")) == {*backends, "numpy"}
    assert "*(f'tests({c.id})' for c in COLUMNS if 'cpu' in c.id)" in ast.unparse(
        NOXFILE
    )


def test_what_plain_nox_leaves_out_is_run_by_full():
    plain, (full, tags) = sessions()["tests"][0], sessions()["full"]
    # Neither chooses files, so both run all that pytest finds.
    assert "--full" not in plain and "tests/" not in plain + full
    assert "'--full'" in full and "'full'" in tags and "BACKENDS" in tags


def test_workflows_run_sessions():
    """Those of `nox -l`: the name of a function, with what it is parametrized by."""
    found = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        names = re.search(r"session:\n((?: +- .*\n)+)", path.read_text())[1]
        found += re.findall(r"- (.*)\n", names)
        # The file that is checked by `nox -s lint`.
        assert f"{path.relative_to(ROOT)}" in (ROOT / "noxfile.py").read_text()
    assert len(found) == len(set(found)) > 9
    for name in found:
        function, _, parameters = name.partition("(")
        _, decorators = sessions()[function]
        wanted = "(jax-cpu)" if "COLUMNS" in decorators else "(jax)"
        # Without parameters: one after the other.
        wanted = wanted if "parametrize" in decorators and parameters else ""
        backend = re.search(r"tensorflow|jax|torch|$", parameters)[0]
        assert name == f"{function}{wanted}".replace("jax", backend or "jax"), name
    # What plain nox runs is run.
    assert {"lint", *(f"tests({b}-cpu)" for b in ("jax", "tensorflow", "torch"))} <= {
        *found
    }


def test_pre_commit_has_what_lint_runs():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    lint = constant("noxfile.py", "LINT")
    entries = re.findall(r"entry: python -m (.*)\n", config)
    assert entries == list(lint)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    versions = re.findall(r"additional_dependencies: \[(.*)\]", config)
    assert len(versions) == len(lint)
    pinned = {package for package in groups["lint"] if "==" in package}
    assert pinned == {*versions}


def test_what_is_full_but_on_one_backend_names_it():
    marks = [
        mark
        for path in (ROOT / "tests").rglob("*.py")
        for mark in re.findall(r"@pytest\.mark\.full(.*)", path.read_text())
    ]
    assert marks
    for mark in marks:
        assert re.fullmatch(r'(\(except_on="(tensorflow|jax|torch)"\))?', mark), mark
