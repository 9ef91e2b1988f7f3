"""The layer: ours, ours generic, Keras's and the framework's own, side by side.

    KERAS_BACKEND=torch python -m benchmarks.layer [--quick] [--output DIR]

Ends with an error if ours doesn't pass the gate; others that don't are in the file.
"""

import sys

from benchmarks import comparison, harness

# From tables of rows to the ends of a ResNet's image sizes, channels last and first.
SHAPES = (
    ((256, 2048), -1),
    ((1024, 512), -1),
    ((32, 56, 56, 64), -1),
    ((32, 14, 14, 256), -1),
    ((32, 64, 28, 28), 1),
    ((4, 16, 28, 28, 32), -1),
    # Where a call costs more than the arithmetic.
    ((256, 64), -1),
    ((64, 16), -1),
    ((8, 7, 7, 64), -1),
)
QUICK = (((256, 64), -1), ((4, 16, 8, 8), 1), ((2, 4, 8, 8, 16), -1))


def main():
    arguments = harness.arguments(__doc__.splitlines()[0])
    rows = []
    for dtype in ("float32", "bfloat16"):
        for shape, axis in QUICK if arguments.quick else SHAPES:
            case = comparison.Case(shape, axis, dtype)
            rows += comparison.measure(case, timing=arguments.timing, kept=True)
    print(harness.write(arguments.output, "layer", rows))
    if comparison.ours_failed(rows):
        sys.exit("Our layer failed; see the lines above.")


if __name__ == "__main__":
    main()
