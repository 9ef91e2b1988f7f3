"""What the CPU columns together don't run of the package, and why.

    python tests/gaps.py COVERAGE.json PAGE.md

`nox -s coverage` calls it with what coverage.py has measured. A gap is a run of
statements, one after the other, that no test has run. It needs a reason here, by its
first line and the one before, which tells `return None` from others. A gap without a
reason, and a reason without a gap, are errors.
"""

import argparse
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

# By the module, below `keras_bnx/`, and the two lines.
REASONS = {
    (
        "backends/torch.py",
        "if not batch.x.is_cpu: / needs_shift = False",
    ): "A GPU's path; the GPU columns run it.",
    (
        "backends/torch.py",
        "if not values.is_cpu: / "
        "return torch.batch_norm_update_stats(values, None, None, 0.0)",
    ): "A GPU's path; the GPU columns run it.",
    (
        "tools/checks.py",
        ") / except Exception:",
    ): "No layer of Keras's raises there; one of a user's may.",
}


def gaps(file):
    """Runs of missing statements: lists of line numbers, of coverage.py's entry."""
    missing, found = set(file["missing_lines"]), []
    for line in sorted(missing | set(file["executed_lines"])):
        if line not in missing:
            found.append([])
        elif found:
            found[-1].append(line)
        else:
            found = [[line]]
    return [gap for gap in found if gap]


def places(text):
    """By the number of each line, what a gap that begins there is known by."""
    found, before = {}, None
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line:
            found[number] = f"{before} / {line}" if before else line
            before = line
    return found


def explain(name, text, file, reasons):
    """The gaps of a module: the place, number of statements, reason or `None`."""
    known_by = places(text)
    for gap in gaps(file):
        place = known_by[gap[0]]
        yield place, len(gap), reasons.get((name, place))


def page(files, reasons):
    """Tables in Markdown, of modules and of gaps.

    Args:
        files: dictionary, by the module's name its text and coverage.py's entry.
        reasons: as `REASONS`.

    Raises:
        ValueError: for gaps without a reason, and reasons without a gap.
    """
    modules, rows, without, used = [], [], [], set()
    for name, (text, file) in sorted(files.items()):
        count = len(file["executed_lines"]) + len(file["missing_lines"])
        left = len(file["missing_lines"])
        modules.append((name, count, left))
        for place, size, reason in explain(name, text, file, reasons):
            if reason is None:
                without.append(f"{name}: {place}")
            used.add((name, place))
            rows.append(f"| `{name}` | `{place}` | {size} | {reason} |")
    stale = [f"{name}: {place}" for name, place in reasons if (name, place) not in used]
    if without or stale:
        raise ValueError(
            "Each gap has a reason, and each reason a gap. Received:\n"
            + "".join(f"  no reason for {gap}\n" for gap in without)
            + "".join(f"  no gap at {gap}\n" for gap in stale)
            + "Test what isn't run, or correct REASONS."
        )
    modules.append(("all", *map(sum, zip(*(row[1:] for row in modules), strict=True))))
    table = [
        f"| {name if name == 'all' else f'`{name}`'} | {count} | {left} | "
        f"{100.0 * (1.0 - left / max(1, count)):.1f} |"
        for name, count, left in modules
    ]
    return "\n".join(
        [
            "| module | statements | not run | run, in % |",
            "| --- | ---: | ---: | ---: |",
            *table,
            "",
            "## What isn't run, and why",
            "",
            "| module | from | statements | why |",
            "| --- | --- | ---: | --- |",
            *rows,
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    measured = json.loads(arguments.measured.read_text())
    files = {}
    for path, file in measured["files"].items():
        path = (ROOT / path).resolve()
        name = path.relative_to(ROOT / "keras_bnx").as_posix()
        files[name] = path.read_text(), file
    try:
        tables = page(files, REASONS)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    day = measured["meta"]["timestamp"].partition("T")[0]
    arguments.page.write_text(
        "# Coverage\n\nStatements of `keras_bnx` that the three CPU columns run "
        f"together, by coverage.py: `nox -s coverage` on {day}, at {commit}. What is "
        "compiled counts where it is traced.\n\n" + tables + "\n"
    )


if __name__ == "__main__":
    main()
