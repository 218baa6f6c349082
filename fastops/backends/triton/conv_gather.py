"""Convolution of any shape, its input gradient and its weight gradient, in Triton.

Products of matrices whose operands are gathered: a row is a pixel, a step of the sum is (tap, channel). The
input gradient has the same form for each phase of the stride (csrc/geometry.h: TapAxis), so one kernel
serves both; no product with an inserted zero is made. The weight gradient sums over pixels, in parts that
are added up in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.conv_plan import Block, precision
from fastops.backends.triton.conv_shared import (
    axes,
    finish_weight_grad,
    index_of,
    new_partials,
    result_from,
    tap_arguments,
    weight_grad_arguments,
)
from fastops.backends.triton.geometry import place
from fastops.backends.triton.runtime import (
    PROGRAMS,
    Launch,
    Run,
    accumulator,
    ceil_div,
    memory_from,
    next_power_of_2,
)


@triton.jit
def conv_kernel(
    source, w, bias, result, PIXELS, GRID_H, GRID_W, SOURCE_H, SOURCE_W, CO,
    SN, SH, SW, SC, RN, RH, RW, RC,
    STEP_H, STEP_W, OFF_H, OFF_W, OFF_STEP_H, OFF_STEP_W,
    W_GROUP, W_IN, W_OUT, W_H, W_W, PIXEL_TILES, CHANNEL_TILES,
    CI: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, EVEN: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """SN … SC, RN … RC: elements from image to image, row, column and channel of source and result."""
    program = tl.program_id(0).to(INDEX)
    # Neighbouring programs have the channels of the same pixels.
    column = program % CHANNEL_TILES
    program = program // CHANNEL_TILES
    group = program // PIXEL_TILES
    pixel = (program - group * PIXEL_TILES) * BM + tl.arange(0, BM)
    exists = pixel < PIXELS
    n, gh, gw = place(pixel, GRID_H, GRID_W)
    h0 = gh * STEP_H + OFF_H
    w0 = gw * STEP_W + OFF_W
    rows = source + n * SN + h0 * SH + w0 * SW + group * CI * SC
    co = column * BN + tl.arange(0, BN)
    columns = w + group * W_GROUP + co * W_OUT
    acc = tl.zeros((BM, BN), ACC)
    STEPS: tl.constexpr = TAPS_H * TAPS_W * CI // BK if EVEN else (TAPS_H * TAPS_W * CI + BK - 1) // BK
    for step in range(STEPS):
        k = step * BK + tl.arange(0, BK)
        if EVEN:  # all of one tap
            tap = step // (CI // BK)
            c = k - tap * CI
            th = tap // TAPS_W
            tw = tap % TAPS_W
            ok = (
                exists[:, None]
                & _inside(h0 + th * OFF_STEP_H, SOURCE_H, w0 + tw * OFF_STEP_W, SOURCE_W)[:, None]
            )
            a = tl.load(
                rows[:, None] + (th * OFF_STEP_H * SH + tw * OFF_STEP_W * SW + c * SC)[None, :],
                mask=ok, other=0,
            )  # fmt: skip
            b = tl.load(
                columns[None, :] + (c * W_IN + th * W_H + tw * W_W)[:, None],
                mask=(co < CO)[None, :], other=0,
            )  # fmt: skip
        else:
            tap = k // CI
            c = k % CI
            th = tap // TAPS_W
            tw = tap % TAPS_W
            some = k < TAPS_H * TAPS_W * CI
            ok = _inside(
                h0[:, None] + (th * OFF_STEP_H)[None, :], SOURCE_H,
                w0[:, None] + (tw * OFF_STEP_W)[None, :], SOURCE_W,
            )  # fmt: skip
            a = tl.load(
                rows[:, None] + (th * OFF_STEP_H * SH + tw * OFF_STEP_W * SW + c * SC)[None, :],
                mask=ok & exists[:, None] & some[None, :], other=0,
            )  # fmt: skip
            b = tl.load(
                columns[None, :] + (c * W_IN + th * W_H + tw * W_W)[:, None],
                mask=(co < CO)[None, :] & some[:, None], other=0,
            )  # fmt: skip
        acc = product(a, b, acc, PRECISION, ACC)
    if bias is not None:
        acc += tl.load(bias + group * CO + co, mask=co < CO, other=0).to(ACC)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # a NaN stays
    to = result + n[:, None] * RN + gh[:, None] * RH + gw[:, None] * RW + (group * CO + co)[None, :] * RC
    tl.store(to, acc.to(result.dtype.element_ty), mask=exists[:, None] & (co < CO)[None, :])


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """acc + a · b"""
    if PRECISION == "sums":
        return acc + tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _inside(h, H, w, W):
    return (h >= 0) & (h < H) & (w >= 0) & (w < W)


@triton.jit
def weight_grad_kernel(
    dy, x, partials, PIXELS, SHARE, P, Q, H, W, CI, CO, K,
    YN, YH, YW, YC, XN, XH, XW, XC,
    STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, ROW_TILES, COLUMN_TILES, GROUPS,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, ROUNDS: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """partials[split][k][tap][channel of the group]: rows are output channels, columns (tap, channel)."""
    program = tl.program_id(0).to(INDEX)
    column = program % COLUMN_TILES
    program = program // COLUMN_TILES
    row = program % ROW_TILES
    program = program // ROW_TILES
    group = program % GROUPS
    split = program // GROUPS
    k = row * BM + tl.arange(0, BM)
    j = column * BN + tl.arange(0, BN)
    tap = j // CI
    c = j - tap * CI
    dh = (tap // TAPS_W) * DILATION_H - PAD_H
    dw = (tap % TAPS_W) * DILATION_W - PAD_W
    some_k = k < CO
    some_j = tap < TAPS
    rows = dy + (group * CO + k) * YC
    columns = x + (group * CI + c) * XC
    end = tl.minimum(split * SHARE + SHARE, PIXELS)
    acc = tl.zeros((BM, BN), ACC)
    for step in range(ROUNDS):
        pixel = split * SHARE + step * BK + tl.arange(0, BK)
        exists = pixel < end
        n, p, q = place(pixel, P, Q)
        a = tl.load(
            rows[:, None] + (n * YN + p * YH + q * YW)[None, :],
            mask=some_k[:, None] & exists[None, :], other=0,
        )  # fmt: skip
        h = (p * STRIDE_H)[:, None] + dh[None, :]
        w = (q * STRIDE_W)[:, None] + dw[None, :]
        b = tl.load(
            columns[None, :] + (n * XN)[:, None] + h * XH + w * XW,
            mask=exists[:, None] & some_j[None, :] & _inside(h, H, w, W), other=0,
        )  # fmt: skip
        acc = product(a, b, acc, PRECISION, ACC)
    to = partials + ((split * K + group * CO + k) * (TAPS * CI))[:, None] + j[None, :]
    tl.store(to, acc, mask=some_k[:, None] & some_j[None, :])


# ---- launchers ----------------------------------------------------------------------------------


def product_of(p: _C.ConvParams, input_grad: bool, block: Block) -> Run:
    """y, or dx."""
    ci, co = p.c // p.groups, p.k // p.groups
    taps = p.kernel[1] * p.kernel[2]
    w_k, w_c, w_h, w_w = (
        (taps * ci, 1, p.kernel[2] * ci, ci) if p.weight_channels_last else (ci * taps, taps, p.kernel[2], 1)
    )
    inner, outer = (co, ci) if input_grad else (ci, co)
    launches = []
    for h, w in axes(p, input_grad):
        pixels = p.n * h.grid * w.grid
        tiles = ceil_div(pixels, block.rows), ceil_div(outer, block.columns)
        launch = Launch(
            conv_kernel, p.groups * tiles[0] * tiles[1], warps=block.warps, stages=block.stages,
            PIXELS=pixels, CO=outer, CI=inner,
            W_GROUP=co * w_k, W_IN=w_k if input_grad else w_c, W_OUT=w_c if input_grad else w_k,
            W_H=h.tap_step * w_h, W_W=w.tap_step * w_w, PIXEL_TILES=tiles[0], CHANNEL_TILES=tiles[1],
            EVEN=inner % block.depth == 0, RELU=p.relu and not input_grad, PRECISION=precision(p),
            INDEX=index_of(p), ACC=accumulator(p.dtype), BM=block.rows, BN=block.columns, BK=block.depth,
            **tap_arguments(p, input_grad, h, w),
        )  # fmt: skip
        # Where the phase's weights and results begin.
        w_from = h.tap0 * w_h + w.tap0 * w_w
        launches.append((launch, w_from, result_from(p, input_grad, h, w)))

    def run(source: Tensor, w: Tensor, bias: Tensor | None, result: Tensor) -> None:
        for launch, w_from, to in launches:
            launch(source, memory_from(w, w_from), bias, memory_from(result, to))

    return run


def weight_grad(p: _C.ConvParams, block: Block) -> Run:
    """Without the sums of dy."""
    ci, co, taps = p.c // p.groups, p.k // p.groups, p.kernel[1] * p.kernel[2]
    pixels = p.n * p.out[1] * p.out[2]
    tiles = ceil_div(co, block.rows), ceil_div(taps * ci, block.columns)
    wanted = ceil_div(PROGRAMS, max(1, p.groups * tiles[0] * tiles[1]))
    # A power of 2: the compiled loop has its number of rounds, of which there should be few different ones.
    rounds = max(4, next_power_of_2(ceil_div(ceil_div(pixels, block.depth), wanted)))
    splits = ceil_div(pixels, rounds * block.depth)
    launch = Launch(
        weight_grad_kernel, splits * p.groups * tiles[0] * tiles[1], warps=block.warps, stages=block.stages,
        PIXELS=pixels, SHARE=rounds * block.depth, CI=ci, CO=co, K=p.k,
        ROW_TILES=tiles[0], COLUMN_TILES=tiles[1], GROUPS=p.groups,
        ROUNDS=rounds, PRECISION=precision(p), INDEX=index_of(p), ACC=accumulator(p.dtype),
        BM=block.rows, BN=block.columns, BK=block.depth, **weight_grad_arguments(p),
    )  # fmt: skip
    finish = finish_weight_grad(p, splits)

    def run(dy: Tensor, x: Tensor, dw: Tensor) -> None:
        partials = new_partials(p, splits, dw)
        launch(dy, x, partials)
        finish(partials, dw)

    return run
