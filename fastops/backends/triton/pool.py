"""Pooling by windows, plain and adaptive, and its transposes: csrc/pool.h and csrc/indexed.h, in Triton.

A program has a tile of results, and goes through all the taps that any of its windows may have.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastops import _C
from fastops.backends.triton.geometry import (
    ceil_div,
    place,
    tile,
    window,
    window_count,
    windows_covering,
)
from fastops.backends.triton.runtime import Launch, Run, Tile, accumulator, index_type
from fastops.backends.triton.runtime import ceil_div as ceil_div_of


@triton.jit
def avg_pool_kernel(
    x, y, PIXELS, C, H, W, P, Q, SH, SW, PH, PW, DIVISOR,
    R: tl.constexpr, S: tl.constexpr, ADAPTIVE: tl.constexpr, PADDING_COUNTS: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, p, q = place(pixel, P, Q)
    h0, h1 = window(p, H, P, R, SH, PH, ADAPTIVE)
    w0, w1 = window(q, W, Q, S, SW, PW, ADAPTIVE)
    acc = tl.zeros((BP, BC), ACC)
    for r in range(R):
        h = h0 + r
        row = n * H + h
        for s in range(S):
            w = w0 + s
            inside = exists & (h >= 0) & (h < h1) & (w >= 0) & (w < w1)
            acc += tl.load(x + (row * W + w) * C + channel, mask=inside, other=0).to(ACC)
    if DIVISOR is None:
        count = window_count(p, H, P, R, SH, PH, ADAPTIVE, PADDING_COUNTS) * window_count(
            q, W, Q, S, SW, PW, ADAPTIVE, PADDING_COUNTS
        )
        acc = acc / count.to(ACC)
    else:
        acc = acc / DIVISOR
    tl.store(y + pixel * C + channel, acc.to(y.dtype.element_ty), mask=exists)


SHORT_SUM = tl.constexpr(16)


@triton.jit
def avg_pool_wide_kernel(
    x, y, PIXELS, C, H, W, P, Q, SH, SW, PH, PW, DIVISOR,
    R: tl.constexpr, S: tl.constexpr, ADAPTIVE: tl.constexpr, PADDING_COUNTS: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The same where windows have many taps: TAPS sums of each, which are added up in the end. A long sum is
    one of short sums: of a constant it would be rounded the same way thousands of times."""
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, p, q = place(pixel[:, None, :], P, Q)
    h0, h1 = window(p, H, P, R, SH, PH, ADAPTIVE)
    w0, w1 = window(q, W, Q, S, SW, PW, ADAPTIVE)
    acc = tl.zeros((BP, TAPS, BC), ACC)
    for begin in range(0, R * S, TAPS * SHORT_SUM):
        some = tl.zeros((BP, TAPS, BC), ACC)
        for first in range(begin, tl.minimum(begin + TAPS * SHORT_SUM, R * S), TAPS):
            tap = first + tl.arange(0, TAPS).to(INDEX)[None, :, None]
            h = h0 + tap // S
            w = w0 + tap % S
            inside = exists[:, None, :] & (tap < R * S) & (h >= 0) & (h < h1) & (w >= 0) & (w < w1)
            some += tl.load(x + ((n * H + h) * W + w) * C + channel[:, None, :], mask=inside, other=0).to(ACC)
        acc += some
    sum = tl.sum(acc, 1)
    if DIVISOR is None:
        n, p, q = place(pixel, P, Q)
        count = window_count(p, H, P, R, SH, PH, ADAPTIVE, PADDING_COUNTS) * window_count(
            q, W, Q, S, SW, PW, ADAPTIVE, PADDING_COUNTS
        )
        sum = sum / count.to(ACC)
    else:
        sum = sum / DIVISOR
    tl.store(y + pixel * C + channel, sum.to(y.dtype.element_ty), mask=exists)


