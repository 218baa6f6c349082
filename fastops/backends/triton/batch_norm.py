"""Batch normalisation with an optional residual and ReLU, its gradients and theirs: csrc/batch_norm.h, in
Triton. The formulas are derived in csrc/cpu/batch_norm.cpp; the notation is the same.

Each op is up to three kernels: sums over chunks of rows (channelwise.py), each program leaving one partial
result per channel; one that combines these, in fp64 and in a fixed order; one elementwise.
"""

from __future__ import annotations

import math
from ctypes import c_float

import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.channelwise import (
    Slab,
    element,
    multiply_add,
    my_channels,
    number,
    parameter,
    total,
)
from fastops.backends.triton.runtime import Run, accumulator

# ---- what kernels share -------------------------------------------------------------------------


@triton.jit
def affine(x, residual, mean, scale, bias, T: tl.constexpr):
    """y before the ReLU, as it is stored: each kernel that asks gets the same bits."""
    z = multiply_add(x - mean, scale, bias)
    if residual is not None:
        z += residual
    return z.to(T)


@triton.jit
def masked_dy(dy, x, residual, at, inside, mean, scale, bias, RELU: tl.constexpr, ACC: tl.constexpr):
    """(dy where it counts, x − mean); 0 for an absent x."""
    g = tl.load(dy + at, mask=inside, other=0).to(ACC)
    if x is None:
        centred = tl.zeros(g.shape, ACC)
    else:
        v = tl.load(x + at, mask=inside, other=0).to(ACC)
        centred = v - mean
        if RELU:
            r = None
            if residual is not None:
                r = tl.load(residual + at, mask=inside, other=0).to(ACC)
            y = affine(v, r, mean, scale, bias, dy.dtype.element_ty)
            g = tl.where(y.to(ACC) <= 0, 0, g)
    return g, centred


# ---- forward ------------------------------------------------------------------------------------


