"""Max pooling and unpooling.

At fixed positions max pooling is linear: ``Gather``. Its transpose is ``ScatterAdd``, and each is the
other's derivative, to any order. Unpooling assigns where ScatterAdd accumulates; ``MaxUnpool`` and
``MaxUnpoolAdjoint`` are such a pair of their own.

Positions are flat in the input's plane and have the output's shape and layout: int64 where the caller
gets them, int32 where only derivatives read them. Some backends have it in a byte instead, the number of
the tap inside its window.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C
from fastops.backends import DTYPES, NUMBERS_TAPS, choose, launch
from fastops.ops import layout
from fastops.ops.autograd import call, is_differentiated
from fastops.ops.pool import AdaptiveSpec, Plan, checked_pooled_size

INDEX_TYPES = {
    torch.int64: _C.IndexType.i64,
    torch.int32: _C.IndexType.i32,
    torch.uint8: _C.IndexType.u8,
}


class MaxPoolSpec(NamedTuple):
    """Options of a max pooling; (height, width) pairs."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


Spec = MaxPoolSpec | AdaptiveSpec


@lru_cache(maxsize=4096)
def max_pool_plan(
    spec: Spec,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    positions: torch.dtype | None,
) -> Plan:
    n, c, h, w = shape
    options: dict[str, Any]
    if isinstance(spec, AdaptiveSpec):
        if 0 in (c, h, w):
            raise RuntimeError(
                f"adaptive_max_pool2d: only the batch of the input may be empty, got shape {tuple(shape)}"
            )
        out = tuple(o if o is not None else i for o, i in zip(spec.output_size, (h, w), strict=True))
        rows = h // out[0] + 2 if out[0] else 0
        options = dict(adaptive=True)
    else:
        out = checked_pooled_size(
            "max_pool2d", shape, spec.kernel, spec.stride, spec.padding, spec.dilation, spec.ceil_mode
        )
        rows = min((spec.kernel[0] - 1) * spec.dilation[0] + 1, h)
        options = dict(
            kernel=(1, *spec.kernel),
            stride=(1, *spec.stride),
            pad=(0, *spec.padding),
            dilation=(1, *spec.dilation),
        )
    # Kernels count positions inside a window in 32 bits, and leave a bit for places outside the input.
    if min(rows, h) * w >= 2**30:
        raise NotImplementedError(
            f"max pooling: a window may span at most 2**30 elements of a plane, but the input is "
            f"{tuple(shape)} and the output {out}"
        )
    params = _C.PoolParams(
        dtype=DTYPES[dtype],
        channels_last=channels_last,
        n=n,
        c=c,
        in_=(1, h, w),
        out=(1, *out),
        positions=INDEX_TYPES[positions or torch.int64],
        **options,
    )
    return Plan(params, tuple(shape), (n, c, *out))


@lru_cache(maxsize=4096)
def narrowest(spec: Spec, height: int, width: int, numbers_taps: bool) -> torch.dtype:
    """The dtype for positions that only derivatives read."""
    if isinstance(spec, AdaptiveSpec):
        sizes = zip((height, width), spec.output_size, strict=True)
        taps = math.prod(1 if o is None else i // o if i % o == 0 else i // o + 2 for i, o in sizes if o != 0)
    else:
        taps = math.prod(spec.kernel)
    if numbers_taps and taps < 256:  # 255 is for windows without an element
        return torch.uint8
    return torch.int32 if height * width < 2**31 else torch.int64


def max_pool(x: Tensor, spec: Spec, return_indices: bool) -> tuple[Tensor, Tensor | None]:
    """Maxima over windows and, where asked for, their int64 positions (else None)."""
    if is_differentiated(x):
        # Derivatives need positions too. Those that nobody else sees may be narrow.
        if return_indices:
            return call(MaxPool, x, spec, torch.int64)
        numbers_taps = choose("max_pool", x.device.type).backend in NUMBERS_TAPS
        return call(MaxPool, x, spec, narrowest(spec, x.shape[2], x.shape[3], numbers_taps))
    return MaxPool.forward(x, spec, torch.int64 if return_indices else None)


class MaxPool(torch.autograd.Function):
    """(y, positions) = the maxima of x over windows, and where they are. No positions: None."""

    @staticmethod
    def forward(x: Tensor, spec: Spec, index_dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        memory_format = layout.format_of(x)
        plan = max_pool_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST, index_dtype)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        positions = layout.empty_like(x, plan.out_shape, memory_format, index_dtype) if index_dtype else None
        launch("max_pool", plan.params, layout.dense(x, memory_format), y, positions)
        return y, positions

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        x, ctx.spec, _ = inputs
        ctx.shape, ctx.memory_format = x.shape, layout.format_of(x)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (positions,) = ctx.saved_tensors
        return call(ScatterAdd, dy, positions, ctx.spec, ctx.shape, ctx.memory_format), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return call(Gather, dx, positions, ctx.spec, ctx.memory_format), None


class Gather(torch.autograd.Function):
    """y = x at positions that MaxPool found: its derivative. The layout is the positions'."""

    @staticmethod
    def forward(x: Tensor, positions: Tensor, spec: Spec, memory_format: torch.memory_format) -> Tensor:
        plan = max_pool_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST, positions.dtype)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        launch(
            "gather", plan.params, layout.dense(x, memory_format), layout.dense(positions, memory_format), y
        )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, positions, ctx.spec, ctx.memory_format = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(positions)
        ctx.save_for_forward(positions)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        (positions,) = ctx.saved_tensors
        return call(ScatterAdd, dy, positions, ctx.spec, ctx.shape, ctx.memory_format), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        (positions,) = ctx.saved_tensors
        return call(Gather, dx, positions, ctx.spec, ctx.memory_format)