@triton.jit
def avg_pool_adjoint_kernel(
    dy, dx, PIXELS, C, H, W, P, Q, SH, SW, PH, PW, DIVISOR, R, S,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADAPTIVE: tl.constexpr, PADDING_COUNTS: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, h, w = place(pixel, H, W)
    p0, p1 = windows_covering(h, H, P, R, SH, PH, ADAPTIVE)
    q0, q1 = windows_covering(w, W, Q, S, SW, PW, ADAPTIVE)
    acc = tl.zeros((BP, BC), ACC)
    for i in range(ROWS):
        p = p0 + i
        rows = window_count(p, H, P, R, SH, PH, ADAPTIVE, PADDING_COUNTS)
        for j in range(COLUMNS):
            q = q0 + j
            inside = exists & (p < p1) & (q < q1)
            v = tl.load(dy + ((n * P + p) * Q + q) * C + channel, mask=inside, other=0).to(ACC)
            if DIVISOR is None:
                count = rows * window_count(q, W, Q, S, SW, PW, ADAPTIVE, PADDING_COUNTS)
                acc += v / tl.where(inside, count, 1).to(ACC)
            else:
                acc += v / DIVISOR
    tl.store(dx + pixel * C + channel, acc.to(dx.dtype.element_ty), mask=exists)


@triton.jit
def max_pool_kernel(
    x, y, positions, PIXELS, C, H, W, P, Q, SH, SW, PH, PW, DH, DW,
    R: tl.constexpr, S: tl.constexpr, ADAPTIVE: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, p, q = place(pixel, P, Q)
    if ADAPTIVE:
        h0, h1 = window(p, H, P, R, SH, PH, True)
        w0, w1 = window(q, W, Q, S, SW, PW, True)
    else:
        h0 = p * SH - PH
        w0 = q * SW - PW
        h1 = tl.minimum(h0 + (R - 1) * DH + 1, H)
        w1 = tl.minimum(w0 + (S - 1) * DW + 1, W)
    # A window of nothing but -inf has its maximum at its first element; one without elements at -1.
    first_h = h0 + ceil_div(-h0, DH) * DH
    first_w = w0 + ceil_div(-w0, DW) * DW
    some = (first_h < h1) & (first_w < w1)
    where = tl.where(some, first_h * W + first_w, -1) + tl.zeros((BP, BC), INDEX)
    best = tl.full((BP, BC), -float("inf"), ACC)
    for r in range(R):
        h = h0 + r * DH
        for s in range(S):
            w = w0 + s * DW
            inside = exists & (h >= 0) & (h < h1) & (w >= 0) & (w < w1)
            v = tl.load(x + ((n * H + h) * W + w) * C + channel, mask=inside, other=-float("inf")).to(ACC)
            # Of equal values the first stays, of NaNs the last.
            wins = inside & ((v > best) | (v != v))
            best = tl.where(wins, v, best)
            if positions is not None:
                where = tl.where(wins, h * W + w, where)
    to = pixel * C + channel
    tl.store(y + to, best.to(y.dtype.element_ty), mask=exists)
    if positions is not None:
        tl.store(positions + to, where.to(positions.dtype.element_ty), mask=exists)


@triton.jit
def gather_kernel(
    x, positions, y, PIXELS, C, PLANE, OUT_PLANE,
    INDEX: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = x at the positions; 0 where one is outside of the plane, as -1 is."""
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    to = pixel * C + channel
    position = tl.load(positions + to, mask=exists, other=-1)
    found = exists & (position >= 0) & (position < PLANE)
    image = pixel // OUT_PLANE
    inside = tl.where(found, position, 0).to(INDEX)
    v = tl.load(x + (image * PLANE + inside) * C + channel, mask=found, other=0)
    tl.store(y + to, v, mask=exists)


@triton.jit
def scatter_add_kernel(
    dy, positions, dx, PIXELS, C, H, W, P, Q, SH, SW, PH, PW, SPAN_H, SPAN_W,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADAPTIVE: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A gather, too: of the windows over an element those count whose maximum it is."""
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, h, w = place(pixel, H, W)
    p0, p1 = windows_covering(h, H, P, SPAN_H, SH, PH, ADAPTIVE)
    q0, q1 = windows_covering(w, W, Q, SPAN_W, SW, PW, ADAPTIVE)
    here = h * W + w
    acc = tl.zeros((BP, BC), ACC)
    for i in range(ROWS):
        p = p0 + i
        for j in range(COLUMNS):
            q = q0 + j
            inside = exists & (p < p1) & (q < q1)
            at = ((n * P + p) * Q + q) * C + channel
            mine = inside & (tl.load(positions + at, mask=inside, other=-1).to(INDEX) == here)
            acc += tl.load(dy + at, mask=mine, other=0).to(ACC)
    tl.store(dx + pixel * C + channel, acc.to(dx.dtype.element_ty), mask=exists)


# ---- launchers ----------------------------------------------------------------------------------


def _most_taps(p: _C.PoolParams, axis: int) -> int:
    """No window along the axis has more."""
    size, out = p.in_[axis], p.out[axis]
    if not p.adaptive:
        return p.kernel[axis]
    return 0 if out == 0 else size // out if size % out == 0 else size // out + 2


def _most_windows(p: _C.PoolParams, axis: int) -> int:
    """No position along the axis is covered by more."""
    size, out = p.in_[axis], p.out[axis]
    if p.adaptive:
        return min(out, out // size if out % size == 0 else out // size + 2) if size else 0
    return min(out, ceil_div_of((p.kernel[axis] - 1) * p.dilation[axis] + 1, p.stride[axis]))


def _axes(p: _C.PoolParams) -> dict[str, Any]:
    """What kernels know of both axes."""
    (_, h, w), (_, out_h, out_w) = p.in_, p.out
    return {
        "H": h, "W": w, "P": out_h, "Q": out_w,
        "SH": p.stride[1], "SW": p.stride[2], "PH": p.pad[1], "PW": p.pad[2],
        "ADAPTIVE": p.adaptive,
    }  # fmt: skip


def _index(p: _C.PoolParams) -> tl.dtype:
    (_, h, w), (_, out_h, out_w) = p.in_, p.out
    reach = [(o + 1) * p.stride[a] + p.kernel[a] * p.dilation[a] for a, o in ((1, out_h), (2, out_w))]
    products = (h * (out_h + 1), w * (out_w + 1), out_h * (h + 1), out_w * (w + 1)) if p.adaptive else reach
    return index_type(p.n * p.c * h * w, p.n * p.c * out_h * out_w, *products)


def _tile(p: _C.PoolParams, size: tuple[int, int, int]) -> Tile:
    return Tile(p.channels_last, p.n, p.c, size[1] * size[2], p.dtype)


def _average(p: _C.PoolParams) -> dict[str, Any]:
    return {
        "DIVISOR": p.divisor_override or None,
        "PADDING_COUNTS": p.count_include_pad and not p.adaptive,
        "INDEX": _index(p),
        "ACC": accumulator(p.dtype),
        **_axes(p),
    }


# Windows of more taps than this have several sums.
MOST_IN_TURN = 32


def avg_pool(p: _C.PoolParams) -> Run:
    taps = {"R": _most_taps(p, 1), "S": _most_taps(p, 2)}
    if taps["R"] * taps["S"] <= MOST_IN_TURN:
        tiles = _tile(p, p.out)
        return Launch(avg_pool_kernel, tiles.programs, **taps, **_average(p), **tiles.arguments())
    tiles = Tile(p.channels_last, p.n, p.c, p.out[1] * p.out[2], p.dtype, share=MOST_IN_TURN)
    return Launch(
        avg_pool_wide_kernel,
        tiles.programs,
        TAPS=MOST_IN_TURN,
        **taps,
        **_average(p),
        **tiles.arguments(),
    )


def avg_pool_adjoint(p: _C.PoolParams) -> Run:
    tiles = _tile(p, p.in_)
    return Launch(
        avg_pool_adjoint_kernel,
        tiles.programs,
        R=p.kernel[1],
        S=p.kernel[2],
        ROWS=_most_windows(p, 1),
        COLUMNS=_most_windows(p, 2),
        **_average(p),
        **tiles.arguments(),
    )


def max_pool(p: _C.PoolParams) -> Run:
    tiles = _tile(p, p.out)
    return Launch(
        max_pool_kernel,
        tiles.programs,
        R=_most_taps(p, 1),
        S=_most_taps(p, 2),
        DH=1 if p.adaptive else p.dilation[1],
        DW=1 if p.adaptive else p.dilation[2],
        INDEX=_index(p),
        ACC=accumulator(p.dtype),
        **_axes(p),
        **tiles.arguments(),
    )


def _flat_positions(p: _C.PoolParams) -> None:
    if p.positions == _C.IndexType.u8:
        raise NotImplementedError(
            "fastops: these maxima were found by the backend 'cuda', in whose own form their positions are; "
            "'triton' cannot go on from there"
        )


def gather(p: _C.PoolParams) -> Run:
    _flat_positions(p)
    tiles = _tile(p, p.out)
    return Launch(
        gather_kernel,
        tiles.programs,
        PLANE=p.in_[1] * p.in_[2],
        OUT_PLANE=p.out[1] * p.out[2],
        INDEX=_index(p),
        **tiles.arguments(),
    )


def scatter_add(p: _C.PoolParams) -> Run:
    _flat_positions(p)
    tiles = _tile(p, p.in_)
    return Launch(
        scatter_add_kernel,
        tiles.programs,
        SPAN_H=(p.kernel[1] - 1) * p.dilation[1] + 1,
        SPAN_W=(p.kernel[2] - 1) * p.dilation[2] + 1,
        ROWS=_most_windows(p, 1),
        COLUMNS=_most_windows(p, 2),
        INDEX=_index(p),
        ACC=accumulator(p.dtype),
        **_axes(p),
        **tiles.arguments(),
    )