@triton.jit
def statistics_kernel(
    x, partials, ROWS, C, S, CHUNK, SPLITS,
    LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Mean, and squares about it, of a chunk: Welford's update in every lane, combined in the end. All is
    relative to the chunk's first element, which keeps digits where the mean is large."""
    channel, split = my_channels(C, BC, INDEX)
    exists = channel < C
    start = split * CHUNK
    end = tl.minimum(start + CHUNK, ROWS)
    lane = tl.arange(0, BR)[:, None]
    shift = tl.load(x + element(start, channel, C, S, LAST), mask=exists, other=0).to(ACC)
    mean = tl.zeros((BR, BC), ACC)
    squares = tl.zeros((BR, BC), ACC)
    count = tl.zeros((1, 1), ACC)
    for first in range(0, CHUNK, BR):
        row = start + first + lane
        inside = exists & (row < end)
        v = tl.load(x + element(row, channel, C, S, LAST), mask=inside, other=0).to(ACC) - shift
        count += 1
        delta = tl.where(inside, v - mean, 0)
        mean += delta * (1 / count)
        squares += delta * tl.where(inside, v - mean, 0)
    n = tl.maximum(end - start - lane + BR - 1, 0) // BR  # of each lane
    weight = n.to(ACC)
    about = (tl.sum(weight * mean, 0) / (end - start).to(ACC))[None, :]
    away = mean - about
    to = partials + split * C + channel
    tl.store(to, shift.to(tl.float64) + about.to(tl.float64), mask=exists)
    sum = tl.sum((squares + weight * away * away).to(tl.float64), 0)[None, :]
    tl.store(to + number(SPLITS, INDEX) * C, sum, mask=exists)


@triton.jit
def finish_statistics_kernel(
    partials, running_mean, running_var, mean, invstd, ROWS, C, CHUNK, SPLITS,
    MOMENTUM, MOMENTUM_REST, EPS, EPS_REST,
    TRAINING: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    channel, _ = my_channels(C, BC, INDEX)
    exists = channel < C
    eps = number(EPS, tl.float64) + number(EPS_REST, tl.float64)
    if TRAINING:
        # About the mean of one of them, so that equal ones are exact.
        about = tl.load(partials + channel, mask=exists, other=0)
        moment = tl.zeros((BS, BC), tl.float64)
        for first in range(0, SPLITS, BS):
            part = first + tl.arange(0, BS).to(INDEX)[:, None]
            inside = exists & (part < SPLITS)
            n = tl.minimum(ROWS - part * CHUNK, CHUNK).to(tl.float64)
            away = tl.load(partials + part * C + channel, mask=inside, other=0) - about
            moment += tl.where(inside, n * away, 0)
        rows = number(ROWS, tl.float64)
        mu = about + tl.sum(moment, 0)[None, :] / rows
        squares = tl.zeros((BS, BC), tl.float64)
        for first in range(0, SPLITS, BS):
            part = first + tl.arange(0, BS).to(INDEX)[:, None]
            inside = exists & (part < SPLITS)
            n = tl.minimum(ROWS - part * CHUNK, CHUNK).to(tl.float64)
            at = partials + part * C + channel
            away = tl.load(at, mask=inside, other=0) - mu
            of_part = tl.load(at + number(SPLITS, INDEX) * C, mask=inside, other=0)
            squares += tl.where(inside, of_part + n * away * away, 0)
        sum = tl.sum(squares, 0)[None, :]
        var = sum / rows
        if running_mean is not None:
            momentum = number(MOMENTUM, tl.float64) + number(MOMENTUM_REST, tl.float64)
            old_mean = tl.load(running_mean + channel, mask=exists, other=0).to(tl.float64)
            old_var = tl.load(running_var + channel, mask=exists, other=0).to(tl.float64)
            new_mean = (1 - momentum) * old_mean + momentum * mu
            new_var = (1 - momentum) * old_var + momentum * (sum / (rows - 1))
            tl.store(running_mean + channel, new_mean.to(running_mean.dtype.element_ty), mask=exists)
            tl.store(running_var + channel, new_var.to(running_var.dtype.element_ty), mask=exists)
    else:
        mu = parameter(running_mean, channel, exists, 0, tl.float64)
        var = parameter(running_var, channel, exists, 1, tl.float64)
    tl.store(mean + channel, mu.to(ACC), mask=exists)
    tl.store(invstd + channel, (1 / tl.sqrt(var + eps)).to(ACC), mask=exists)


@triton.jit
def apply_kernel(
    x, w, b, mean, invstd, residual, y, ROWS, C, S,
    RELU: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    channel, part = my_channels(C, BC, INDEX)
    exists = channel < C
    row = (part * BR + tl.arange(0, BR))[:, None]
    inside = exists & (row < ROWS)
    at = element(row, channel, C, S, LAST)
    mu = tl.load(mean + channel, mask=exists, other=0)
    scale = tl.load(invstd + channel, mask=exists, other=0) * parameter(w, channel, exists, 1, ACC)
    v = tl.load(x + at, mask=inside, other=0).to(ACC)
    r = None
    if residual is not None:
        r = tl.load(residual + at, mask=inside, other=0).to(ACC)
    z = affine(v, r, mu, scale, parameter(b, channel, exists, 0, ACC), y.dtype.element_ty)
    if RELU:
        z = tl.where(z.to(ACC) <= 0, 0, z.to(ACC)).to(y.dtype.element_ty)  # a NaN stays
    tl.store(y + at, z, mask=inside)


# ---- backward -----------------------------------------------------------------------------------


@triton.jit
def backward_sums_kernel(
    dy, x, w, b, mean, invstd, residual, partials, ROWS, C, S, CHUNK, SPLITS,
    RELU: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Σ dy, Σ dy·(x − μ)"""
    channel, split = my_channels(C, BC, INDEX)
    exists = channel < C
    mu = tl.load(mean + channel, mask=exists, other=0)
    scale = tl.load(invstd + channel, mask=exists, other=0) * parameter(w, channel, exists, 1, ACC)
    bias = parameter(b, channel, exists, 0, ACC)
    start = split * CHUNK
    end = tl.minimum(start + CHUNK, ROWS)
    sum = tl.zeros((BR, BC), ACC)
    sum_x = tl.zeros((BR, BC), ACC)
    for first in range(0, CHUNK, BR):
        row = start + first + tl.arange(0, BR)[:, None]
        inside = exists & (row < end)
        at = element(row, channel, C, S, LAST)
        g, centred = masked_dy(dy, x, residual, at, inside, mu, scale, bias, RELU, ACC)
        sum += tl.where(inside, g, 0)
        sum_x += tl.where(inside, g * centred, 0)
    to = partials + split * C + channel
    tl.store(to, tl.sum(sum.to(tl.float64), 0)[None, :], mask=exists)
    tl.store(to + number(SPLITS, INDEX) * C, tl.sum(sum_x.to(tl.float64), 0)[None, :], mask=exists)


@triton.jit
def finish_backward_kernel(
    partials, w, invstd, dw, db, slopes, ROWS, C, SPLITS,
    TRAINING: tl.constexpr, INDEX: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dw, db, and in training the coefficients of x − μ and of 1 in dx."""
    channel, _ = my_channels(C, BC, INDEX)
    exists = channel < C
    sum = total(partials, channel, exists, SPLITS, C, BS, BC)
    r = tl.load(invstd + channel, mask=exists, other=0).to(tl.float64)
    dot = total(partials + number(SPLITS, INDEX) * C, channel, exists, SPLITS, C, BS, BC) * r
    if db is not None:
        tl.store(db + channel, sum.to(db.dtype.element_ty), mask=exists)
    if dw is not None:
        tl.store(dw + channel, dot.to(dw.dtype.element_ty), mask=exists)
    if TRAINING:
        scale = r * parameter(w, channel, exists, 1, tl.float64)
        m = number(ROWS, tl.float64)
        tl.store(slopes + channel, (-scale * r * (dot / m)).to(slopes.dtype.element_ty), mask=exists)
        tl.store(slopes + C + channel, (-scale * (sum / m)).to(slopes.dtype.element_ty), mask=exists)


@triton.jit
def backward_kernel(
    dy, x, w, b, mean, invstd, residual, slopes, dx, dresidual, ROWS, C, S,
    RELU: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx = w·r·dy (+ slope·(x − μ) + constant in training), and the residual's gradient."""
    channel, part = my_channels(C, BC, INDEX)
    exists = channel < C
    row = (part * BR + tl.arange(0, BR))[:, None]
    inside = exists & (row < ROWS)
    at = element(row, channel, C, S, LAST)
    mu = tl.load(mean + channel, mask=exists, other=0)
    scale = tl.load(invstd + channel, mask=exists, other=0) * parameter(w, channel, exists, 1, ACC)
    bias = parameter(b, channel, exists, 0, ACC)
    g, centred = masked_dy(dy, x, residual, at, inside, mu, scale, bias, RELU, ACC)
    if dresidual is not None:
        tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=inside)
    if dx is not None:
        v = g * scale
        if slopes is not None:  # in evaluation nothing of x may come in, which may be infinite
            slope = tl.load(slopes + channel, mask=exists, other=0)
            v += multiply_add(centred, slope, tl.load(slopes + C + channel, mask=exists, other=0))
        tl.store(dx + at, v.to(dx.dtype.element_ty), mask=inside)


# ---- launchers ----------------------------------------------------------------------------------


def in_two(name: str, value: float) -> dict[str, float]:
    """A number as the sum of two of fp32, which is what kernels take numbers as."""
    most = c_float(value).value
    return {name: most, name + "_REST": value - most if math.isfinite(most) else 0.0}


def slab_of(p: _C.BatchNormParams) -> Slab:
    return Slab(p.dtype, p.channels_last, p.n, p.c, p.in_[0] * p.in_[1] * p.in_[2])


def batch_norm_stats(p: _C.BatchNormParams) -> Run:
    slab = slab_of(p)
    learns = p.training and slab.rows > 0  # of an empty batch nothing is learnt
    moments = slab.reduce(statistics_kernel)
    finish = slab.combine(
        finish_statistics_kernel, CHUNK=slab.chunk, TRAINING=learns, ACC=accumulator(p.dtype),
        **in_two("MOMENTUM", p.momentum), **in_two("EPS", p.eps),
    )  # fmt: skip

    def run(
        x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, invstd: Tensor
    ) -> None:
        partials = slab.partials(x, 2) if learns else None
        if learns:
            moments(x, partials)
        finish(partials, running_mean, running_var, mean, invstd)

    return run


def batch_norm_apply(p: _C.BatchNormParams) -> Run:
    """(x, w, b, mean, invstd, residual, y)"""
    return slab_of(p).map(apply_kernel, RELU=p.relu)


def batch_norm(p: _C.BatchNormParams) -> Run:
    stats, apply = batch_norm_stats(p), batch_norm_apply(p)

    def run(
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        y: Tensor,
    ) -> None:
        stats(x, running_mean, running_var, mean, invstd)
        apply(x, w, b, mean, invstd, residual, y)

    return run


def batch_norm_backward(p: _C.BatchNormParams) -> Run:
    slab = slab_of(p)
    training = p.training and slab.rows > 0
    sums = slab.reduce(backward_sums_kernel, RELU=p.relu)
    finish = slab.combine(finish_backward_kernel, TRAINING=training)
    write = slab.map(backward_kernel, RELU=p.relu)

    def run(
        dy: Tensor,
        x: Tensor | None,
        w: Tensor | None,
        b: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        residual: Tensor | None,
        dx: Tensor | None,
        dw: Tensor | None,
        db: Tensor | None,
        dresidual: Tensor | None,
    ) -> None:
        if not p.relu:
            residual = None
        slopes = slab.coefficients(dy, 2) if training and dx is not None else None
        if slopes is not None or dw is not None or db is not None:
            partials = slab.partials(dy, 2)
            sums(dy, x, w, b, mean, invstd, residual, partials)
            finish(partials, w, invstd, dw, db, slopes if slopes is not None else slab.coefficients(dy, 2))
        if dx is not None or dresidual is not None:
            write(dy, x, w, b, mean, invstd, residual, slopes, dx, dresidual)

    return run
