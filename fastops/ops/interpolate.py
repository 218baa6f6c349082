"""Interpolation (resizing). A linear op and its adjoint, each the other's gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C, arguments
from fastops.backends import DTYPES, launch
from fastops.ops import batching, given, layout
from fastops.ops.autograd import call
from fastops.ops.library import raw_op

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
    if not isinstance(size, int):
        return torch.sym_int(size * scale)
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


def resized_shape(spec: InterpolateSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The result's shape; raises where there is none."""
    n, c, h, w = shape
    out = output_size(spec, shape)
    if h < 1 or w < 1 or out[0] < 1 or out[1] < 1:
        raise RuntimeError(
            f"interpolate: input and output sizes should be greater than 0, but got input {(h, w)}, "
            f"output {out} (size={spec.size}, scale_factor={spec.scale})"
        )
    if out[0] >= 2**31 or out[1] >= 2**31:
        raise RuntimeError(f"interpolate: output size {out} is too large (scale_factor={spec.scale})")
    if c == 0:
        raise RuntimeError(f"interpolate: only the batch of the input may be empty, got shape {tuple(shape)}")
    return (n, c, *out)


def check_options(op: str, spec: InterpolateSpec) -> None:
    """Raises unless there is such a mode, and one pair of sizes or factors."""
    if spec.mode not in FILTERS:
        raise ValueError(f"{op}: mode should be one of {tuple(FILTERS)}, but got {spec.mode!r}")
    if (spec.size is None) == (spec.scale is None):
        raise ValueError(f"{op}: either size or scale should be given")
    given.sizes(op, 2, size=spec.scale if spec.size is None else spec.size)


@lru_cache(maxsize=4096)
def interpolate_plan(
    spec: InterpolateSpec, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, adjoint: bool
) -> Plan:
    n, c, h, w = shape
    out_shape = resized_shape(spec, shape)
    # Along an axis whose size stays torch copies, whatever the factor; not so in the other modes.
    copies = spec.mode == "bilinear" or spec.antialias or (spec.mode == "bicubic" and dtype is torch.uint8)
    scale = (0.0, 0.0)  # the ratio of sizes
    if spec.scale is not None and not spec.recompute:
        scale = (
            0.0 if copies and out_shape[2] == h else spec.scale[0],
            0.0 if copies and out_shape[3] == w else spec.scale[1],
        )
    params = _C.InterpolateParams(
        dtype=DTYPES[dtype],
        channels_last=channels_last,
        n=n,
        c=c,
        in_=(1, h, w),
        out=(1, *out_shape[2:]),
        filter=FILTERS[spec.mode],
        scale=(0.0, *scale),
        align_corners=spec.align_corners,
        antialias=spec.antialias,
    )
    weighted = "interpolate_weighted_u8" if dtype is torch.uint8 else "interpolate_weighted"
    op = "interpolate_nearest" if spec.mode.startswith("nearest") else weighted
    return Plan(op + "_adjoint" if adjoint else op, params, tuple(shape), out_shape)


@raw_op("interpolate(Tensor x, OPTIONS) -> Tensor", InterpolateSpec)
class Interpolate(torch.autograd.Function):
    """y = x, resized."""

    @staticmethod
    def check(op: str, x: Tensor, spec: InterpolateSpec) -> None:
        given.images(op, (*arguments.FLOATING, torch.uint8), x=x)
        check_options(op, spec)

    @staticmethod
    def compute(x: Tensor, spec: InterpolateSpec) -> Tensor:
        memory_format = layout.format_of(x)
        plan = interpolate_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST, False)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        launch(plan.op, plan.params, layout.dense(x, memory_format), y)
        return y

    @staticmethod
    def fake(x: Tensor, spec: InterpolateSpec) -> Tensor:
        return layout.empty_like(x, resized_shape(spec, x.shape), layout.format_of(x))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, spec: InterpolateSpec
    ) -> tuple[Tensor, int]:
        batch = batching.into_batch(x, in_dims[0], info.batch_size)
        return batching.out_of_batch(call(Interpolate, batch, spec), info.batch_size), 0

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


@raw_op(
    "interpolate_adjoint(Tensor dy, OPTIONS, SymInt[4] shape, MemoryFormat memory_format) -> Tensor",
    InterpolateSpec,
)
class InterpolateAdjoint(torch.autograd.Function):
    """dx = the transpose of Interpolate, for an input of the given shape and layout, applied to dy."""

    @staticmethod
    def check(
        op: str,
        dy: Tensor,
        spec: InterpolateSpec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> None:
        given.images(op, dy=dy)
        check_options(op, spec)
        given.sizes(op, 4, shape=shape)
        given.same_shape(op, resized_shape(spec, shape), dy=dy)
        given.known_format(op, memory_format)

    @staticmethod
    def compute(
        dy: Tensor, spec: InterpolateSpec, shape: tuple[int, ...], memory_format: torch.memory_format
    ) -> Tensor:
        plan = interpolate_plan(spec, shape, dy.dtype, memory_format is layout.CHANNELS_LAST, True)
        dx = layout.empty_like(dy, plan.in_shape, memory_format)
        launch(plan.op, plan.params, layout.dense(dy, memory_format), dx)
        return dx

    @staticmethod
    def fake(
        dy: Tensor, spec: InterpolateSpec, shape: tuple[int, ...], memory_format: torch.memory_format
    ) -> Tensor:
        return layout.empty_like(dy, shape, memory_format)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        spec: InterpolateSpec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> tuple[Tensor, int]:
        batch = batching.into_batch(dy, in_dims[0], info.batch_size)
        dx = call(InterpolateAdjoint, batch, spec, (info.batch_size * shape[0], *shape[1:]), memory_format)
        return batching.out_of_batch(dx, info.batch_size), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.spec, ctx.shape, ctx.memory_format = inputs

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, None, None, None]:
        return call(Interpolate, ddx, ctx.spec), None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Tensor, *_: None) -> Tensor:
        return call(InterpolateAdjoint, ddy, ctx.spec, ctx.shape, ctx.memory_format)
