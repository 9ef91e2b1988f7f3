"""Builds the matrix's pages out of recorded columns, and of nothing else.

    python tests/matrix/page.py

Reads `docs/matrix/*.json`, one file a column, which `pytest --record` has written;
writes `docs/matrix.html`, `docs/matrix.md`, `docs/matrix.svg` and the table between
two marks in README.md. No result is written here by hand: a sentence about one is
counted from the columns.

The columns that ran last, all at one commit, are the matrix. A column whose last run
was at another commit is *not run*, and so is one that has no file: what it was when it
did run stays behind its cells.

A case that needs what its backend lacks is *skipped*, and says what it needs. What
Keras's layer fails and doesn't claim to do is *not offered*. Both count neither as
passed nor as failed.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2
import markupsafe
from recording import ROOT, TITLES

HERE = Path(__file__).parent

# Those that train, on every device.
BACKENDS = {name: title for name, title in TITLES.items() if name != "numpy"}
DEVICES = {"cpu": "CPU", "gpu": "GPU"}
COLUMNS = [f"{backend}-cpu" for backend in TITLES]
COLUMNS += [f"{backend}-gpu" for backend in BACKENDS]
LAYERS = {"here": "keras_bnx", "keras": "Keras"}
# The same cases with other versions, or in another mode; not columns of the table.
VARIANTS = {
    "minimums-jax": "JAX, the lowest Keras",
    "latest-tensorflow": "TensorFlow, the newest versions",
    "latest-jax": "JAX, the newest versions",
    "latest-torch": "PyTorch as above, all else the newest",
    **{
        f"python{version}-{backend}": f"{title}, Python {version}"
        for version in ("3.12", "3.13")
        for backend, title in BACKENDS.items()
    },
    "nnx-jax": "JAX, Keras's NNX mode",
}

START, END = "<!-- the matrix: written by nox -s matrix -->", "<!-- end -->"


class IncompleteError(Exception):
    """A row without cases, a column without rows: nothing to show a stranger."""


def shown(worst):
    """A multiple of what is allowed, as short as it can be read."""
    worst = float(worst)
    if worst == float("inf"):
        return "NaN"
    if worst >= 1000:
        return f"{worst:.0e}".replace("e+0", "e").replace("e+", "e")
    if 0 < worst < 0.01:
        return "<0.01"
    return f"{worst:.0f}" if worst >= 10 else f"{worst:.2g}"


def needs(cases):
    """What the skipped ones among some cases need, in words; "" where none is."""
    found = Counter(c["needs"] for c in cases if c["outcome"] == "skipped")
    if not found:
        return ""
    *others, last = (what for what, _ in found.most_common())
    what = f"{', '.join(others)} or {last}" if others else last
    return f"{found.total()} need{'s' if found.total() == 1 else ''} {what}"


def result(cases):
    """How many of some cases passed, and why others don't count, in words."""
    counts = Counter(c["outcome"] for c in cases)
    passed = f"{counts['passed']} of {len(cases) - counts['absent']}"
    absent = f"{counts['absent']} not offered" if counts["absent"] else ""
    return "; ".join(filter(None, [passed, needs(cases), absent]))


@dataclass
class Column:
    id: str
    found: dict  # what was recorded, or None
    runs: bool = False  # whether it is of the commit that the matrix is of

    @property
    def backend(self):
        return self.id.partition("-")[0]

    @property
    def title(self):
        backend, _, device = self.id.partition("-")
        return VARIANTS.get(self.id) or f"{TITLES[backend]}, {DEVICES[device]}"

    @property
    def versions(self):
        return self.versions_beside({})

    def versions_beside(self, others):
        """The versions that aren't among others, and what there is to say of them."""
        found = self.found["versions"].items()
        versions = ", ".join(f"{k} {v}" for k, v in found if others.get(k) != v)
        return "; ".join(filter(None, [versions, self.found["note"]]))

    def failures(self, layer):
        return [c for c in self.cases(layer) if c["outcome"] == "failed"]

    @property
    def last_run(self):
        if self.found is None:
            return "never run"
        commit = self.found["commit"] or "no commit"
        changed = ", with changes" if self.found["modified"] else ""
        return f"{self.found['date'].replace('T', ' ')} UTC at {commit}{changed}"

    def cases(self, layer):
        return [c for c in self.found["cases"] if c["layer"] == layer]

    def result(self, layer):
        return result(self.cases(layer))


@dataclass
class Cell:
    column: Column
    layer: str
    cases: list

    @property
    def counts(self):
        return Counter(c["outcome"] for c in self.cases)

    @property
    def last_state(self):
        """The state of the last run, whenever it was: the worst of its cases."""
        states = ("failed", "absent", "passed", "skipped")
        return next((s for s in states if self.counts[s]), "not run")

    @property
    def state(self):
        return self.last_state if self.column.runs else "not run"

    @property
    def text(self):
        counts, skipped = self.counts, needs(self.cases)
        text = {
            "passed": f"✓ {counts['passed']}",
            "failed": f"✗ {counts['failed']} of {len(self.cases)}",
            "absent": f"not offered; ✓ {counts['passed']}".removesuffix("; ✓ 0"),
            "skipped": skipped,
            "not run": "not run",
        }[self.last_state]
        if skipped and self.last_state != "skipped":
            text += f"; {skipped}"
        if self.cases and self.state == "not run":
            text = f"not run; was {text}"
        return text

    @property
    def worst(self):
        """The largest error of its cases, as a multiple of what is allowed."""
        found = [float(c["worst"]) for c in self.cases if c["worst"] is not None]
        if not found:
            return ""
        return shown(max(found))


