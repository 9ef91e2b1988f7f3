"""What is published holds what it has to, and nothing else.

    python tests/distributions.py DIRECTORY

`nox -s package` calls it on the wheel and the source distribution that it has built.
"""

import argparse
import email
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked(*folders):
    """The files that git knows, as paths from the root."""
    command = ["git", "ls-files", "-z", *folders]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in out.stdout.split("\0") if path}


def raise_unless_equal(kind, found, expected):
    if found != expected:
        raise SystemExit(
            f"The {kind} doesn't hold what it has to. Received: "
            f"{sorted(found - expected)} too much, {sorted(expected - found)} missing. "
            "Commit these files, ignore them, or change pyproject.toml."
        )


def check_wheel(path):
    """The package as git knows it, with its metadata."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        info = metadata.removesuffix("/METADATA")
        about = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
        package = tracked("keras_bnx")
        raise_unless_equal("wheel", names, package | {f"{info}/{n}" for n in about})
        assert "keras_bnx/py.typed" in package
        for name in package:
            assert wheel.read(name) == (ROOT / name).read_bytes(), name
        license = wheel.read(f"{info}/licenses/LICENSE")
        assert license == (ROOT / "LICENSE").read_bytes()
        check_metadata(email.message_from_bytes(wheel.read(metadata)))


def check_metadata(metadata):
    """What pyproject.toml declares has arrived."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for key, expected in {
        "Name": [project["name"]],
        "Summary": [project["description"]],
        "License-Expression": [project["license"]],
        "License-File": project["license-files"],
        "Keywords": [",".join(sorted(project["keywords"]))],
        "Classifier": project["classifiers"],
        "Requires-Python": [project["requires-python"]],
        "Provides-Extra": extras,
        "Description-Content-Type": ["text/markdown"],
    }.items():
        found = metadata.get_all(key) or []
        assert sorted(found) == sorted(expected), (key, found)
    required = metadata.get_all("Requires-Dist")
    assert {r for r in required if "extra ==" not in r} == set(project["dependencies"])
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()


def check_source(path):
    """All that git knows: the tests run in it, and everything can be made again."""
    with tarfile.open(path) as archive:
        folder = f"{path.name.removesuffix('.tar.gz')}/"
        names = {member.name.removeprefix(folder) for member in archive}
    raise_unless_equal("source distribution", names, tracked() | {"PKG-INFO"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    (wheel,), (source,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    check_wheel(wheel)
    check_source(source)
    print(f"{wheel.name} and {source.name} hold what they have to.")


if __name__ == "__main__":
    main()
