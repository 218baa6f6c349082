"""Pooling: windows that fit, overlap, hang over the edge, or divide the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.cases import FLOATING, JUDGED, TORCH_VERSION, Case

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
    (((1, 96, 7, 5),), dict(kernel_size=3, stride=2, padding=1), "many channels, whole vectors"),
    (((3, 6, 6),), dict(kernel_size=2), "unbatched"),
    (((0, 3, 6, 6),), dict(kernel_size=2), "an empty batch"),
    (((1, 2, 3, 70),), dict(kernel_size=(3, 40), stride=(1, 7)), "window wider than a tile"),
    (
        ((1, 1, 4, 4200),),
        dict(kernel_size=(2, 3), stride=(2, 1), padding=(0, 1)),
        "rows longer than a buffer",
    ),
    (
        ((1, 2, 3, 300),),
        dict(kernel_size=(2, 290), stride=(1, 3)),
        "a window of more taps than are tabulated",
    ),
    (((1, 8, 16, 16),), dict(kernel_size=3, stride=3, ceil_mode=True, padding=1), "stride 3, cut and padded"),
    (((1, 37, 6, 6),), dict(kernel_size=3, padding=1), "channels: whole vectors, some, and a remainder"),
    (((2, 16, 6, 6),), dict(kernel_size=3, stride=2, padding=1), "channels: whole vectors only"),
    (((2, 8, 6, 9),), dict(kernel_size=(2, 3), stride=(2**30, 2)), "too large a stride for 32-bit indices"),
    (((2, 3, 8, 6),), dict(kernel_size=(8, 6), count_include_pad=False), "windows that are planes"),
    # Rows of inputs and of outputs are whole vectors, of which there are several.
    (((1, 3, 6, 32),), dict(kernel_size=2), "rows of vectors, k = s"),
    (((2, 3, 5, 32),), dict(kernel_size=3, stride=2, padding=1), "rows of vectors, halved"),
    (((1, 2, 5, 24),), dict(kernel_size=3, stride=1, padding=1), "rows of vectors, neighbours on both sides"),
    (
        ((1, 2, 7, 32),),
        dict(kernel_size=(4, 3), stride=(3, 2), padding=1, ceil_mode=True, count_include_pad=False),
        "rows of vectors, divisors that differ",
    ),
]
ADAPTIVE_AVG = [
    (((2, 3, 8, 8),), dict(output_size=1), "global pooling"),
    (((2, 3, 8, 8),), dict(output_size=4), "everything divides"),
    (((2, 5, 7, 11),), dict(output_size=(3, 4)), "windows overlap"),
    (((1, 35, 7, 7),), dict(output_size=1), "global pooling, channels not a multiple of a vector"),
    (((2, 72, 6, 7),), dict(output_size=1), "global pooling, whole vectors of channels"),
    (((1, 1, 2, 4300),), dict(output_size=(1, 3)), "rows longer than a buffer"),
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

# fp64 is torch's own order of summation exactly, which no other order meets to two units.
LARGE_PLANES = [
    Case(
        "adaptive_avg_pool2d",
        ((2, 3, *size),),
        dict(output_size=1),
        f"large planes, {why}",
        dtypes=(torch.float32, torch.float16, torch.bfloat16),
    )
    for size, why in (((64, 257), "of whole vectors"), ((129, 131), "which whole vectors do not divide"))
]
MANY_TAPS = Case(
    "avg_pool2d",
    ((1, 3, 19, 23),),
    dict(kernel_size=13, stride=1, padding=6),
    "many windows cover an input",
    dtypes=(torch.float32, torch.float16, torch.bfloat16),
)

MAX = [
    (((2, 3, 8, 8),), dict(kernel_size=2), "k = s, everything divides"),
    (((2, 3, 9, 7),), dict(kernel_size=2, return_indices=True), "k = s with a remainder, positions"),
    (((1, 5, 11, 13),), dict(kernel_size=3, stride=2, padding=1), "overlap, padding, prime sizes"),
    (((1, 5, 11, 13),), dict(kernel_size=3, stride=2, padding=1, return_indices=True), "with positions"),
    (((1, 8, 17, 31),), dict(kernel_size=3, stride=1, padding=1, return_indices=True), "stride 1"),
    (((1, 1, 9, 37),), dict(kernel_size=3, stride=2, padding=1), "one channel: both layouts at once"),
    # Rows of inputs and of outputs are whole vectors, of which there are several.
    (((1, 3, 6, 32),), dict(kernel_size=2), "rows of vectors, k = s"),
    (((1, 3, 6, 32),), dict(kernel_size=2, return_indices=True), "rows of vectors, k = s, positions"),
    (((2, 3, 5, 32),), dict(kernel_size=3, stride=2, padding=1), "rows of vectors, halved"),
    (((1, 2, 5, 24),), dict(kernel_size=3, stride=1, padding=1), "rows of vectors, neighbours on both sides"),
    (
        ((1, 2, 7, 32),),
        dict(kernel_size=(2, 3), stride=(3, 2), padding=1, dilation=(2, 1), return_indices=True),
        "rows of vectors, dilated across them",
    ),
    (((2, 19, 13, 13),), dict(kernel_size=3, stride=2, dilation=2, return_indices=True), "dilation"),
    (((1, 3, 23, 29),), dict(kernel_size=(3, 2), stride=(2, 3), dilation=(3, 5)), "dilation, all different"),
    (((1, 3, 10, 11),), dict(kernel_size=3, stride=2, dilation=3, padding=1), "dilation steps over the edge"),
    (((1, 96, 7, 5),), dict(kernel_size=3, stride=2, padding=1), "many channels, whole vectors"),
    (((2, 4, 7, 7),), dict(kernel_size=3, stride=2, ceil_mode=True), "ceil_mode: the last window is cut"),
    (
        ((1, 3, 14, 14),),
        dict(kernel_size=3, stride=3, padding=1, ceil_mode=True, return_indices=True),
        "ceil_mode and padding, stride 3",
    ),
    (((1, 1, 5, 5),), dict(kernel_size=2, stride=4), "stride > kernel: inputs that no window covers"),
    (((1, 16, 1, 1),), dict(kernel_size=1, return_indices=True), "one pixel"),
    (((2, 16, 7, 6),), dict(kernel_size=3, stride=2, padding=1), "channels: whole vectors only"),
    (
        ((2, 8, 6, 9),),
        dict(kernel_size=(1, 3), stride=2, dilation=(2**30, 2), return_indices=True),
        "too large a dilation for 32-bit indices",
    ),
    (((2, 37, 5, 33),), dict(kernel_size=5, stride=1, padding=2), "channels: whole vectors and a remainder"),
    (
        ((1, 8, 13, 13),),
        dict(kernel_size=13, stride=1, padding=6, return_indices=True),
        "SPP: a large overlap",
    ),
    (
        ((1, 2, 3, 70),),
        dict(kernel_size=(3, 40), stride=(1, 7), return_indices=True),
        "windows wider than a vector",
    ),
    (((1, 2, 3, 300),), dict(kernel_size=(2, 290), stride=(1, 3)), "more taps than are tabulated"),
    (
        ((1, 1, 4, 4200),),
        dict(kernel_size=(2, 3), stride=(2, 1), padding=(0, 1)),
        "rows longer than a buffer",
    ),
    (((1, 1, 2, 9000),), dict(kernel_size=(2, 4100), stride=(1, 2500)), "windows longer than a buffer"),
    (((3, 6, 6),), dict(kernel_size=2, return_indices=True), "unbatched"),
    (((0, 3, 6, 6),), dict(kernel_size=2, return_indices=True), "an empty batch"),
]
ADAPTIVE_MAX = [
    (((2, 3, 8, 8),), dict(output_size=1), "global pooling"),
    (((2, 19, 7, 7),), dict(output_size=1, return_indices=True), "global pooling, positions, odd channels"),
    (((2, 5, 7, 11),), dict(output_size=(3, 4), return_indices=True), "windows overlap"),
    (((1, 3, 3, 4),), dict(output_size=(5, 7), return_indices=True), "more outputs than inputs"),
    (((1, 3, 6, 9),), dict(output_size=(None, 3)), "None keeps the size"),
    (((1, 17, 12, 12),), dict(output_size=6), "PSP bins, odd channels"),
    (((4, 9, 9),), dict(output_size=2, return_indices=True), "unbatched"),
    (((0, 4, 9, 9),), dict(output_size=2), "an empty batch"),
    (((1, 1, 2, 4300),), dict(output_size=(1, 3), return_indices=True), "rows longer than a buffer"),
]
# Of long rows an older torch rounds the positions to the dtype of the values.
OF_LONG_ROWS = FLOATING if TORCH_VERSION >= JUDGED else FLOATING[:2]


def distinct(x: Tensor, **_: Any) -> tuple[Tensor]:
    """In fp64, where gradients are checked by differences, no two values are near each other."""
    if x.dtype != torch.float64:
        return (x,)
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(3))
    values = (order - x.numel() / 2) * (6 / max(x.numel(), 1))
    return (torch.empty_like(x).copy_(values.view(x.shape)),)


def ties(x: Tensor, **_: Any) -> tuple[Tensor]:
    """Few distinct values, so that most windows hold several maxima."""
    return (x.round().clamp(-1, 1),)


def extremes(x: Tensor, **_: Any) -> tuple[Tensor]:
    """NaN and infinities, alone and several to a window; a corner of -inf only."""
    flat = x.clone(memory_format=torch.preserve_format)
    flat[..., ::3, ::2] = float("nan")
    flat[..., 1::4, :] = float("inf")
    flat[..., :5, :5] = -float("inf")
    return (flat,)


SPECIAL = [
    Case(
        "max_pool2d",
        ((1, 9, 12, 20),),
        dict(kernel_size=k, stride=s, padding=k // 2, return_indices=True),
        why,
        make,
        wrt=(),
    )
    for k, s in ((2, 2), (3, 2), (5, 1))
    for make, why in ((ties, "ties go to the first"), (extremes, "NaN wins, -inf has a position"))
] + [
    Case(
        "adaptive_max_pool2d",
        ((1, 9, 12, 20),),
        dict(output_size=(5, 6), return_indices=True),
        why,
        make,
        wrt=(),
    )
    for make, why in ((ties, "ties go to the first"), (extremes, "NaN wins, -inf has a position"))
]


def permuted(x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x, and for each plane its own distinct indices in no order, in x's layout."""
    generator = torch.Generator().manual_seed(2)
    count = x.shape[-1] * x.shape[-2]
    planes = [
        torch.randperm(size[0] * size[1], generator=generator)[:count] for _ in range(x.shape[:-2].numel())
    ]
    indices = torch.empty_like(x, dtype=torch.int64)
    if planes:
        indices.copy_(torch.stack(planes).view(x.shape))
    return x, indices