class ScatterAdd(torch.autograd.Function):
    """dx = the transpose of Gather, for an input of the given shape and layout, applied to dy."""

    @staticmethod
    def forward(
        dy: Tensor,
        positions: Tensor,
        spec: Spec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> Tensor:
        plan = max_pool_plan(spec, shape, dy.dtype, memory_format is layout.CHANNELS_LAST, positions.dtype)
        dx = layout.empty_like(dy, plan.in_shape, memory_format)
        launch(
            "scatter_add",
            plan.params,
            layout.dense(dy, memory_format),
            layout.dense(positions, memory_format),
            dx,
        )
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, positions, ctx.spec, ctx.shape, ctx.memory_format = inputs
        ctx.save_for_backward(positions)
        ctx.save_for_forward(positions)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, None, None, None, None]:
        (positions,) = ctx.saved_tensors
        return call(Gather, ddx, positions, ctx.spec, ctx.memory_format), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Tensor, *_: None) -> Tensor:
        (positions,) = ctx.saved_tensors
        return call(ScatterAdd, ddy, positions, ctx.spec, ctx.shape, ctx.memory_format)


# ---- unpooling ----------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def unpool_plan(
    shape: tuple[int, ...], output_size: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> tuple[_C.UnpoolParams, tuple[int, ...]]:
    """The kernel's params and y's shape."""
    n, c, h, w = shape
    if 0 in (c, h, w):
        raise RuntimeError(
            f"max_unpool2d: only the batch of the input may be empty, got shape {tuple(shape)}"
        )
    params = _C.UnpoolParams(
        dtype=DTYPES[dtype], channels_last=channels_last, n=n, c=c, in_=(1, h, w), out=(1, *output_size)
    )
    return params, (n, c, *output_size)


class MaxUnpool(torch.autograd.Function):
    """y = zeros with x assigned at the indices; of equal indices the last in raster order wins."""

    @staticmethod
    def forward(
        x: Tensor, indices: Tensor, output_size: tuple[int, int], memory_format: torch.memory_format
    ) -> Tensor:
        params, shape = unpool_plan(x.shape, output_size, x.dtype, memory_format is layout.CHANNELS_LAST)
        y = layout.empty_like(x, shape, memory_format)
        launch("max_unpool", params, layout.dense(x, memory_format), layout.dense(indices, memory_format), y)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, indices, ctx.output_size, ctx.memory_format = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        return call(MaxUnpoolAdjoint, dy, indices, ctx.output_size, ctx.memory_format), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return call(MaxUnpool, dx, indices, ctx.output_size, ctx.memory_format)


class MaxUnpoolAdjoint(torch.autograd.Function):
    """dx = the transpose of MaxUnpool applied to dy.

    An element that lost its place to a duplicate does not reach y, so its gradient is zero; torch gives
    it the winner's.
    """

    @staticmethod
    def forward(
        dy: Tensor, indices: Tensor, output_size: tuple[int, int], memory_format: torch.memory_format
    ) -> Tensor:
        params, _ = unpool_plan(indices.shape, output_size, dy.dtype, memory_format is layout.CHANNELS_LAST)
        dx = layout.empty_like(dy, indices.shape, memory_format)
        launch(
            "max_unpool_adjoint",
            params,
            layout.dense(dy, memory_format),
            layout.dense(indices, memory_format),
            dx,
        )
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, indices, ctx.output_size, ctx.memory_format = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        return call(MaxUnpool, ddx, indices, ctx.output_size, ctx.memory_format), None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Tensor, *_: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return call(MaxUnpoolAdjoint, ddy, indices, ctx.output_size, ctx.memory_format)
