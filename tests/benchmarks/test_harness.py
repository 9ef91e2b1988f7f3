"""The benchmarks measure what they say; nothing here depends on real time."""

import itertools
import sys

import keras
import numpy as np
import pytest
from keras import ops

from benchmarks import comparison, frameworks, harness, report

CASE = comparison.Case((64, 4, 3))
TIMING = {"rounds": 5, "seconds": 0}


class Clock:
    """Time that passes only where a function says so."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def task(self, name, seconds):
        def run():
            self.now += seconds
            self.log.append(name)

        return run


def interleave(clock, tasks, *, rounds=9, seconds=1e9):
    return harness.interleave(
        {name: clock.task(name, duration) for name, duration in tasks.items()},
        synchronize=lambda: None,
        rounds=rounds,
        seconds=seconds,
        clock=clock,
    )


def test_twice_the_work_takes_twice_the_time():
    samples = interleave(Clock(), {"once": 3e-4, "twice": 6e-4})
    once, twice = (harness.summary(samples[name]) for name in ("once", "twice"))

    assert twice["median_ms"] == pytest.approx(2 * once["median_ms"])
    assert once["median_ms"] == pytest.approx(0.3)


def test_slow_seconds_hit_all_functions_alike():
    clock = Clock()
    samples = interleave(clock, {"a": 1e-2, "b": 1e-2})
    rounds = [set(pair) for pair in zip(clock.log[4::2], clock.log[5::2], strict=True)]

    assert rounds == [{"a", "b"}] * 9
    assert len(samples["a"]) == len(samples["b"]) == 9


def test_samples_of_short_functions_are_of_several_calls():
    clock = Clock()
    interleave(clock, {"short": 1e-5, "long": 1.0}, rounds=5)
    runs = [
        len(list(run)) for name, run in itertools.groupby(clock.log) if name == "short"
    ]

    assert min(runs[1:]) >= 0.99 * harness.SHORTEST_SAMPLE / 1e-5
    assert clock.log.count("long") == 2 + 5


def test_time_limits_the_rounds_but_not_below_five():
    assert len(interleave(Clock(), {"a": 1.0}, seconds=0)["a"]) == 5
    assert len(interleave(Clock(), {"a": 1.0}, seconds=6.5)["a"]) == 7


def test_the_device_is_waited_for_before_both_looks_at_the_clock():
    clock = Clock()
    pending = []

    def synchronize():
        clock.now += sum(pending)
        pending.clear()

    samples = harness.interleave(
        {"queued": lambda: pending.append(2.0)},
        synchronize=synchronize,
        rounds=5,
        seconds=1e9,
        clock=clock,
    )
    assert samples["queued"] == [2.0] * 5


def test_what_others_take_is_all_that_is_neither_idle_nor_ours(monkeypatch):
    # Ticks: user, nice, system, idle, waiting, two kinds of interrupts, stolen.
    lines = iter(["cpu 0 0 0 0 0 0 0 0 9 9\n", "cpu 60 0 10 20 5 0 0 5 9 9\n"])
    seconds = iter([(0.0, 0.0, 0, 0, 0), (0.4, 0.1, 0, 0, 0)])
    monkeypatch.setattr(harness.pathlib.Path, "read_text", lambda self: next(lines))
    monkeypatch.setattr(harness.os, "times", lambda: next(seconds))
    monkeypatch.setattr(harness.os, "sysconf", lambda name: 100)

    assert harness.others()() == pytest.approx(0.25)


class Function(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, input_shape):
        self.moving_mean = self.add_weight(shape=(1,), trainable=False)

    def call(self, x, training=None):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "share"),
    [
        (lambda x: x + 1, 0),  # nothing
        (ops.square, 1),  # the input
        (ops.exp, 1),  # the output
        (lambda x: ops.sin(ops.cos(x)), 2),  # both inputs
    ],
)
def test_bytes_kept_are_those_of_known_functions(function, share):
    x, _ = CASE.tensors()
    subject = frameworks.active().keras_layer(Function(function), CASE.shape)

    assert frameworks.active().bytes_kept(subject, x) == share * 64 * 4 * 3 * 4


def test_every_framework_provides_the_contract():
    for name in frameworks.CONTRACT:
        assert hasattr(frameworks.active(), name), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "axis"), [((256, 5), -1), ((32, 3, 4, 5), 1)])
def test_all_providers_pass_the_gate(shape, axis, dtype):
    case = comparison.Case(shape, axis, dtype)
    rows = comparison.measure(case, timing=TIMING, kept=True)

    assert [row["error"] for row in rows] == [""] * 8
    assert [row["provider"] for row in rows] == 2 * list(comparison.PROVIDERS)
    assert all(row["median_ms"] > 0 and row["rounds"] == 5 for row in rows)
    # What any of them needs is x, or as much.
    assert all(row["kept"] >= 0.99 for row in rows[:4])
    assert not comparison.ours_failed(rows)


Keras = keras.layers.BatchNormalization


class Scaled(Keras):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training) * 1.001


class NoGradient(Keras):
    def call(self, inputs, training=None):
        y = super().call(inputs, training=training)
        return ops.stop_gradient(y) + 0 * inputs * self.gamma + self.beta


class Frozen(Keras):
    def call(self, inputs, training=None):
        before = self.moving_mean * 1
        y = super().call(inputs, training=training)
        self.moving_mean.assign(before)
        return y


class Float32(Keras):
    def call(self, inputs, training=None):
        return ops.cast(super().call(inputs, training=training), "float32")


class Raising(Keras):
    def call(self, inputs, training=None):
        raise RuntimeError("no kernel for this\nand more lines")


@pytest.mark.parametrize(
    ("cls", "dtype", "message"),
    [
        (Scaled, "float32", "Refused: the output in training is off by 0.00"),
        (NoGradient, "float32", "Refused: the gradient of the inputs is off by"),
        (Frozen, "float32", "Refused: the moving mean is off by 0.0"),
        (Float32, "bfloat16", "float32"),
        (Raising, "float32", "no kernel for this"),
    ],
)
def test_the_gate_refuses_a_wrong_layer(cls, dtype, message, monkeypatch):
    monkeypatch.setitem(comparison.LAYERS, "ours", cls)
    case = comparison.Case((256, 5), dtype=dtype)
    rows = comparison.measure(case, timing=TIMING, providers=("ours", "keras"))

    assert [row["status"] for row in rows] == ["failed", "ok"] * 2
    assert message in rows[0]["error"] and "\n" not in rows[0]["error"]
    assert "median_ms" not in rows[0] and "median_ms" in rows[1]
    assert comparison.ours_failed(rows) == [rows[0], rows[2]]


def test_the_gate_looks_at_some_channels_of_large_inputs(monkeypatch):
    monkeypatch.setattr(comparison, "LARGEST_ORACLE", 300)
    case = comparison.Case((128, 7))
    gate = comparison.Gate(case, *case.tensors())
    assert gate.y.shape == (128, 3)

    rows = comparison.measure(case, timing=TIMING)
    assert {row["status"] for row in rows} == {"ok"}


def test_the_report_says_what_the_files_say(tmp_path, monkeypatch):
    rows = [
        {**row, "median_ms": factor * 10.0, "p20_ms": 9.0, "p80_ms": 41.0}
        for row, factor in zip(
            comparison.measure(CASE, timing=TIMING, modes=("training",), kept=True),
            (1, 2, 4, 0.5),
            strict=True,
        )
    ]
    rows[-1] |= {"status": "failed", "error": "Refused: too late"}
    path = harness.write(tmp_path, "layer", rows)
    harness.write(
        tmp_path,
        "growth",
        [
            {"sweep": sweep, **row}
            for row in rows[::2]
            for sweep in ("elements", "channels")
        ],
    )
    folded = {"model": "A", "folded": 3, "normalizations": 4, "error_float32": 1e-7}
    folded |= {"error_float64": "", "p20_ms": 1.0, "p80_ms": 9.0}
    times = {"before": 4.0, "folded": 2.0}
    rows = [{**folded, "provider": p, "median_ms": ms} for p, ms in times.items()]
    harness.write(tmp_path, "folding", rows)
    fused = {"model": "B", "fused": 5, "status": "ok"}
    sizes = {"keras": (4, 40.0), "ours": (2, 20.0), "fused": (1, 10.0)}
    rows = [
        {
            **fused,
            "provider": provider,
            "bytes": size * 2**20,
            "median_ms": ms,
        }
        for provider, (size, ms) in sizes.items()
    ]
    harness.write(tmp_path, "activation", rows)
    peaks = [{**row, "size": 8, "largest": i} for i, row in enumerate(rows)]
    harness.write(tmp_path, "peak", peaks)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{report.START}\nold\n{report.END}\n\nafter\n")
    monkeypatch.setattr(sys, "argv", ["report", "--output", str(tmp_path)])
    report.main()
    text = readme.read_text()
    report.main()

    assert readme.read_text() == text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "\nold\n" not in text
    # ours / Keras, ours / native and ours / ours generic
    assert "| training | 0.25 |  | 0.50 |" in text
    assert "| 10.0 (9.0 to 41.0) | 20.0 (9.0 to 41.0) |" in text
    assert "| refused |" in text and "native, 64x4x3, float32: Refused: too" in text
    assert "| A | 3 of 4 | 1.0e-07 |  | 4.00 (1.00 to 9.00) | 2.00 (" in text
    assert "| B | 5 | 4; 2; 1 | 40; 20; 10 | 0.25 | 0.50 |" in text
    assert "| B, 8x8 | 4; 2; 1 | 0; 1; 2 | 0.25 |" in text
    for name in ("growth", "peak"):
        assert (path.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")


SIZE = 2**27


def peaks():
    """Of loops that hold nothing, nothing, and what they made; each makes one more."""

    def peak(count, at_once):
        def function():
            held = []
            for _ in range(count):
                held = [*held, np.ones(SIZE, "uint8")] if at_once else []
                np.ones(SIZE, "uint8")

        return harness.peak_memory(function)

    return peak(1, False), peak(3, False), peak(1, True)


def test_the_peak_of_a_call_is_what_there_is_at_once():
    # A process of its own: here other tests' memory is given back meanwhile.
    one, again, two = harness.in_new_process(peaks)
    assert abs(again - one) < 0.1 * SIZE
    assert abs(two - one - SIZE) < 0.1 * SIZE


def test_files_have_all_columns_and_the_environment(tmp_path):
    path = harness.write(tmp_path, "layer", [{"a": 1.23456789}, {"a": 2, "b": "x, y"}])
    header, first, second = path.read_text().splitlines()

    assert header.startswith("a,b,device,") and header.endswith(",date,commit")
    assert first.startswith("1.2346,,") and second.startswith('2,"x, y",')
    assert (
        np.__version__ in first and path.name == f"{keras.config.backend()}-layer.csv"
    )
