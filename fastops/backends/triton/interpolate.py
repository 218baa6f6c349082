"""Interpolation, all modes, and its transpose: csrc/interpolate.h, in Triton.

Which sources a result has, and with which weights, comes from tables, one per axis, that are made on the
host by the same index arithmetic as every other backend's (csrc/taps.h); the adjoint's are the transposed.
Few taps are summed at once; many, and those of uint8 images, which are rounded in between, an axis after
the other.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.geometry import place, tile
from fastops.backends.triton.runtime import (
    Launch,
    Run,
    Tile,
    accumulator,
    accumulator_dtype,
    index_type,
)


@triton.jit
def copy_kernel(
    x, y, begin_h, begin_w, PIXELS, C, H, W, P, Q,
    INDEX: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, p, q = place(pixel, P, Q)
    at = (n * H + tl.load(begin_h + p)) * W + tl.load(begin_w + q)
    tl.store(y + pixel * C + channel, tl.load(x + at * C + channel, mask=exists), mask=exists)


@triton.jit
def resample_kernel(
    x, y, begin_h, count_h, weight_h, begin_w, count_w, weight_w, PIXELS, C, H, W, P, Q,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """No taps along an axis: it stays as it is. No weights: they are 1."""
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, p, q = place(pixel, P, Q)
    if TAPS_H > 0:
        h0 = tl.load(begin_h + p)
        rows = tl.load(count_h + p)
    else:
        h0 = p
        rows = tl.full((BP, 1), 1, tl.int32)
    if TAPS_W > 0:
        w0 = tl.load(begin_w + q)
        columns = tl.load(count_w + q)
    else:
        w0 = q
        columns = tl.full((BP, 1), 1, tl.int32)
    acc = tl.zeros((BP, BC), ACC)
    for r in range(TAPS_H if TAPS_H > 0 else 1):
        row = tl.zeros((BP, BC), ACC)
        at = (n * H + h0 + r) * W + w0
        for s in range(TAPS_W if TAPS_W > 0 else 1):
            inside = exists & (r < rows) & (s < columns)
            v = tl.load(x + (at + s) * C + channel, mask=inside, other=0).to(ACC)
            if TAPS_W > 0 and weight_w is not None:
                v *= tl.load(weight_w + q * TAPS_W + s)
            row += v
        if TAPS_H > 0 and weight_h is not None:
            row *= tl.load(weight_h + p * TAPS_H + r)
        acc += row
    tl.store(y + pixel * C + channel, acc.to(y.dtype.element_ty), mask=exists)


@triton.jit
def resample_u8_kernel(
    x, y, begin, count, weight, PIXELS, C, SOURCES, RESULTS, INNER, PRECISION,
    TAPS: tl.constexpr, INDEX: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Along one axis, of which neighbours are INNER pixels apart, in fixed point."""
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    outer, result, inner = place(pixel, RESULTS, INNER)
    first = tl.load(begin + result)
    taps = tl.load(count + result)
    acc = tl.zeros((BP, BC), tl.int32) + (1 << (PRECISION - 1))
    for k in range(TAPS):
        inside = exists & (k < taps)
        at = (outer * SOURCES + first + k) * INNER + inner
        v = tl.load(x + at * C + channel, mask=inside, other=0).to(tl.int32)
        acc += v * tl.load(weight + result * TAPS + k)
    acc = tl.minimum(tl.maximum(acc >> PRECISION, 0), 255)
    tl.store(y + pixel * C + channel, acc.to(tl.uint8), mask=exists)


# ---- launchers ----------------------------------------------------------------------------------

# So many taps of a result are summed at once: more loads than two passes would have in all are made up for
# by the image in between, which is neither written nor read.
MOST_AT_ONCE = 16