@dataclass
class Row:
    name: str
    group: str
    beyond: bool  # whether Keras's layer doesn't claim to do what the row asks for
    cells: list

    def cell(self, column, layer):
        (found,) = (c for c in self.cells if c.column is column and c.layer == layer)
        return found

    @property
    def classes(self):
        """What filters look for: who fails, and on which backend."""
        found = set()
        for cell in self.cells:
            if cell.state == "failed":
                found |= {"fails", f"fails-{cell.column.backend}"}
                if cell.layer == "here":
                    found |= {"fails-here", f"fails-here-{cell.column.backend}"}
        return " ".join(sorted(found))


@dataclass
class Matrix:
    columns: list
    variants: list  # more columns, which aren't in the table
    rows: list

    @property
    def groups(self):
        """Rows by group, in order."""
        groups = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def ran(self):
        return [column for column in self.columns if column.runs]

    def result(self, layer):
        return result([c for column in self.ran for c in column.cases(layer)])


def read(folder):
    """The matrix of the columns in a folder.

    Raises:
        IncompleteError: for a row without cases, a column without rows, columns whose
            rows aren't the same, a case without a result that says no need.
    """

    def column(name):
        path = Path(folder) / f"{name}.json"
        if not path.exists():
            return Column(name, None)
        found = json.loads(path.read_text())
        beyond = {row["name"] for row in found["rows"] if row["beyond"]}
        for case in found["cases"]:
            is_kerass = case["layer"] == "keras" and case["row"] in beyond
            if is_kerass and case["outcome"] == "failed":
                case["outcome"] = "absent"
        return Column(name, found)

    columns, variants = map(column, COLUMNS), map(column, VARIANTS)
    columns, variants = list(columns), list(variants)
    recorded = [column for column in columns if column.found]
    if not recorded:
        raise IncompleteError(f"{folder} has no column. Run `nox -s matrix` first.")
    newest = max(recorded, key=lambda column: column.found["date"])
    for column in columns + variants:
        is_there = column.found is not None
        column.runs = is_there and column.found["commit"] == newest.found["commit"]

    problems = []
    rows = newest.found["rows"]
    for column in columns + variants:
        if not column.runs:
            continue
        if all(case["outcome"] == "skipped" for case in column.found["cases"]):
            problems.append(f"{column.id} has no case with a result.")
            continue
        if column.found["rows"] != rows:
            problems.append(f"{column.id} has other rows than {newest.id}.")
        counts = Counter((c["row"], c["layer"]) for c in column.found["cases"])
        for row in rows:
            for layer in LAYERS:
                if not counts.pop((row["name"], layer), 0):
                    what = f"{row['name']!r} has no case of {LAYERS[layer]}'s layer"
                    problems.append(f"{what} on {column.id}.")
        for name, _ in counts:
            problems.append(f"{column.id} has cases of {name!r}, which is no row.")
        for case in column.found["cases"]:
            is_skipped = case["outcome"] == "skipped" and case.get("needs")
            if case["outcome"] not in ("passed", "failed", "absent") and not is_skipped:
                what = f"{case['case']!r} of {case['row']!r}"
                problems.append(f"{what} has no result on {column.id}.")
    if problems:
        raise IncompleteError("\n".join(problems))

    def cell(row, column, layer):
        cases = [] if column.found is None else column.found["cases"]
        cases = [c for c in cases if (c["row"], c["layer"]) == (row["name"], layer)]
        return Cell(column, layer, cases)

    return Matrix(
        columns,
        variants,
        [
            Row(**row, cells=[cell(row, c, layer) for c in columns for layer in LAYERS])
            for row in rows
        ],
    )


def code(text):
    """Text with `code` in backticks, as HTML."""
    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def render(matrix, template):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=template.endswith((".html", ".svg")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "shown": shown}
    return environment.get_template(template).render(
        matrix=matrix, layers=LAYERS, backends=TITLES
    )


def excerpt(matrix):
    """The table of columns in README.md."""
    columns = matrix.columns + [v for v in matrix.variants if v.found]
    # Those of the first once, and after it what is other.
    versions = {}
    titles = "column", "versions, then what differs", "passed here", "by Keras's layer"
    lines = [f"| {' | '.join(titles)} |", "| --- | --- | --- | --- |"]
    for column in columns:
        cells = ["", "not run", "not run"]
        if column.found is not None:
            cells[0] = column.versions_beside(versions)
            versions = versions or column.found["versions"]
        if column.runs:
            cells[1:] = (column.result(layer) for layer in LAYERS)
        lines.append(f"| {column.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_excerpt(text, matrix):
    """README's text with the table between its marks as the matrix has it."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md lacks the marks {START!r} and {END!r}.")
    return f"{before}{START}\n{excerpt(matrix)}\n{END}{after}"


def pages(matrix):
    """The text of each page by its path."""
    readme = ROOT / "README.md"
    return {
        ROOT / "docs" / "matrix.html": render(matrix, "page.html"),
        ROOT / "docs" / "matrix.md": render(matrix, "page.md"),
        ROOT / "docs" / "matrix.svg": render(matrix, "page.svg"),
        readme: with_excerpt(readme.read_text(), matrix),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    try:
        matrix = read(ROOT / "docs" / "matrix")
    except IncompleteError as error:
        sys.exit(f"The matrix is incomplete, and no page was written:\n{error}")
    for path, text in pages(matrix).items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
