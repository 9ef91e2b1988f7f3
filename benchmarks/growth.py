"""How the cost of a training step grows with the elements, and with the channels.

    KERAS_BACKEND=torch python -m benchmarks.growth [--quick] [--output DIR]

The largest case, 100 million elements, takes about 5 GB of memory.
"""

import math
import sys

from benchmarks import comparison, harness

CHANNELS = 64
ELEMENTS = 2**22
PROVIDERS = ("ours", "keras", "native")


def cases(quick):
    """Names of the sweeps, and their cases."""
    # Three steps a decade show where the caches end.
    for exponent in range(12, 16 if quick else 25):
        rows = math.ceil(10 ** (exponent / 3) / CHANNELS)
        yield "elements", comparison.Case((rows, CHANNELS))
    elements = 2**14 if quick else ELEMENTS
    # Down to 128 rows: with fewer, what is stored as moving variance differs by more
    # than the gate allows.
    for exponent in range(0, 8 if quick else 16, 3):
        yield "channels", comparison.Case((elements // 2**exponent, 2**exponent))


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    rows = []
    for sweep, case in cases(arguments.quick):
        rows += [
            {"sweep": sweep, **row}
            for row in comparison.measure(
                case,
                timing=arguments.timing,
                modes=("training",),
                providers=PROVIDERS,
            )
        ]
    print(harness.write(arguments.output, "growth", rows))
    if comparison.ours_failed(rows):
        sys.exit("Our layer failed; see the lines above.")


if __name__ == "__main__":
    main()