class Table:
    """The table of one axis, on whichever device it is asked for."""

    def __init__(self, p: _C.InterpolateParams, axis: int, adjoint: bool, fixed_point: bool = False) -> None:
        made = _C.interpolate_table(p, axis, adjoint, fixed_point)
        self.taps, self.precision = made.taps, made.precision
        weights = torch.int32 if fixed_point else accumulator_dtype(p.dtype)
        self.host = (
            torch.tensor(made.begin, dtype=torch.int32),
            torch.tensor(made.count, dtype=torch.int32),
            torch.tensor(made.weight, dtype=torch.float64).to(weights) if made.weight else None,
        )
        self.on: dict[torch.device, tuple[Tensor | None, ...]] = {}

    def __call__(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """(begin, count, weight or None)."""
        if device not in self.on:
            self.on[device] = tuple(None if t is None else t.to(device) for t in self.host)
        return self.on[device]


NOTHING = (None, None, None)


def _sizes(p: _C.InterpolateParams, adjoint: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of what is read and of what is written."""
    ends = (p.in_[1], p.in_[2]), (p.out[1], p.out[2])
    return (ends[1], ends[0]) if adjoint else ends


def _index(p: _C.InterpolateParams, *sizes: tuple[int, int]) -> tl.dtype:
    return index_type(*(p.n * p.c * h * w for h, w in sizes))


def interpolate_nearest(p: _C.InterpolateParams) -> Run:
    (h, w), (out_h, out_w) = _sizes(p, False)
    tiles = Tile(p.channels_last, p.n, p.c, out_h * out_w, p.dtype)
    launch = Launch(
        copy_kernel, tiles.programs,
        H=h, W=w, P=out_h, Q=out_w, INDEX=_index(p, (h, w), (out_h, out_w)), **tiles.arguments(),
    )  # fmt: skip
    rows, columns = Table(p, 1, False), Table(p, 2, False)

    def run(x: Tensor, y: Tensor) -> None:
        launch(x, y, rows(x.device)[0], columns(x.device)[0])

    return run


def _resample(p: _C.InterpolateParams, adjoint: bool) -> Run:
    source, result = _sizes(p, adjoint)
    rows, columns = Table(p, 1, adjoint), Table(p, 2, adjoint)

    def launch(from_: tuple[int, int], to: tuple[int, int], taps_h: int, taps_w: int) -> Launch:
        tiles = Tile(p.channels_last, p.n, p.c, to[0] * to[1], p.dtype)
        sizes: dict[str, Any] = {"H": from_[0], "W": from_[1], "P": to[0], "Q": to[1]}
        return Launch(
            resample_kernel, tiles.programs, TAPS_H=taps_h, TAPS_W=taps_w,
            INDEX=_index(p, from_, to), ACC=accumulator(p.dtype), **sizes, **tiles.arguments(),
        )  # fmt: skip

    if rows.taps * columns.taps <= MOST_AT_ONCE:
        both = launch(source, result, rows.taps, columns.taps)

        def run(x: Tensor, y: Tensor) -> None:
            both(x, y, *rows(x.device), *columns(x.device))

        return run

    between = (source[0], result[1])
    along_w, along_h = launch(source, between, 0, columns.taps), launch(between, result, rows.taps, 0)

    def run_twice(x: Tensor, y: Tensor) -> None:
        t = x.new_empty(p.n * p.c * between[0] * between[1], dtype=accumulator_dtype(p.dtype))
        along_w(x, t, *NOTHING, *columns(x.device))
        along_h(t, y, *rows(x.device), *NOTHING)

    return run_twice


def interpolate_nearest_adjoint(p: _C.InterpolateParams) -> Run:
    return _resample(p, True)


def interpolate_weighted(p: _C.InterpolateParams) -> Run:
    return _resample(p, False)


def interpolate_weighted_adjoint(p: _C.InterpolateParams) -> Run:
    return _resample(p, True)


def interpolate_weighted_u8(p: _C.InterpolateParams) -> Run:
    (h, w), (out_h, out_w) = _sizes(p, False)
    rows, columns = Table(p, 1, False, True), Table(p, 2, False, True)

    def launch(table: Table, sources: int, results: int, outer: int, inner: int) -> Launch:
        tiles = Tile(p.channels_last, p.n, p.c, outer * results * inner, p.dtype)
        return Launch(
            resample_u8_kernel, tiles.programs,
            SOURCES=sources, RESULTS=results, INNER=inner, PRECISION=table.precision, TAPS=table.taps,
            INDEX=_index(p, (h, w), (h, out_w), (out_h, out_w)), **tiles.arguments(),
        )  # fmt: skip

    along_w, along_h = launch(columns, w, out_w, h, 1), launch(rows, h, out_h, 1, out_w)

    def run(x: Tensor, y: Tensor) -> None:
        t = x.new_empty(p.n * p.c * h * out_w)
        along_w(x, t, *columns(x.device))
        along_h(t, y, *rows(x.device))

    return run
