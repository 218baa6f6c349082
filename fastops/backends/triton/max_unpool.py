"""Max unpooling and its transpose: csrc/indexed.h, in Triton.

Of several elements with one index the last wins: a first kernel finds, for each place of the result, the
largest number of an element that wants it (a maximum of integers, the same in whatever order); these are
positions, and max pooling's gather writes every place once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.geometry import tile
from fastops.backends.triton.pool import gather_kernel
from fastops.backends.triton.runtime import Launch, Run, Tile, index_type


@triton.jit
def winners_kernel(
    indices, winners, report, PIXELS, C, PLANE, OUT_PLANE,
    INDEX: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    index = tl.load(indices + pixel * C + channel, mask=exists, other=0)
    valid = (index >= 0) & (index < OUT_PLANE)
    image = pixel // PLANE
    to = (image * OUT_PLANE + tl.where(valid, index, 0).to(INDEX)) * C + channel
    number = (pixel - image * PLANE + tl.zeros((BP, BC), INDEX)).to(winners.dtype.element_ty)
    tl.atomic_max(winners + to, number, mask=exists & valid)
    if report is not None:
        bad = tl.max(tl.max(tl.where(exists & valid, 0, exists.to(tl.int32)), 1), 0)
        tl.store(report, 1, mask=bad > 0)


@triton.jit
def unpool_adjoint_kernel(
    dy, indices, winners, dx, PIXELS, C, PLANE, OUT_PLANE,
    INDEX: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    at = pixel * C + channel
    index = tl.load(indices + at, mask=exists, other=-1)
    valid = exists & (index >= 0) & (index < OUT_PLANE)
    image = pixel // PLANE
    place = (image * OUT_PLANE + tl.where(valid, index, 0).to(INDEX)) * C + channel
    won = valid & (tl.load(winners + place, mask=valid, other=-1).to(INDEX) == pixel - image * PLANE)
    tl.store(dx + at, tl.load(dy + place, mask=won, other=0), mask=exists)


def _prepare(p: _C.UnpoolParams) -> tuple[Launch, dict[str, Any], Any]:
    plane, out_plane = p.in_[1] * p.in_[2], p.out[1] * p.out[2]
    images = p.n * p.c
    planes = {
        "PLANE": plane,
        "OUT_PLANE": out_plane,
        "INDEX": index_type(images * plane, images * out_plane),
    }
    tiles = Tile(p.channels_last, p.n, p.c, plane, p.dtype)
    narrow = torch.int32 if plane < 2**31 else torch.int64

    def empty(like: Tensor) -> Tensor:
        return torch.full((images * out_plane,), -1, dtype=narrow, device=like.device)

    return Launch(winners_kernel, tiles.programs, **planes, **tiles.arguments()), planes, empty


def max_unpool(p: _C.UnpoolParams) -> Run:
    find, planes, empty = _prepare(p)
    tiles = Tile(p.channels_last, p.n, p.c, p.out[1] * p.out[2], p.dtype)
    write = Launch(gather_kernel, tiles.programs, **planes, **tiles.arguments())

    def run(x: Tensor, indices: Tensor, y: Tensor, report: Tensor) -> None:
        winners = empty(x)
        find(indices, winners, report)
        write(x, winners, y)

    return run


def max_unpool_adjoint(p: _C.UnpoolParams) -> Run:
    find, planes, empty = _prepare(p)
    tiles = Tile(p.channels_last, p.n, p.c, p.in_[1] * p.in_[2], p.dtype)
    read = Launch(unpool_adjoint_kernel, tiles.programs, **planes, **tiles.arguments())

    def run(dy: Tensor, indices: Tensor, dx: Tensor) -> None:
        winners = empty(dy)
        find(indices, winners, None)
        read(dy, indices, winners, dx)

    return run
