"""Makes the tables and plots of README.md from the results of all backends.

python -m benchmarks.report [--quick] [--output DIR]
"""

import csv
import math
from collections import defaultdict

from matplotlib.figure import Figure

from benchmarks import harness

START = "<!-- Between these lines, benchmarks/report.py writes. -->"
END = "<!-- The end of what it writes. -->"

# The palette by Okabe and Ito, whose colours everybody can tell apart.
COLORS = {
    "ours": "#0072B2",
    "keras": "#E69F00",
    "native": "#009E73",
    "fused": "#56B4E9",
}
# However many shapes are measured, the headline stays the mean of the same ones.
HEADLINE_SHAPES = 5


def read(output, name):
    """All rows of the files `<backend>-<name>.csv`; numbers as floats."""
    numbers = ("_ms", "_s", "_gb_s", "kept", "others", "elements", "channels")

    def value(column, text):
        return float(text) if text and column.endswith(numbers) else text

    rows = []
    for path in sorted(output.glob(f"results/*/*-{name}.csv")):
        with path.open(newline="") as file:
            rows += [
                {column: value(column, text) for column, text in row.items()}
                for row in csv.DictReader(file)
            ]
    return rows


def grouped(rows, *columns):
    """The rows by the values of some columns, in the order of the files."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in columns)].append(row)
    return groups.items()


def providers(rows):
    """The rows of one case by their provider, those with figures."""
    return {row["provider"]: row for row in rows if row["status"] == "ok"}


def mean_ratio(cases, a, b):
    """The geometric mean of a's time over b's, over the cases that have both."""
    logs = [
        math.log(case[a]["median_ms"] / case[b]["median_ms"])
        for case in cases
        if a in case and b in case
    ]
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else ""


def distance(cases, provider):
    """The geometric mean of a provider's time over the floor."""
    floor = [
        {**case, "floor": {"median_ms": case[provider]["floor_ms"]}}
        for case in cases
        if provider in case
    ]
    return mean_ratio(floor, provider, "floor")


def time(row):
    """Median, with the 20th and the 80th percentile."""
    if row is None:
        return "refused"
    digits = max(0, 2 - math.floor(math.log10(row["median_ms"])))
    p20, median, p80 = (
        f"{row[column]:.{digits}f}" for column in ("p20_ms", "median_ms", "p80_ms")
    )
    return f"{median} ({p20} to {p80})"


def figure(row, column, digits):
    """A number that a row may lack."""
    return format(row[column], digits) if row.get(column) else ""


def table(rows):
    """Markdown from dictionaries with the same keys."""
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def disturbance(rows):
    """The largest share of the processors that others took in any of the cases."""
    shares = [row["others"] for row in rows if row.get("others", "") != ""]
    return f"{max(shares):.0%}" if shares else ""


def headline(rows):
    rows = [row for row in rows if row["dtype"] == "float32"]
    lines = []
    for (device, backend, mode), own in grouped(rows, "device", "backend", "mode"):
        cases = [providers(case) for _, case in grouped(own, "shape", "axis")]
        cases = cases[:HEADLINE_SHAPES]
        lines.append(
            {
                "device": device,
                "backend": backend,
                "mode": mode,
                "ours / Keras": mean_ratio(cases, "ours", "keras"),
                "ours / native": mean_ratio(cases, "ours", "native"),
                "ours / ours generic": mean_ratio(cases, "ours", "ours generic"),
                "ours / floor": distance(cases, "ours"),
                "Keras / floor": distance(cases, "keras"),
                "native / floor": distance(cases, "native"),
                "others took up to": disturbance(own),
            }
        )
    return table(lines)


def details(rows):
    """A folded table for each file, and why providers were refused."""
    parts = []
    for (device, _), own in grouped(rows, "device", "backend"):
        lines, refused = [], {}
        for key, case in grouped(own, "shape", "axis", "dtype", "mode"):
            shape, axis, dtype, mode = key
            name = shape if axis == "-1" else f"{shape}, axis {axis}"
            ok = providers(case)
            ours = ok.get("ours", {})
            names = [row["provider"] for row in case]
            kept = [figure(ok.get(name, {}), "kept", ".1f") for name in names]
            lines.append(
                {
                    "shape": name,
                    "dtype": dtype,
                    "mode": mode,
                    **{name: time(ok.get(name)) for name in names},
                    "floor": figure(ours, "floor_ms", ".3g"),
                    "GB/s of ours": figure(ours, "achieved_gb_s", ".0f"),
                    "of a copy": figure(ours, "copy_gb_s", ".0f"),
                    "bytes kept / input's": " ".join(kept),
                }
            )
            for row in case:
                if row["error"]:
                    refused[f"- {row['provider']}, {name}, {dtype}: {row['error']}"] = 0
        facts = own[0]
        parts += [
            f"<details><summary>{device}: {facts['framework']}</summary>",
            "Milliseconds, median (20th to 80th percentile). {date}, commit {commit}; "
            "Keras {keras}, NumPy {numpy}, Python {python}.".format(**facts),
            table(lines),
            "\n".join(refused),
            "</details>",
        ]
    return "\n\n".join(part for part in parts if part)


