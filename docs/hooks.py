"""What MkDocs and mkdocstrings don't do alone: paths, and Keras's docstrings."""

import re
import textwrap
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "examples", "benchmarks")
SUFFIXES = {".md", ".png", ".svg", ".html", ".css", ".csv"}


def on_config(config):
    """Gives a place to the pages that sessions make, where they have been made."""
    for title in ("Coverage", "Matrix"):
        page = f"docs/{title.lower()}.md"
        if (ROOT / page).exists():
            config.nav.insert(-2, {title: page})


def on_files(files, config):
    """Gives each file the path that it has in the repository."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    paths = [*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "CITATION.cff"]
    for folder in FOLDERS:
        paths += (p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)
        # Linked to, not read.
        paths += (ROOT / folder).glob("*.py")
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


class KerasDocstrings(griffe.Extension):
    """Rewrites docstrings in Keras's form as Google's, which mkdocstrings reads."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = as_google(obj.docstring.value)


def as_google(text):
    """A docstring whose examples are code, with a line for each argument.

    >>> as_google("Args:\\n    a, b: numbers.\\n")
    'Args:\\n    a: numbers.\\n    b: numbers.'
    >>> as_google("Adds.\\n\\nExample:\\n\\n>>> 1 + 1\\n2\\n")
    'Adds.\\n\\nExamples:\\n    >>> 1 + 1\\n    2'
    """
    sections = re.split(r"^(?=\w[\w ]*:\n)", text, flags=re.M)
    for i, section in enumerate(sections):
        title, _, body = section.partition(":\n")
        if title == "Example":
            lines = body.strip("\n").split("\n")
            body = "".join(f"    {line}".rstrip() + "\n" for line in lines)
            sections[i] = f"Examples:\n{body}\n"
        elif title in ("Args", "Attributes"):
            entries = re.split(r"^(?=    \S)", body, flags=re.M)
            sections[i] = f"{title}:\n" + "".join(map(split_names, entries))
        elif title == "Returns":
            # A type, which is a link then.
            sections[i] = re.sub(r":\n    `(\w+)`: ", r":\n    \1: ", section)
        elif title in ("Call arguments", "Output shape", "Reference"):
            # Google's have no such sections: a heading and a list.
            listed = re.sub(r"^    (\w+): ", r"- `\1`: ", body, flags=re.M)
            sections[i] = f"**{title}**\n\n{textwrap.dedent(listed)}"
    return "".join(sections).rstrip("\n")


def split_names(entry):
    """An entry of several names that share a text, as one of each."""
    names, colon, text = entry.partition(": ")
    if not colon or "," not in names:
        return entry
    separate = [f"    {name.strip()}: {text}" for name in names.split(",")]
    return "".join(line.rstrip("\n") + "\n" for line in separate[:-1]) + separate[-1]
