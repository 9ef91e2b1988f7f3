"""Runs random combinations: `python tests/fuzz.py --seconds 600`.

`nox -s fuzz` and `tests/test_combinations.py` call it. Each combination is printed
before it runs, in a process of their own: a crash in a kernel can't be caught, but then
the last line that was printed says where.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

RUNNING = "running "


def run(first, count):
    """Runs the combinations of the seeds `first`, `first + 1`, ... in this process.

    Raises:
        AssertionError: with a simplified combination, at the first that fails.
    """
    import keras
    from combinations import check, draw, simplified

    def failure(combination):
        print(f"{RUNNING}{combination}", flush=True)
        try:
            check(combination)
        except Exception as error:
            return error

    for seed in range(first, first + count):
        if seed % 20 == 0:
            keras.utils.clear_session()  # It collects garbage, and takes a while.
        combination = draw(seed)
        error = failure(combination)
        if error is not None:
            simple = simplified(combination, failure)
            raise AssertionError(
                f"Seed {seed}, {combination}, or simpler: {simple}"
            ) from (failure(simple) or error)


def run_in_a_process(first, count):
    """Calls `run` in a process of its own; returns how many combinations it ran.

    Raises:
        AssertionError: with the combination, if one failed or killed the process.
    """
    command = [sys.executable, __file__, "--first", first, "--count", count]
    return len(report([*map(str, command), "--in-process"]))


def report(command):
    """Runs a command that prints what it is running; returns these lines.

    Raises:
        AssertionError: with the last of them if it died of a signal, or its errors.
    """
    finished = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    lines = [
        line.removeprefix(RUNNING)
        for line in finished.stdout.splitlines()
        if line.startswith(RUNNING)
    ]
    if finished.returncode < 0:
        last = lines[-1] if lines else "its start"
        raise AssertionError(
            f"The process died of signal {-finished.returncode} at {last}"
        )
    if finished.returncode:
        raise AssertionError(finished.stderr[-6000:])
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=200, help="seeds in a process")
    parser.add_argument("--seconds", type=float, help="go on with more seeds so long")
    parser.add_argument("--in-process", action="store_true", help="once, in this one")
    arguments = parser.parse_args()
    first, count = arguments.first, arguments.count
    if arguments.in_process:
        run(first, count)
        return
    start, passed = time.monotonic(), 0
    while True:
        passed += run_in_a_process(first, count)
        first += count
        seconds = time.monotonic() - start
        print(f"{passed} combinations passed in {seconds:.0f} s", flush=True)
        if arguments.seconds is None or seconds > arguments.seconds:
            return


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    main()
