"""Interpolation (resizing). A linear op and its adjoint, each the other's gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C
from fastops.backends import DTYPES, launch
from fastops.ops import layout
from fastops.ops.autograd import call

# torch's mode → the kernels' filter.
FILTERS = {
    "nearest": _C.Filter.nearest,
    "nearest-exact": _C.Filter.nearest_exact,
    "bilinear": _C.Filter.linear,
    "bicubic": _C.Filter.cubic,
    "lanczos": _C.Filter.lanczos,
}


class InterpolateSpec(NamedTuple):
    """Options of an interpolation; (height, width) pairs. Either size or scale is given."""

    mode: str
    size: tuple[int, int] | None
    scale: tuple[float, float] | None
    recompute: bool  # coordinates come from the ratio of the sizes, not from scale
    align_corners: bool
    antialias: bool


class Plan(NamedTuple):
    """What one call needs: raw op, params, and the shapes on both sides."""

    op: str
    params: _C.InterpolateParams
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def scaled_size(size: int, scale: float) -> int:
    """Output size for a factor; RuntimeError where that is no number."""
    try:
        return int(size * scale)
    except (OverflowError, ValueError):
        raise RuntimeError(
            f"interpolate: scale_factor must be a finite positive number, got {scale}"
        ) from None


def output_size(spec: InterpolateSpec, shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of the result for an (N, C, H, W) shape; may be 0 or negative."""
    if spec.size is not None:
        return spec.size
    assert spec.scale is not None
    return scaled_size(shape[2], spec.scale[0]), scaled_size(shape[3], spec.scale[1])


@lru_cache(maxsize=4096)
def interpolate_plan(
    spec: InterpolateSpec, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, adjoint: bool
) -> Plan:
    n, c, h, w = shape
    out = output_size(spec, shape)
    if min(h, w, *out) < 1:
        raise RuntimeError(
            f"interpolate: input and output sizes should be greater than 0, but got input {(h, w)}, "
            f"output {out} (size={spec.size}, scale_factor={spec.scale})"
        )
    if max(out) >= 2**31:
        raise RuntimeError(f"interpolate: output size {out} is too large (scale_factor={spec.scale})")
    if c == 0:
        raise RuntimeError(f"interpolate: only the batch of the input may be empty, got shape {tuple(shape)}")
    params = _C.InterpolateParams(
        dtype=DTYPES[dtype],
        channels_last=channels_last,
        n=n,
        c=c,
        in_=(1, h, w),
        out=(1, *out),
        filter=FILTERS[spec.mode],
        scale=(0.0, *((0.0, 0.0) if spec.scale is None or spec.recompute else spec.scale)),
        align_corners=spec.align_corners,
        antialias=spec.antialias,
    )
    weighted = "interpolate_weighted_u8" if dtype is torch.uint8 else "interpolate_weighted"
    op = "interpolate_nearest" if spec.mode.startswith("nearest") else weighted
    return Plan(op + "_adjoint" if adjoint else op, params, tuple(shape), (n, c, *out))


class Interpolate(torch.autograd.Function):
    """y = x, resized."""

    @staticmethod
    def forward(x: Tensor, spec: InterpolateSpec) -> Tensor:
        memory_format = layout.format_of(x)
        plan = interpolate_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST, False)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        launch(plan.op, plan.params, layout.dense(x, memory_format), y)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, ctx.spec = inputs
        ctx.shape, ctx.memory_format = x.shape, layout.format_of(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return call(InterpolateAdjoint, dy, ctx.spec, ctx.shape, ctx.memory_format), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return call(Interpolate, dx, ctx.spec)


class InterpolateAdjoint(torch.autograd.Function):
    """dx = the transpose of Interpolate, for an input of the given shape and layout, applied to dy."""

    @staticmethod
    def forward(
        dy: Tensor, spec: InterpolateSpec, shape: tuple[int, ...], memory_format: torch.memory_format
    ) -> Tensor:
        plan = interpolate_plan(spec, shape, dy.dtype, memory_format is layout.CHANNELS_LAST, True)
        dx = layout.empty_like(dy, plan.in_shape, memory_format)
        launch(plan.op, plan.params, layout.dense(dy, memory_format), dx)
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.spec, ctx.shape, ctx.memory_format = inputs

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, None, None, None]:
        return call(Interpolate, ddx, ctx.spec), None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Tensor, *_: None) -> Tensor:
        return call(InterpolateAdjoint, ddy, ctx.spec, ctx.shape, ctx.memory_format)
