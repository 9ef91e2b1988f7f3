"""Every test is run by some session of nox."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text())
IGNORED = {".nox", ".venv", "build", "dist"}


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
    paths = [
        path.relative_to(ROOT)
        for path in ROOT.rglob("*.py")
        if not IGNORED & set(path.relative_to(ROOT).parts)
    ]
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


def test_each_backend_has_a_column():
    names = []
    for file in ("noxfile.py", "tests/conftest.py", "tests/matrix/page.py"):
        for node in ast.parse((ROOT / file).read_text()).body:
            if isinstance(node, ast.Assign) and "BACKENDS" in map(
                ast.unparse, node.targets
            ):
                names.append(sorted(ast.literal_eval(node.value)))
    # The second decides whose files a column leaves out, the third what is shown.
    assert len(names) == 3 and names[0] == names[1] == names[2]
    assert "*(f'tests({c.id})' for c in COLUMNS if 'cpu' in c.id)" in ast.unparse(
        NOXFILE
    )


def test_what_plain_nox_leaves_out_is_run_by_full():
    plain, (full, tags) = sessions()["tests"][0], sessions()["full"]
    # Neither chooses files, so both run all that pytest finds.
    assert "--full" not in plain and "tests/" not in plain + full
    assert "'--full'" in full and "'full'" in tags and "BACKENDS" in tags


def test_what_is_full_but_on_one_backend_names_it():
    marks = [
        mark
        for path in (ROOT / "tests").rglob("*.py")
        for mark in re.findall(r"@pytest\.mark\.full(.*)", path.read_text())
    ]
    assert marks
    for mark in marks:
        assert re.fullmatch(r'(\(except_on="(tensorflow|jax|torch)"\))?', mark), mark