def unpool(shape: tuple[int, ...], size: tuple[int, int], kwargs: dict[str, Any], reason: str) -> Case:
    return Case("max_unpool2d", (shape,), kwargs, reason, lambda x, **_: permuted(x, size), wrt=(0,))


UNPOOL = [
    unpool((2, 3, 4, 4), (8, 8), dict(kernel_size=2), "k = s"),
    unpool((1, 5, 4, 3), (9, 7), dict(kernel_size=2, output_size=(9, 7)), "a given size"),
    unpool((1, 5, 4, 3), (9, 7), dict(kernel_size=2, output_size=[1, 5, 9, 7]), "a whole shape"),
    unpool((1, 8, 6, 7), (11, 13), dict(kernel_size=3, stride=2, padding=1), "overlap and padding"),
    unpool((2, 70, 5, 5), (10, 10), dict(kernel_size=2), "more channels than a block"),
    unpool((1, 1, 16, 16), (32, 32), dict(kernel_size=2), "one plane: threads share it"),
    unpool((3, 4, 4), (8, 8), dict(kernel_size=2), "unbatched"),
    unpool((0, 3, 4, 4), (8, 8), dict(kernel_size=2), "an empty batch"),
]

CASES = (
    [Case("avg_pool2d", *row) for row in AVG]
    + [Case("adaptive_avg_pool2d", *row) for row in ADAPTIVE_AVG]
    + LARGE_PLANES
    + [Case("max_pool2d", *row, distinct) for row in MAX]
    + [Case("adaptive_max_pool2d", *row, distinct) for row in ADAPTIVE_MAX[:-1]]
    + [Case("adaptive_max_pool2d", *ADAPTIVE_MAX[-1], distinct, dtypes=OF_LONG_ROWS)]
    + SPECIAL
    + UNPOOL
    + [MANY_TAPS, EMPTY_OUTPUT]
)
