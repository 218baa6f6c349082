"""The gradients of batch normalisation's backward pass, in Triton: sums, coefficients, one elementwise pass.
The formulas are derived in csrc/cpu/batch_norm.cpp; the notation is the same."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.batch_norm import slab_of
from fastops.backends.triton.channelwise import element, my_channels, number, parameter, total
from fastops.backends.triton.runtime import Run


@triton.jit
def value(tensor, at, inside, ACC: tl.constexpr):
    """Elements; 0 for an absent tensor."""
    if tensor is None:
        return tl.zeros(at.shape, ACC)
    else:
        return tl.load(tensor + at, mask=inside, other=0).to(ACC)


@triton.jit
def double_sums_kernel(
    dy, ddx, x, mean, partials, ROWS, C, S, CHUNK, SPLITS,
    LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Σ dy, Σ g, Σ dy·(x − μ), Σ g·(x − μ), Σ g·dy, with g = ddx"""
    channel, split = my_channels(C, BC, INDEX)
    exists = channel < C
    mu = tl.load(mean + channel, mask=exists, other=0)
    start = split * CHUNK
    end = tl.minimum(start + CHUNK, ROWS)
    s_dy = tl.zeros((BR, BC), ACC)
    s_g = tl.zeros((BR, BC), ACC)
    s_dy_x = tl.zeros((BR, BC), ACC)
    s_g_x = tl.zeros((BR, BC), ACC)
    s_g_dy = tl.zeros((BR, BC), ACC)
    for first in range(0, CHUNK, BR):
        row = start + first + tl.arange(0, BR)[:, None]
        inside = exists & (row < end)
        at = element(row, channel, C, S, LAST)
        d = value(dy, at, inside, ACC)
        g = value(ddx, at, inside, ACC)
        s_dy += d
        s_g += g
        s_g_dy += g * d
        if x is not None:
            centred = tl.where(inside, value(x, at, inside, ACC) - mu, 0)
            s_dy_x += d * centred
            s_g_x += g * centred
    to = partials + split * C + channel
    step = number(SPLITS, INDEX) * C
    tl.store(to, tl.sum(s_dy.to(tl.float64), 0)[None, :], mask=exists)
    tl.store(to + step, tl.sum(s_g.to(tl.float64), 0)[None, :], mask=exists)
    tl.store(to + 2 * step, tl.sum(s_dy_x.to(tl.float64), 0)[None, :], mask=exists)
    tl.store(to + 3 * step, tl.sum(s_g_x.to(tl.float64), 0)[None, :], mask=exists)
    tl.store(to + 4 * step, tl.sum(s_g_dy.to(tl.float64), 0)[None, :], mask=exists)


@triton.jit
def finish_double_kernel(
    partials, w, invstd, ddw, ddb, gw, coefficients, ROWS, C, SPLITS,
    TRAINING: tl.constexpr, INDEX: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """gx = dy·k0 + g·k1 + (x − μ)·k2 + k3;  gdy = g·k4 + (x − μ)·k5 + k6"""
    channel, _ = my_channels(C, BC, INDEX)
    exists = channel < C
    r = tl.load(invstd + channel, mask=exists, other=0).to(tl.float64)
    wr = parameter(w, channel, exists, 1, tl.float64) * r
    u = parameter(ddw, channel, exists, 0, tl.float64)
    v = parameter(ddb, channel, exists, 0, tl.float64)
    k0 = u * r
    k1 = tl.zeros((1, BC), tl.float64)
    k2 = tl.zeros((1, BC), tl.float64)
    k3 = tl.zeros((1, BC), tl.float64)
    k5 = u * r
    k6 = v
    if partials is not None:
        step = number(SPLITS, INDEX) * C
        q = total(partials + 4 * step, channel, exists, SPLITS, C, BS, BC)
        if TRAINING:
            m = number(ROWS, tl.float64)
            s = total(partials, channel, exists, SPLITS, C, BS, BC)
            g = total(partials + step, channel, exists, SPLITS, C, BS, BC)
            d = total(partials + 2 * step, channel, exists, SPLITS, C, BS, BC) * r
            e = total(partials + 3 * step, channel, exists, SPLITS, C, BS, BC) * r
            q -= s * g / m + d * e / m
            k0 = r * (u - wr * e / m)
            k1 = -r * wr * d / m
            k2 = -r * r * ((u * d - 2 * wr * d * e / m) / m) - wr * r * r * q / m
            k3 = -r * (u * s - wr * (e * s + d * g) / m) / m
            k5 = u * r - wr * r * e / m
            k6 = v - wr * g / m
    else:
        q = tl.zeros((1, BC), tl.float64)
    if gw is not None:
        tl.store(gw + channel, (r * q).to(gw.dtype.element_ty), mask=exists)
    T: tl.constexpr = coefficients.dtype.element_ty
    to = coefficients + channel
    tl.store(to, k0.to(T), mask=exists)
    tl.store(to + C, k1.to(T), mask=exists)
    tl.store(to + 2 * C, k2.to(T), mask=exists)
    tl.store(to + 3 * C, k3.to(T), mask=exists)
    tl.store(to + 4 * C, wr.to(T), mask=exists)
    tl.store(to + 5 * C, k5.to(T), mask=exists)
    tl.store(to + 6 * C, k6.to(T), mask=exists)


@triton.jit
def double_kernel(
    dy, ddx, x, mean, coefficients, gx, gdy, ROWS, C, S,
    LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    channel, part = my_channels(C, BC, INDEX)
    exists = channel < C
    row = (part * BR + tl.arange(0, BR))[:, None]
    inside = exists & (row < ROWS)
    at = element(row, channel, C, S, LAST)
    k = coefficients + channel
    g = value(ddx, at, inside, ACC)
    centred = tl.zeros((BR, BC), ACC)
    if x is not None:
        centred = value(x, at, inside, ACC) - tl.load(mean + channel, mask=exists, other=0)
    if gx is not None:
        v = value(dy, at, inside, ACC) * tl.load(k, mask=exists) + g * tl.load(k + C, mask=exists)
        v += centred * tl.load(k + 2 * C, mask=exists) + tl.load(k + 3 * C, mask=exists)
        tl.store(gx + at, v.to(gx.dtype.element_ty), mask=inside)
    if gdy is not None:
        v = g * tl.load(k + 4 * C, mask=exists) + centred * tl.load(k + 5 * C, mask=exists)
        tl.store(gdy + at, (v + tl.load(k + 6 * C, mask=exists)).to(gdy.dtype.element_ty), mask=inside)


def batch_norm_double_backward(p: _C.BatchNormParams) -> Run:
    slab = slab_of(p)
    training = p.training and slab.rows > 0
    sums = slab.reduce(double_sums_kernel)
    finish = slab.combine(finish_double_kernel, TRAINING=training)
    write = slab.map(double_kernel)

    def run(
        mean: Tensor,
        invstd: Tensor,
        w: Tensor | None,
        x: Tensor | None,
        dy: Tensor | None,
        ddx: Tensor | None,
        ddw: Tensor | None,
        ddb: Tensor | None,
        gx: Tensor | None,
        gw: Tensor | None,
        gdy: Tensor | None,
    ) -> None:
        partials = None
        if training or (gw is not None and slab.rows > 0):
            partials = slab.partials(mean, 5)
            sums(dy, ddx, x, mean, partials)
        coefficients = slab.coefficients(mean, 7)
        finish(partials, w, invstd, ddw, ddb, gw, coefficients)
        if gx is not None or gdy is not None:
            write(dy, ddx, x, mean, coefficients, gx, gdy)

    return run
