# ruff: noqa: E501 (a case a line)
"""Convolution: every stride, dilation, padding, grouping and tail that takes a path of its own."""

from __future__ import annotations

from tests.cases import Case

CONV = [
    (((2, 3, 8, 8), (4, 3, 3, 3), (4,)), dict(), "the plain case, with bias"),
    (((2, 5, 9, 7), (7, 5, 3, 3)), dict(padding=1), "odd channels, no bias"),
    (((1, 16, 14, 14), (8, 16, 1, 1), (8,)), dict(), "1×1: a matrix product"),
    (((2, 16, 7, 7), (40, 16, 1, 1)), dict(stride=2), "1×1 with stride: most inputs are unused"),
    (((1, 8, 13, 11), (6, 8, 3, 3), (6,)), dict(stride=2, padding=1), "stride 2: four phases in the input gradient"),
    (((1, 4, 13, 11), (5, 4, 2, 3)), dict(stride=(3, 2), padding=(0, 1)), "stride > kernel: phases without a tap"),
    (((1, 4, 15, 15), (4, 4, 3, 3)), dict(padding=2, dilation=2), "dilation"),
    (((1, 3, 15, 14), (4, 3, 3, 3)), dict(stride=2, padding=2, dilation=3), "stride and dilation without common factor"),
    (((1, 3, 17, 16), (4, 3, 3, 2)), dict(stride=4, padding=3, dilation=2), "stride and dilation with a common factor"),
    (((1, 4, 9, 9), (4, 4, 3, 3), (4,)), dict(padding="same"), "'same', symmetric"),
    (((1, 4, 9, 8), (4, 4, 2, 4)), dict(padding="same", dilation=(1, 3)), "'same', asymmetric"),
    (((1, 4, 9, 9), (4, 4, 3, 3)), dict(padding="valid"), "'valid'"),
    (((1, 3, 21, 23), (8, 3, 7, 7), (8,)), dict(stride=2, padding=3), "the ResNet stem: few channels"),
    (((1, 3, 12, 12), (4, 3, 1, 7)), dict(padding=(0, 3)), "1×7"),
    (((1, 3, 6, 5), (4, 3, 6, 5), (4,)), dict(), "the kernel covers the input"),
    (((1, 2, 3, 3), (4, 2, 5, 5)), dict(padding=2), "the kernel is larger than the input"),
    (((2, 8, 9, 9), (12, 2, 3, 3), (12,)), dict(groups=4, padding=1), "groups"),
    (((1, 24, 10, 10), (24, 12, 3, 3)), dict(groups=2, padding=1), "two groups, a partial panel each"),
    (((2, 6, 9, 11), (6, 1, 3, 3), (6,)), dict(groups=6, padding=1), "depthwise"),
    (((1, 19, 12, 37), (19, 1, 5, 5)), dict(groups=19, padding=2, stride=2), "depthwise, stride 2, odd channels"),
    (((1, 5, 10, 10), (15, 1, 3, 3), (15,)), dict(groups=5), "depthwise with multiplier 3"),
    (((1, 70, 9, 9), (140, 1, 3, 3)), dict(groups=70, padding=1, stride=2), "multiplier 2, two channel blocks"),
    (((1, 4, 15, 15), (4, 1, 3, 3)), dict(groups=4, padding=2, dilation=2, stride=3), "depthwise, dilation and stride"),
    (((1, 3, 16, 16), (3, 1, 7, 7)), dict(groups=3, padding=3), "depthwise 7×7"),
    (((1, 8, 5, 5), (8, 1, 2, 2)), dict(groups=8, stride=3), "depthwise, phases without a tap"),
    (((2, 1, 6, 6), (3, 1, 3, 3), (3,)), dict(), "one input channel"),
    (((2, 6, 6), (3, 2, 3, 3), (3,)), dict(), "unbatched"),
    (((0, 2, 6, 6), (3, 2, 3, 3), (3,)), dict(), "an empty batch"),
    (((1, 20, 1, 1), (17, 20, 1, 1), (17,)), dict(), "one pixel"),
]  # fmt: skip
LARGE = [
    (((2, 96, 20, 21), (100, 96, 3, 3), (100,)), dict(padding=1), "k longer than one block, positions than one tile"),
    (((1, 300, 9, 9), (70, 300, 1, 1), (70,)), dict(), "more channels than a block is deep"),
    (((1, 64, 30, 30), (150, 64, 3, 3)), dict(stride=2, padding=1), "sums in scratch memory, in two parts"),
    (((3, 130, 7, 7), (260, 130, 3, 3)), dict(padding=1), "few positions, many channels"),
    (((1, 70, 40, 40), (70, 1, 5, 5), (70,)), dict(groups=70, padding=2), "depthwise, several bands and blocks"),
]  # fmt: skip
TRANSPOSE = [
    (((2, 4, 5, 6), (4, 3, 3, 3), (3,)), dict(), "the plain case"),
    (((1, 8, 5, 5), (8, 6, 4, 4), (6,)), dict(stride=2, padding=1), "upsampling by 2"),
    (((1, 4, 5, 5), (4, 3, 3, 3)), dict(stride=2, padding=1, output_padding=1), "output_padding"),
    (((1, 4, 5, 4), (4, 3, 2, 2), (3,)), dict(stride=3), "outputs that get the bias alone"),
    (((1, 6, 5, 5), (6, 2, 3, 3), (4,)), dict(groups=2, dilation=2), "groups and dilation"),
    (((1, 6, 5, 5), (6, 1, 3, 3)), dict(groups=6, stride=2, padding=1), "depthwise"),
    (((4, 5, 5), (4, 3, 3, 3), (3,)), dict(), "unbatched"),
    (((0, 4, 5, 5), (4, 3, 3, 3)), dict(), "an empty batch"),
    (((1, 20, 12, 12), (20, 33, 3, 3), (33,)), dict(stride=2), "several vectors of channels"),
]  # fmt: skip

CASES = (
    [Case("conv2d", *row) for row in CONV]
    + [Case("conv2d", *row, large=True) for row in LARGE]
    + [Case("conv_transpose2d", *row) for row in TRANSPOSE]
)
