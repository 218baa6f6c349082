"""Depthwise convolution, its input gradient and its weight gradient, in Triton.

Each channel of the result is a sum over taps of one channel of the source (in the input gradient: of those
that the multiplier makes of it).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.channelwise import multiply_add, my_channels
from fastops.backends.triton.conv_shared import (
    axes,
    finish_weight_grad,
    index_of,
    new_partials,
    result_from,
    tap_arguments,
    weight_grad_arguments,
)
from fastops.backends.triton.geometry import place, tile
from fastops.backends.triton.runtime import (
    PROGRAMS,
    Launch,
    Run,
    Tile,
    accumulator,
    ceil_div,
    element_bytes,
    memory_from,
    next_power_of_2,
)


@triton.jit
def depthwise_kernel(
    source, w, bias, result, PIXELS, C, GRID_H, GRID_W, SOURCE_H, SOURCE_W, CHANNELS,
    SN, SH, SW, SC, RN, RH, RW, RC, STEP_H, STEP_W, OFF_H, OFF_W, OFF_STEP_H, OFF_STEP_W,
    TAPS, FIRST_TAP, TAP_H, TAP_W,
    MULTIPLIER: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, TERMS: tl.constexpr,
    RELU: tl.constexpr, LAST: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """TERMS: of the input gradient, the multiplier; else 1."""
    pixel, channel, exists = tile(PIXELS, C, BP, BC, INDEX)
    n, gh, gw = place(pixel, GRID_H, GRID_W)
    if not LAST:  # images of one channel
        channel = n % CHANNELS
        n = n // CHANNELS
    known = channel < CHANNELS
    h0 = gh * STEP_H + OFF_H
    w0 = gw * STEP_W + OFF_W
    acc = tl.zeros((BP, BC), ACC)
    for m in range(TERMS):
        if TERMS > 1:
            from_channel = channel * TERMS + m
            weights = from_channel
        else:
            from_channel = channel // MULTIPLIER
            weights = channel
        image = source + n * SN + from_channel * SC
        filter = w + weights * TAPS + FIRST_TAP
        for i in range(TAPS_H):
            h = h0 + i * OFF_STEP_H
            for j in range(TAPS_W):
                x = w0 + j * OFF_STEP_W
                inside = exists & (h >= 0) & (h < SOURCE_H) & (x >= 0) & (x < SOURCE_W)
                v = tl.load(image + h * SH + x * SW, mask=inside, other=0).to(ACC)
                k = tl.load(filter + (i * TAP_H + j * TAP_W), mask=known, other=0).to(ACC)
                acc = multiply_add(v, k, acc)
    if bias is not None:
        acc += tl.load(bias + channel, mask=known, other=0).to(ACC)
    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # a NaN stays
    to = result + n * RN + gh * RH + gw * RW + channel * RC
    tl.store(to, acc.to(result.dtype.element_ty), mask=exists)


@triton.jit
def depthwise_weight_grad_kernel(
    dy, x, partials, ROWS, C, CHUNK, P, Q, H, W, YN, YH, YW, YC, XN, XH, XW, XC,
    STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, TAPS, TAPS_W, MULTIPLIER: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partials[split][k][tap]. Neighbouring programs have the taps of the same pixels and channels."""
    channel, rest = my_channels(C, BC, INDEX)
    split = rest // TAPS
    tap = rest - split * TAPS
    exists = channel < C
    h0 = (tap // TAPS_W) * DILATION_H - PAD_H
    w0 = (tap % TAPS_W) * DILATION_W - PAD_W
    start = split * CHUNK
    end = tl.minimum(start + CHUNK, ROWS)
    acc = tl.zeros((BR, BC), ACC)
    for first in range(0, CHUNK, BR):
        row = start + first + tl.arange(0, BR)[:, None]
        n, p, q = place(row, P, Q)
        h = p * STRIDE_H + h0
        w = q * STRIDE_W + w0
        inside = exists & (row < end) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        g = tl.load(dy + n * YN + p * YH + q * YW + channel * YC, mask=inside, other=0).to(ACC)
        at = n * XN + h * XH + w * XW + channel // MULTIPLIER * XC
        acc = multiply_add(g, tl.load(x + at, mask=inside, other=0).to(ACC), acc)
    to = partials + (split * C + channel) * TAPS + tap
    tl.store(to, tl.sum(acc, 0)[None, :], mask=exists)


# ---- launchers ----------------------------------------------------------------------------------


def _product(p: _C.ConvParams, input_grad: bool) -> Run:
    to_c, multiplier = p.c if input_grad else p.k, p.k // p.c
    launches = []
    for h, w in axes(p, input_grad):
        tiles = Tile(p.channels_last, p.n, to_c, h.grid * w.grid, p.dtype)
        launch = Launch(
            depthwise_kernel, tiles.programs, CHANNELS=to_c,
            TAPS=p.kernel[1] * p.kernel[2], FIRST_TAP=h.tap0 * p.kernel[2] + w.tap0,
            TAP_H=h.tap_step * p.kernel[2], TAP_W=w.tap_step,
            MULTIPLIER=multiplier, TERMS=multiplier if input_grad else 1,
            RELU=p.relu and not input_grad, LAST=p.channels_last,
            INDEX=index_of(p), ACC=accumulator(p.dtype),
            **tap_arguments(p, input_grad, h, w), **tiles.arguments(),
        )  # fmt: skip
        launches.append((launch, result_from(p, input_grad, h, w)))

    def run(source: Tensor, w: Tensor, bias: Tensor | None, result: Tensor) -> None:
        for launch, to in launches:
            launch(source, w, bias, memory_from(result, to))

    return run


def conv(p: _C.ConvParams) -> Run:
    return _product(p, False)


def conv_input_grad(p: _C.ConvParams) -> Run:
    return _product(p, True)


def weight_grad(p: _C.ConvParams) -> Run:
    """Without the sums of dy."""
    rows, taps = p.n * p.out[1] * p.out[2], p.kernel[1] * p.kernel[2]
    block_c = min(next_power_of_2(p.k), 64) if p.channels_last else 1
    block_r = max(2048 // element_bytes(p.dtype) // block_c, 1)
    tiles = ceil_div(p.k, block_c)
    rounds = max(4, ceil_div(ceil_div(rows, block_r), ceil_div(PROGRAMS, tiles * taps)))
    splits = ceil_div(rows, rounds * block_r)
    launch = Launch(
        depthwise_weight_grad_kernel, splits * taps * tiles, ROWS=rows, C=p.k, CHUNK=rounds * block_r,
        MULTIPLIER=p.k // p.c, INDEX=index_of(p), ACC=accumulator(p.dtype), BR=block_r, BC=block_c,
        **weight_grad_arguments(p),
    )  # fmt: skip
    finish = finish_weight_grad(p, splits)

    def run(dy: Tensor, x: Tensor, dw: Tensor) -> None:
        partials = new_partials(p, splits, dw)
        launch(dy, x, partials)
        finish(partials, dw)

    return run
