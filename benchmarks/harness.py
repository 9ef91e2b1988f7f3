"""Timing side by side, the facts of a run, and its file.

Speed on a shared machine drifts by more than the differences that matter here. So
everything that is compared runs in one process, in turns: a slow second then hits
all of it. That isn't enough where other processes take the processors: kernels of
several threads wait for the one that was put aside, and single-threaded ones don't.
On 2 cores with two busy loops beside it, `torch.nn.BatchNorm1d` took 66 ms in place
of 0.19, and Keras's layer the same as before. `others` says how much they took.
"""

import argparse
import concurrent.futures
import csv
import ctypes
import datetime
import gc
import importlib
import math
import multiprocessing
import os
import pathlib
import platform
import random
import subprocess
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
# Below it, the clock and the synchronization are part of what is measured.
SHORTEST_SAMPLE = 1e-3


def interleave(functions, *, synchronize, rounds, seconds, clock=time.perf_counter):
    """Times functions in turns.

    Every function is called twice beforehand, for caches and compilers, and to see
    how many calls a sample takes to last `SHORTEST_SAMPLE`. Each round takes one
    sample of each function, in an order of its own, so that none always finds the
    cache as the same neighbour leaves it.

    Args:
        functions: dictionary of functions without arguments.
        synchronize: function that waits until the device has finished.
        rounds: integer, samples of each function.
        seconds: number; no round starts after it, but five are always taken, the
            fewest that have a 20th and an 80th percentile.
        clock: function that returns seconds.

    Returns:
        Dictionary of lists: seconds a call, one for each round.
    """

    def sample(function, calls):
        synchronize()
        start = clock()
        for _ in range(calls):
            function()
        synchronize()
        return (clock() - start) / calls

    calls = {}
    for name, function in functions.items():
        function()
        least = max(sample(function, 1), 1e-9)
        calls[name] = math.ceil(SHORTEST_SAMPLE / least)
    samples = {name: [] for name in functions}
    order, shuffle = list(functions), random.Random(0).shuffle
    start = clock()
    for index in range(rounds):
        if index >= 5 and clock() - start > seconds:
            break
        shuffle(order)
        for name in order:
            samples[name].append(sample(functions[name], calls[name]))
    return samples


def others():
    """Starts to watch the processors.

    Returns:
        A function that returns which share of them other processes, and other
        machines on the same host, have taken since; `""` where that isn't known.
    """

    def read():
        try:
            line = pathlib.Path("/proc/stat").read_text().splitlines()[0]
        except FileNotFoundError:  # not Linux
            return None
        ticks = [int(field) for field in line.split()[1:9]]
        idle = ticks[3] + ticks[4]  # and waiting for disks
        own = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
        return sum(ticks), idle + own

    before = read()

    def share():
        if before is None:
            return ""
        everything, ours = (b - a for a, b in zip(before, read(), strict=True))
        return max(0.0, 1 - ours / everything) if everything else 0.0

    return share


def in_new_process(function, *arguments):
    """Returns what a function returns in a process that has done nothing before."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(function, *arguments).result()


def peak_memory(function):
    """The most bytes that there are during a call: of all, not of the call alone.

    On an accelerator they are its allocator's, on a CPU the process's, which only
    Linux says.
    """
    # Not above: a report of the results needs no framework.
    from benchmarks import frameworks

    gc.collect()
    peak = frameworks.active().allocated_peak(function)
    if peak is not None:
        return peak
    # The allocator of C keeps what was freed in pieces; it gives it back when asked.
    ctypes.CDLL(None).malloc_trim(0)
    # Sets the peak to what there is now, as `man 5 proc` has it.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    function()
    return _status("VmHWM")


def _status(field):
    """A field of what Linux says of this process's memory, in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def summary(samples):
    """The columns `median_ms`, `p20_ms` and `p80_ms`, of samples in seconds."""
    p20, median, p80 = np.percentile(samples, [20, 50, 80]) * 1e3
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80}


def environment():
    """The columns that say on what, with what and when a row was measured."""
    # Not above: a report of the results needs neither Keras nor a framework.
    import keras

    from benchmarks import frameworks

    backend = keras.config.backend()
    return {
        "device": frameworks.active().accelerator() or _processor(),
        "processors": os.cpu_count(),
        "backend": backend,
        "framework": " ".join(
            f"{name} {importlib.import_module(name).__version__}"
            for name in frameworks.active().PACKAGES
        ),
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
    }


def arguments(description):
    """Reads the arguments that all the scripts share.

    Returns:
        A namespace of `quick`; `output`, the folder of `README.md` and `results/`;
        and `timing`, arguments of `interleave`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="a few small cases: shows that it works"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder for README.md and results/ "
        "(default: benchmarks; with --quick results/quick, which git ignores)",
    )
    parsed = parser.parse_args()
    if parsed.output is None:
        parsed.output = ROOT / ("results/quick" if parsed.quick else "benchmarks")
    parsed.timing = (
        {"rounds": 5, "seconds": 1} if parsed.quick else {"rounds": 31, "seconds": 20}
    )
    return parsed


def write(output, name, rows):
    """Writes `output/results/<device>/<backend>-<name>.csv`; returns its path."""
    facts = environment()
    columns = dict.fromkeys([*(column for row in rows for column in row), *facts])
    folder = output / "results" / slug(facts["device"])
    path = folder / f"{facts['backend']}-{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            row = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(row | facts)
    return path


def slug(device):
    """The name of a device's folder."""
    return "".join(c if c.isalnum() else "-" for c in device.lower())


def _processor():
    """The processor's name, with the number that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except FileNotFoundError:  # not Linux
        pass
    return f"{name} {os.cpu_count()} cores"


def _commit():
    """The commit that was measured; `-dirty` with changes to tracked code.

    The results don't count: a script after the first finds those of the others changed.
    """
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "*.py", "*.toml"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
