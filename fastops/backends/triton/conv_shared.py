"""What the convolutions' files share: axes, strides, and the parts of a weight gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastops import _C
from fastops.backends.triton.runtime import Launch, accumulator, accumulator_dtype, ceil_div, index_type


def axes(p: _C.ConvParams, input_grad: bool) -> Iterator[tuple[_C.TapAxis, _C.TapAxis]]:
    """(along h, along w) of each problem: one, or each phase of the input gradient's stride."""
    ends = [(p.in_[a], p.out[a], p.kernel[a], p.stride[a], p.pad[a], p.dilation[a]) for a in (1, 2)]
    if not input_grad:
        yield _C.forward_taps(*ends[0]), _C.forward_taps(*ends[1])
        return
    of_h, of_w = (
        [_C.input_grad_taps(*axis, phase) for phase in range(min(axis[3], axis[0]))] for axis in ends
    )
    for h in of_h:
        for w in of_w:
            yield h, w


def strides(channels_last: bool, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Elements from image to image, row to row, column to column, channel to channel."""
    if channels_last:
        return height * width * channels, width * channels, channels, 1
    return channels * height * width, width, 1, height * width


def tap_arguments(p: _C.ConvParams, input_grad: bool, h: _C.TapAxis, w: _C.TapAxis) -> dict[str, int]:
    """What kernels of a sum over taps know of source, result (from result_from on) and axes."""
    ends = (p.c, *p.in_[1:]), (p.k, *p.out[1:])
    source, result = ends[::-1] if input_grad else ends
    sn, sh, sw, sc = strides(p.channels_last, *source)
    rn, rh, rw, rc = strides(p.channels_last, *result)
    return {
        "GRID_H": h.grid, "GRID_W": w.grid, "SOURCE_H": h.source, "SOURCE_W": w.source,
        "SN": sn, "SH": sh, "SW": sw, "SC": sc,
        "RN": rn, "RH": h.out_step * rh, "RW": w.out_step * rw, "RC": rc,
        "STEP_H": h.step, "STEP_W": w.step, "OFF_H": h.off0, "OFF_W": w.off0,
        "OFF_STEP_H": h.off_step, "OFF_STEP_W": w.off_step, "TAPS_H": h.taps, "TAPS_W": w.taps,
    }  # fmt: skip


def result_from(p: _C.ConvParams, input_grad: bool, h: _C.TapAxis, w: _C.TapAxis) -> int:
    """Where the results of a phase begin, in elements."""
    channels, size = (p.c, p.in_) if input_grad else (p.k, p.out)
    _, row, column, _ = strides(p.channels_last, channels, *size[1:])
    return h.out0 * row + w.out0 * column


def weight_grad_arguments(p: _C.ConvParams) -> dict[str, int]:
    """What kernels of the weight gradient know of dy, x and the windows."""
    yn, yh, yw, yc = strides(p.channels_last, p.k, *p.out[1:])
    xn, xh, xw, xc = strides(p.channels_last, p.c, *p.in_[1:])
    return {
        "P": p.out[1], "Q": p.out[2], "H": p.in_[1], "W": p.in_[2],
        "YN": yn, "YH": yh, "YW": yw, "YC": yc, "XN": xn, "XH": xh, "XW": xw, "XC": xc,
        "STRIDE_H": p.stride[1], "STRIDE_W": p.stride[2], "PAD_H": p.pad[1], "PAD_W": p.pad[2],
        "DILATION_H": p.dilation[1], "DILATION_W": p.dilation[2],
        "TAPS": p.kernel[1] * p.kernel[2], "TAPS_W": p.kernel[2],
    }  # fmt: skip


def index_of(p: _C.ConvParams) -> tl.dtype:
    """The type of indices: also of places outside of the image, which are computed before they are masked."""
    reach = [p.out[a] * p.stride[a] + p.kernel[a] * p.dilation[a] + p.pad[a] for a in (1, 2)]
    back = [p.in_[a] + p.kernel[a] * p.dilation[a] + p.pad[a] for a in (1, 2)]
    return index_type(
        p.n * p.c * max(p.in_[1], reach[0]) * max(p.in_[2], reach[1]),
        p.n * p.k * max(p.out[1], back[0]) * max(p.out[2], back[1]),
        p.k * (p.c // p.groups) * p.kernel[1] * p.kernel[2],
    )


# ---- the parts of a weight gradient: [split][k][tap][channel of the group] ------------------------


@triton.jit
def finish_weight_grad_kernel(
    partials, dw, WEIGHTS, SPLITS, CI,
    TAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(INDEX) * B + tl.arange(0, B)
    exists = i < WEIGHTS
    acc = tl.zeros((B,), ACC)
    for _ in range(SPLITS):
        acc += tl.load(partials + i, mask=exists, other=0)
        partials += WEIGHTS
    if CHANNELS_LAST:
        to = i
    else:
        c = i % CI
        tap = i // CI % TAPS
        to = (i // (CI * TAPS) * CI + c) * TAPS + tap
    tl.store(dw + to, acc.to(dw.dtype.element_ty), mask=exists)


def new_partials(p: _C.ConvParams, splits: int, dw: Tensor) -> Tensor:
    return torch.empty(splits * dw.numel(), dtype=accumulator_dtype(p.dtype), device=dw.device)


def finish_weight_grad(p: _C.ConvParams, splits: int) -> Launch:
    """dw from its parts."""
    ci, taps = p.c // p.groups, p.kernel[1] * p.kernel[2]
    weights = p.k * ci * taps
    return Launch(
        finish_weight_grad_kernel, ceil_div(weights, 512), WEIGHTS=weights, SPLITS=splits, CI=ci, TAPS=taps,
        CHANNELS_LAST=p.weight_channels_last, INDEX=index_type(weights + 512),
        ACC=accumulator(p.dtype), B=512,
    )  # fmt: skip