def models(rows):
    lines = []
    for key, case in grouped(rows, "device", "backend", "model", "mode"):
        ok = providers(case)
        lines.append(
            {
                **dict(zip(("device", "backend", "model", "mode"), key, strict=True)),
                "ours": time(ok.get("ours")),
                "Keras": time(ok.get("keras")),
                "ours / Keras": mean_ratio([ok], "ours", "keras"),
                "the first, s: Keras; ours": each(
                    case, lambda row: figure(row, "first_s", ".1f")
                ),
                "others took": disturbance(case),
            }
        )
    return table(lines)


def folding(rows):
    """A row for each model; what is measured on one backend only is blank elsewhere."""
    lines = []
    for key, case in grouped(rows, "device", "backend", "model"):
        ok = {row["provider"]: row for row in case}
        row = case[0]
        lines.append(
            {
                **dict(zip(("device", "backend", "model"), key, strict=True)),
                "folded": f"{row['folded']} of {row['normalizations']}",
                "difference, float32": scientific(row["error_float32"]),
                "float64": scientific(row["error_float64"]),
                "before": time(ok.get("before")),
                "folded, ms": time(ok.get("folded")),
                "folded / before": mean_ratio([ok], "folded", "before"),
                "others took": disturbance(case),
            }
        )
    return table(lines)


PROVIDERS = {
    "keras": "Keras's layer",
    "ours": "ours",
    "fused": "ours, activations fused",
}


def each(case, cell):
    """A cell for each provider, in one; nothing where one of them has nothing."""
    ok = providers(case)
    cells = [cell(ok[provider]) for provider in PROVIDERS if provider in ok]
    return "; ".join(cells) if all(cells) else ""


def activation(rows):
    """A row for each model: Keras's layer, ours, and ours with fused activations."""
    lines = []
    for key, case in grouped(rows, "device", "backend", "model"):
        lines.append(
            {
                **dict(zip(("device", "backend", "model"), key, strict=True)),
                "fused": case[0]["fused"],
                "MiB: Keras; ours; fused": each(case, mebibytes),
                "step, ms": each(case, lambda row: f"{float(row['median_ms']):.0f}"),
                "fused / Keras": mean_ratio([providers(case)], "fused", "keras"),
                "fused / ours": mean_ratio([providers(case)], "fused", "ours"),
                "others took": disturbance(case),
            }
        )
    return table(lines)


def peak(rows):
    """A row for each model and size of its images."""
    lines = []
    for (device, backend, name, size), case in grouped(
        rows, "device", "backend", "model", "size"
    ):
        ok = providers(case)
        ratio = float(ok["fused"]["bytes"]) / float(ok["keras"]["bytes"])
        lines.append(
            {
                "device": device,
                "backend": backend,
                "model": f"{name}, {size}x{size}",
                "peak, MiB: Keras; ours; fused": each(case, mebibytes),
                "largest batch in 8 GiB": each(case, lambda row: row["largest"]),
                "fused / Keras": f"{ratio:.2f}",
            }
        )
    return table(lines)


def plot_peak(rows, path):
    """How many images fit: a row of panels for each size, a panel for each backend."""
    backends, sizes = (
        list(dict.fromkeys(row[column] for row in rows))
        for column in ("backend", "size")
    )
    picture = Figure(
        figsize=(5 * len(backends), 3.2 * len(sizes)), layout="constrained"
    )
    axes = picture.subplots(len(sizes), len(backends), squeeze=False, sharey="row")
    for (backend, size), own in grouped(rows, "backend", "size"):
        ax = axes[sizes.index(size)][backends.index(backend)]
        names = list(dict.fromkeys(row["model"] for row in own))
        for i, (provider, label) in enumerate(PROVIDERS.items()):
            largest = {
                row["model"]: int(row["largest"])
                for row in own
                if row["provider"] == provider
            }
            places = [k + 0.27 * (i - 1) for k in range(len(names))]
            heights = [largest[name] for name in names]
            color = COLORS[provider]
            bars = ax.bar(places, heights, 0.25, color=color, label=label)
            ax.bar_label(bars, fontsize=6)
        ax.set_xticks(range(len(names)), names, rotation=20, fontsize=8)
        ax.set(title=f"{backend}, {size}x{size}")
    for row_axes in axes:
        row_axes[0].set_ylabel("images that fit in 8 GiB")
    axes[0][0].legend(fontsize=8)
    picture.savefig(path, dpi=100)


