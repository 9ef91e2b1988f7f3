"""Breaks the package in small ways, and lists what no test notices.

    python tests/mutants.py --backend torch     the mutants of one backend
    python tests/mutants.py -k momentum         those whose name has a word in it

`nox -s mutants` calls it for each backend. A mutant is a row of `mutations.py`: a
line of the package, what takes its place, and the tests that should fail then. Each
is tried in a copy of the package, by one process of pytest that stops at the first
failure; the working tree stays as it is. Tests that fail in the package as it is would
kill any mutant: they are run first, and where one fails nothing is tried.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mutations import MUTANTS

ROOT = Path(__file__).parents[1]
BACKENDS = ("torch", "jax", "tensorflow")
# Far more than the longest, of processes that wait for each other.
SECONDS = 400.0
CACHE = ROOT / ".pytest_cache" / "mutants"


@dataclass(frozen=True)
class Outcome:
    """What became of a run of tests: `"passed"`, `"failed"` or `"invalid"`, and how."""

    verdict: str
    detail: str
    seconds: float = 0.0


@contextmanager
def copied(root):
    """A temporary copy of the package and its tests, beside links to the rest."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for path in root.iterdir():
            if path.name in ("keras_bnx", "tests"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, Path(folder, path.name), ignore=ignored)
            elif not path.name.startswith("."):
                Path(folder, path.name).symlink_to(path.resolve())
        yield Path(folder)


def run(tests, backend, folder, *arguments, seconds=SECONDS):
    """Runs tests in a folder, by a process of their own."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        # The folder's package, before one that is installed; also in processes that
        # a test starts.
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Two threads of two workers each would wait for each other.
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", f"--backend={backend}", "--full"]
    # What JAX has compiled for one mutant serves the others.
    command += ["-q", "--tb=short", "-p", "no:warnings", "-o", f"cache_dir={CACHE}"]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, *arguments, *tests],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        # With the processes that it has started.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Outcome("failed", "a time-out", time.monotonic() - start)
    return Outcome(*_read(process.returncode, output), time.monotonic() - start)


def _read(code, output):
    """The verdict of a run of pytest, and what speaks for it."""
    if code == 0:
        return "passed", ""
    if code < 0:
        return "failed", f"a crash, {signal.Signals(-code).name}"
    names = [
        line.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR ")
        for line in output.splitlines()
        if line.startswith(("FAILED ", "ERROR "))
    ]
    # 1: tests failed. 2: a test module can't even be imported.
    if code in (1, 2) and names:
        return "failed", ", ".join(names)
    return "invalid", output[-3000:]


def try_out(mutant, root=ROOT, seconds=SECONDS):
    """Runs a mutant's tests in a copy of the package that is broken."""
    try:
        text = mutant.broken(root / "keras_bnx")
    except ValueError as error:
        return Outcome("invalid", str(error))
    with copied(root) as folder:
        (folder / "keras_bnx" / mutant.file).write_text(text)
        return run(mutant.tests, mutant.backend, folder, "-x", seconds=seconds)


def is_as_expected(mutant, outcome):
    """Whether a mutant is killed; one with a reason has to survive."""
    return outcome.verdict == ("passed" if mutant.reason else "failed")


def check_unbroken(mutants, root=ROOT):
    """Runs all tests that mutants name on the package as it is.

    Raises:
        SystemExit: if one fails.
    """
    for backend in dict.fromkeys(m.backend for m in mutants):
        named = [m.tests for m in mutants if m.backend == backend]
        tests = dict.fromkeys(test for tests in named for test in tests)
        with copied(root) as folder:
            outcome = run(tests, backend, folder, seconds=10 * SECONDS)
        if outcome.verdict != "passed":
            raise SystemExit(
                "Nothing is known of any mutant: without one these tests fail on "
                f"{backend}: {outcome.detail}"
            )
        print(
            f"Of the package as it is, {len(tests)} tests pass on {backend} "
            f"({outcome.seconds:.0f} s).",
            file=sys.stderr,
            flush=True,
        )


def table(results):
    """What became of each mutant, in Markdown."""
    lines = ["| mutant | in | killed by | s |", "| --- | --- | --- | --- |"]
    for mutant, outcome in results:
        what = outcome.detail.replace("|", "\\|").replace("\n", " ")
        if outcome.verdict == "passed":
            what = f"**survives**: {mutant.reason or 'a test is missing'}"
        elif outcome.verdict == "invalid":
            what = f"**invalid**: {what}"
        elif mutant.reason:
            what = f"{what}, **unexpectedly**: take its reason away"
        where = f"`{mutant.file}`, {mutant.backend}"
        lines.append(f"| {mutant.name} | {where} | {what} | {outcome.seconds:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, help="of one backend alone")
    parser.add_argument("-k", default="", metavar="NAME", help="names that contain it")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--output", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if arguments.k in m.name]
    if not chosen:
        parser.error(f"No mutant has such a name. Received: -k {arguments.k}.")
    chosen = [m for m in chosen if arguments.backend in (None, m.backend)]
    start = time.monotonic()
    check_unbroken(chosen)

    def tried(mutant):
        outcome = try_out(mutant)
        sign = "." if is_as_expected(mutant, outcome) else f"\n{mutant.name}: no\n"
        print(sign, end="", file=sys.stderr, flush=True)
        return mutant, outcome

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(tried, chosen))
    wrong = [m.name for m, outcome in results if not is_as_expected(m, outcome)]
    killed = sum(outcome.verdict == "failed" for _, outcome in results)
    seconds = time.monotonic() - start
    text = table(results) + (
        f"\n\n{len(results)} mutants, {killed} killed, in {seconds:.0f} s. "
        f"Not as expected: {', '.join(wrong) or 'none'}.\n"
    )
    print(f"\n{text}")
    if arguments.output is not None:
        arguments.output.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
