"""Pooling: windows that fit, overlap, hang over the edge, or divide the input."""

from __future__ import annotations

from tests.cases import Case

AVG = [
    (((2, 3, 8, 8),), dict(kernel_size=2), "k = s, everything divides: the fast path"),
    (((2, 3, 9, 7),), dict(kernel_size=2), "k = s with a remainder that no window covers"),
    (((1, 5, 11, 13),), dict(kernel_size=3, stride=2, padding=1), "overlap, padding, prime sizes"),
    (((1, 8, 6, 10),), dict(kernel_size=(2, 3), stride=(1, 2), padding=(0, 1)), "different along H and W"),
    (((2, 4, 7, 7),), dict(kernel_size=3, stride=2, ceil_mode=True), "ceil_mode: the last window is cut"),
    (((1, 3, 7, 7),), dict(kernel_size=3, stride=2, padding=1, count_include_pad=False), "edges count less"),
    (((1, 2, 6, 6),), dict(kernel_size=3, padding=1, divisor_override=5), "the divisor is given"),
    (((1, 2, 6, 6),), dict(kernel_size=2, divisor_override=-3), "a negative divisor is legal in torch"),
    (((1, 1, 5, 5),), dict(kernel_size=2, stride=4), "stride > kernel: inputs that no window covers"),
    (((1, 16, 1, 1),), dict(kernel_size=1), "one pixel"),
    (((2, 19, 5, 33),), dict(kernel_size=5, stride=1, padding=2), "C and W not multiples of a vector"),
    (((3, 6, 6),), dict(kernel_size=2), "unbatched"),
    (((0, 3, 6, 6),), dict(kernel_size=2), "an empty batch"),
    (((1, 2, 3, 70),), dict(kernel_size=(3, 40), stride=(1, 7)), "window wider than a tile"),
]
ADAPTIVE_AVG = [
    (((2, 3, 8, 8),), dict(output_size=1), "global pooling"),
    (((2, 3, 8, 8),), dict(output_size=4), "everything divides"),
    (((2, 5, 7, 11),), dict(output_size=(3, 4)), "windows overlap"),
    (((1, 3, 3, 4),), dict(output_size=(5, 7)), "more outputs than inputs"),
    (((1, 3, 6, 9),), dict(output_size=(None, 3)), "None keeps the size"),
    (((1, 17, 12, 12),), dict(output_size=6), "PSP bins, odd channels"),
    (((4, 9, 9),), dict(output_size=2), "unbatched"),
    (((0, 4, 9, 9),), dict(output_size=2), "an empty batch"),
]

EMPTY_OUTPUT = Case(
    "adaptive_avg_pool2d",
    ((2, 3, 6, 6),),
    dict(output_size=0),
    "an empty output; torch has no backward for it",
    wrt=(),
)

CASES = (
    [Case("avg_pool2d", *row) for row in AVG]
    + [Case("adaptive_avg_pool2d", *row) for row in ADAPTIVE_AVG]
    + [EMPTY_OUTPUT]
)