def mebibytes(row):
    return f"{float(row['bytes']) / 2**20:.0f}" if row["bytes"] else ""


def scientific(text):
    return f"{float(text):.1e}" if text else ""


def recalibration(rows):
    """A row for each way to take the statistics."""
    lines = []
    for row in rows:
        passes = {
            "moving": "moving averages of training, batch 32",
            "predict": "for comparison: `predict`, batch 256",
            "one pass": f"`recalibrate`, batch {row['batch']}",
            "layer by layer": f"a pass for each of {row['normalizations']} layers",
        }
        lines.append(
            {
                "device": row["device"],
                "backend": row["backend"],
                "statistics": passes[row["provider"]],
                # Moving averages cost no pass.
                "seconds": ""
                if row["provider"] == "moving"
                else f"{float(row['seconds']):.2g}",
                "outputs off at most, deviations": f"{float(row['off']):.2g}",
                "test loss": f"{float(row['loss']):.4f}",
                "accuracy": f"{100 * float(row['accuracy']):.2f} %",
            }
        )
    return table(lines)


def plot_growth(rows, path):
    """A panel for each backend; above by elements, below by channels."""
    rows = [row for row in rows if row["status"] == "ok"]
    columns = list(dict.fromkeys(row["backend"] for row in rows))
    sweeps = {"elements": "elements, in 64 channels", "channels": "channels"}
    picture = Figure(figsize=(4 * len(columns), 7), layout="constrained")
    axes = picture.subplots(
        len(sweeps), len(columns), squeeze=False, sharex="row", sharey="row"
    )
    for (sweep, backend, provider), own in grouped(
        rows, "sweep", "backend", "provider"
    ):
        ax = axes[list(sweeps).index(sweep)][columns.index(backend)]
        x = [row[sweep] for row in own]
        ax.plot(
            x,
            [row["median_ms"] for row in own],
            marker="o",
            markersize=3,
            color=COLORS[provider],
            label=provider,
        )
        low, high = ([row[column] for row in own] for column in ("p20_ms", "p80_ms"))
        ax.fill_between(x, low, high, color=COLORS[provider], alpha=0.2, linewidth=0)
        ax.set(xscale="log", yscale="log", title=backend, xlabel=sweeps[sweep])
        ax.grid(alpha=0.3)
    for row_axes in axes:
        row_axes[0].set_ylabel("a training step, ms")
    axes[0][0].legend()
    (size,) = {row["elements"] for row in rows if row["sweep"] == "channels"}
    device = rows[0]["device"]
    picture.suptitle(f"{device}; channels at {size / 1e6:.2g} million elements")
    picture.savefig(path, dpi=100)


def figures(output, rows, plot, name, title):
    """Draws a picture for each device; lines of Markdown that show them."""
    for (device,), own in grouped(rows, "device"):
        path = output / "results" / harness.slug(device) / f"{name}.png"
        plot(own, path)
        yield f"![{title}, {device}]({path.relative_to(output)})"


def when(rows):
    """When the rows of each backend were measured, with what; a line of Markdown."""
    facts = {row["backend"]: [] for row in rows}
    for row in rows:
        fact = f"{row['date']} at {row['commit']}"
        if fact not in facts[row["backend"]]:
            facts[row["backend"]].append(fact)
    parts = [f"{backend} {' and '.join(found)}" for backend, found in facts.items()]
    return f"Measured: {'; '.join(parts)}."


def main():
    output = harness.arguments(__doc__.splitlines()[0]).output
    parts = []
    if rows := read(output, "layer"):
        parts += ["### The layer", headline(rows), details(rows)]
    if rows := read(output, "model"):
        parts += ["### Models", when(rows), models(rows)]
    if rows := read(output, "folding"):
        parts += ["### Folded models", when(rows), folding(rows)]
    if rows := read(output, "activation"):
        parts += ["### Fused activations", when(rows), activation(rows)]
    if rows := read(output, "peak"):
        parts += ["### Peak memory", when(rows), peak(rows)]
        parts += figures(output, rows, plot_peak, "peak", "Images that fit in 8 GiB")
    if rows := read(output, "recalibration"):
        parts += ["### Recalibration", when(rows), recalibration(rows)]
    if rows := read(output, "growth"):
        parts += ["### Growth", when(rows)]
        parts += figures(output, rows, plot_growth, "growth", "Growth")

    path = output / "README.md"
    text = path.read_text() if path.exists() else f"{START}\n{END}\n"
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    parts = [before.rstrip(), START, *parts, END + after]
    path.write_text("\n\n".join(parts).lstrip())
    print(path)


if __name__ == "__main__":
    main()
