"""Small images, 70,000 of them or with 70,000 channels: more than 65,535, where 16 bits end, and a GPU's grid
along y and z.

Not among `all_cases`, whose every dtype, layout and oracle would take too long: tests/test_many.py asks them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.cases import Case
from tests.cases.batch_norm import _case as norm

N = 70_000


def _positions(y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """One place of the 2 by 2 in each plane, another one from plane to plane."""
    return y, (torch.arange(y.numel()) % 4).view(y.shape)


IMAGES = [
    (
        ((N, 2, 2, 2), (3, 2, 2, 2), (3,)),
        dict(),
        "a filter as large as the image: gradients sum over all images",
    ),
    (((N, 3, 2, 2), (4, 3, 1, 1)), dict(), "1×1: a pixel's number passes 2¹⁸"),
    (((1, N, 1, 1), (2, N, 1, 1), (2,)), dict(), "a sum over 70,000 channels"),
    (((1, 2, 2, 2), (N, 2, 1, 1), (N,)), dict(), "70,000 filters, and biases"),
]
GROUPS = [
    (((1, N, 2, 2), (N, 1, 2, 2), (N,)), dict(groups=N), "depthwise: as many groups as channels"),
]
TRANSPOSED = [
    (((N, 2, 1, 1), (2, 3, 2, 2), (3,)), dict(), "70,000 images"),
    (((1, 2, 1, 1), (2, N, 1, 1), (N,)), dict(), "70,000 output channels"),
]
PLANES = [((N, 1, 2, 2), "70,000 images"), ((1, N, 2, 2), "70,000 channels")]
POOLS: list[tuple[str, dict[str, Any]]] = [
    ("avg_pool2d", dict(kernel_size=2)),
    ("avg_pool2d", dict(kernel_size=2, stride=1, padding=1)),
    ("max_pool2d", dict(kernel_size=2, return_indices=True)),
    ("max_pool2d", dict(kernel_size=2, stride=1, padding=1)),
    ("adaptive_avg_pool2d", dict(output_size=1)),
    ("adaptive_avg_pool2d", dict(output_size=(1, 3))),
    ("adaptive_max_pool2d", dict(output_size=(1, 2), return_indices=True)),
    ("interpolate", dict(size=(3, 2))),
    ("interpolate", dict(scale_factor=2)),
    ("interpolate", dict(size=(3, 1), mode="bilinear")),
    ("interpolate", dict(size=(1, 3), mode="bicubic")),
    ("interpolate", dict(size=(1, 2), mode="bilinear", antialias=True)),
    ("interpolate", dict(size=1, mode="area")),
]

CASES = (
    [Case("conv2d", *row, large=True) for row in IMAGES]
    + [Case("conv_transpose2d", *row, large=True) for row in TRANSPOSED]
    + [Case(op, (shape,), options, why, large=True) for op, options in POOLS for shape, why in PLANES]
    + [
        Case("max_unpool2d", (shape,), dict(kernel_size=2), why, _positions, wrt=(0,), large=True)
        for shape, why in (((N, 1, 1, 1), "70,000 images"), ((1, N, 1, 1), "70,000 channels"))
    ]
    + [
        norm(shape, dict(training=training), why, large=True)
        for training in (True, False)
        for shape, why in (
            ((N, 2, 1, 1), "70,000 images of one pixel"),
            ((N, 1, 2, 2), "70,000 images, one channel"),
            ((2, N, 1, 1), "70,000 channels, one pixel"),
            ((1, N, 2, 2), "70,000 channels, one image"),
        )
    ]
)
# The gradient of the weight sums over all images; on which side its error falls is luck: the terms bound it.
DEPTHWISE = [
    Case(
        "conv2d",
        ((N, 2, 2, 2), (2, 1, 2, 2)),
        dict(groups=2, padding=1),
        "depthwise, padded",
        wrt=(0, 1),
        large=True,
    ),
    Case(
        "conv_transpose2d",
        ((N, 2, 2, 1), (2, 1, 2, 2)),
        dict(stride=2, groups=2),
        "depthwise, with phases",
        wrt=(0, 1),
        large=True,
    ),
]
# Of these the emulation takes some 16 s each: one layout is enough there.
SLOW = [Case("conv2d", *row, large=True) for row in GROUPS] + [
    Case(
        "conv_transpose2d",
        ((1, N, 2, 2), (N, 1, 2, 2)),
        dict(groups=N),
        "depthwise: as many groups as channels",
        large=True,
    )
]
