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
from torch.compiler import is_compiling

from fastops import _C
from fastops.backends import DTYPES, NUMBERS_TAPS, choose, launch
from fastops.ops import batching, given, layout
from fastops.ops.autograd import call, is_differentiated
from fastops.ops.library import raw_op
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


def max_pooled_shape(spec: Spec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The output's shape; raises where there is none."""
    if isinstance(spec, AdaptiveSpec):
        if 0 in shape[1:]:
            raise RuntimeError(
                f"adaptive_max_pool2d: only the batch of the input may be empty, got shape {tuple(shape)}"
            )
        return (*shape[:2], *spec.output_size)
    options = spec.kernel, spec.stride, spec.padding, spec.dilation, spec.ceil_mode
    return (*shape[:2], *checked_pooled_size("max_pool2d", shape, *options))


def check_max_options(op: str, spec: Spec) -> None:
    """Raises unless the pairs are such, and their numbers have the right signs."""
    if isinstance(spec, AdaptiveSpec):
        return given.non_negative(op, output_size=spec.output_size)
    given.positive(op, kernel=spec.kernel, stride=spec.stride, dilation=spec.dilation)
    given.non_negative(op, padding=spec.padding)


@lru_cache(maxsize=4096)
def max_pool_plan(
    spec: Spec,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    positions: torch.dtype | None,
) -> Plan:
    n, c, h, w = shape
    out_shape = max_pooled_shape(spec, shape)
    options: dict[str, Any]
    if isinstance(spec, AdaptiveSpec):
        rows = h // out_shape[2] + 2 if out_shape[2] else 0
        options = dict(adaptive=True)
    else:
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
            f"{tuple(shape)} and the output {out_shape[2:]}"
        )
    params = _C.PoolParams(
        dtype=DTYPES[dtype],
        channels_last=channels_last,
        n=n,
        c=c,
        in_=(1, h, w),
        out=(1, *out_shape[2:]),
        positions=INDEX_TYPES[positions or torch.int64],
        **options,
    )
    return Plan(params, tuple(shape), out_shape)


@lru_cache(maxsize=4096)
def _numbers_fit(spec: Spec, height: int, width: int) -> bool:
    """Whether a byte numbers a window's taps; 255 is for windows without an element."""
    if isinstance(spec, AdaptiveSpec):
        sizes = zip((height, width), spec.output_size, strict=True)
        return math.prod(i // o if i % o == 0 else i // o + 2 for i, o in sizes if o != 0) < 255
    return math.prod(spec.kernel) < 255


def narrowest(spec: Spec, height: int, width: int, numbers_taps: bool) -> torch.dtype:
    """The dtype for positions that only derivatives read."""
    if numbers_taps and _numbers_fit(spec, height, width):
        return torch.uint8
    return torch.int32 if height * width < 2**31 else torch.int64


# Which positions max pooling is to give; NARROW: of the narrowest dtype that will do.
NO_POSITIONS, NARROW, INT64 = "none", "narrow", "int64"
POSITIONS = {NO_POSITIONS: None, "uint8": torch.uint8, "int32": torch.int32, INT64: torch.int64}


def _index_dtype(x: Tensor, spec: Spec, positions: str) -> torch.dtype | None:
    if positions == NARROW:
        numbers_taps = choose("max_pool", x.device.type).backend in NUMBERS_TAPS
        return narrowest(spec, x.shape[2], x.shape[3], numbers_taps)
    return POSITIONS[positions]


def max_pool(x: Tensor, spec: Spec, return_indices: bool) -> tuple[Tensor, Tensor | None]:
    """Maxima over windows and, where asked for, their int64 positions (else None)."""
    # Derivatives need positions too. Those that nobody else sees may be narrow.
    positions = INT64 if return_indices else NARROW if is_differentiated(x) else NO_POSITIONS
    if positions is NO_POSITIONS and not is_compiling():
        return MaxPool.forward(x, spec, positions)
    return call(MaxPool, x, spec, positions)


@raw_op("adaptive_max_pool2d(Tensor x, OPTIONS, str positions) -> (Tensor, Tensor)", AdaptiveSpec)
@raw_op("max_pool2d(Tensor x, OPTIONS, str positions) -> (Tensor, Tensor)", MaxPoolSpec)
class MaxPool(torch.autograd.Function):
    """(y, positions) = the maxima of x over windows, and where they are. No positions: None."""

    @staticmethod
    def check(op: str, x: Tensor, spec: Spec, positions: str) -> None:
        given.images(op, x=x)
        check_max_options(op, spec)
        known = NARROW, *POSITIONS
        if positions not in known:
            raise ValueError(f"{op}: positions should be one of {known}, but got {positions!r}")

    @staticmethod
    def compute(x: Tensor, spec: Spec, positions: str) -> tuple[Tensor, Tensor | None]:
        memory_format, index_dtype = layout.format_of(x), _index_dtype(x, spec, positions)
        plan = max_pool_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST, index_dtype)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        where = layout.empty_like(x, plan.out_shape, memory_format, index_dtype) if index_dtype else None
        launch("max_pool", plan.params, layout.dense(x, memory_format), y, where)
        return y, where

    @staticmethod
    def fake(x: Tensor, spec: Spec, positions: str) -> tuple[Tensor, Tensor | None]:
        memory_format, index_dtype = layout.format_of(x), _index_dtype(x, spec, positions)
        shape = max_pooled_shape(spec, x.shape)
        where = layout.empty_like(x, shape, memory_format, index_dtype) if index_dtype else None
        return layout.empty_like(x, shape, memory_format), where

    @staticmethod
    def present(x: Tensor, spec: Spec, positions: str) -> tuple[bool, ...]:
        return True, positions != NO_POSITIONS

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, spec: Spec, positions: str
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        size = info.batch_size
        y, where = call(MaxPool, batching.into_batch(x, in_dims[0], size), spec, positions)
        found = batching.out_of_batch(y, size), batching.out_of_batch(where, size)
        return found, (0, None if where is None else 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        x, ctx.spec, _ = inputs
        ctx.shape, ctx.memory_format = x.shape, layout.format_of(x)
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (positions,) = ctx.saved_tensors
        if positions is None:
            raise RuntimeError("max pooling without positions has no gradient")
        return call(ScatterAdd, dy, positions, ctx.spec, ctx.shape, ctx.memory_format), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return call(Gather, dx, positions, ctx.spec, ctx.memory_format), None


@raw_op(
    "adaptive_max_pool2d_gather(Tensor x, Tensor positions, OPTIONS, MemoryFormat memory_format) -> Tensor",
    AdaptiveSpec,
)
@raw_op(
    "max_pool2d_gather(Tensor x, Tensor positions, OPTIONS, MemoryFormat memory_format) -> Tensor",
    MaxPoolSpec,
)
class Gather(torch.autograd.Function):
    """y = x at positions that MaxPool found: its derivative. The layout is the positions'."""

    @staticmethod
    def check(op: str, x: Tensor, positions: Tensor, spec: Spec, memory_format: torch.memory_format) -> None:
        given.images(op, x=x)
        given.images(op, tuple(INDEX_TYPES), positions=positions)
        check_max_options(op, spec)
        given.same_shape(op, max_pooled_shape(spec, x.shape), positions=positions)
        given.known_format(op, memory_format)

    @staticmethod
    def compute(x: Tensor, positions: Tensor, spec: Spec, memory_format: torch.memory_format) -> Tensor:
        plan = max_pool_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST, positions.dtype)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        launch(
            "gather", plan.params, layout.dense(x, memory_format), layout.dense(positions, memory_format), y
        )
        return y

    @staticmethod
    def fake(x: Tensor, positions: Tensor, spec: Spec, memory_format: torch.memory_format) -> Tensor:
        return layout.empty_like(x, positions.shape, memory_format)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        positions: Tensor,
        spec: Spec,
        memory_format: torch.memory_format,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        batches = (batching.into_batch(t, dim, size) for t, dim in zip((x, positions), in_dims, strict=False))
        return batching.out_of_batch(call(Gather, *batches, spec, memory_format), size), 0

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


@raw_op(
    "adaptive_max_pool2d_scatter_add(Tensor dy, Tensor positions, OPTIONS, SymInt[4] shape, "
    "MemoryFormat memory_format) -> Tensor",
    AdaptiveSpec,
)
@raw_op(
    "max_pool2d_scatter_add(Tensor dy, Tensor positions, OPTIONS, SymInt[4] shape, "
    "MemoryFormat memory_format) -> Tensor",
    MaxPoolSpec,
)
class ScatterAdd(torch.autograd.Function):
    """dx = the transpose of Gather, for an input of the given shape and layout, applied to dy."""

    @staticmethod
    def check(
        op: str,
        dy: Tensor,
        positions: Tensor,
        spec: Spec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> None:
        given.images(op, dy=dy)
        given.images(op, tuple(INDEX_TYPES), positions=positions)
        check_max_options(op, spec)
        given.sizes(op, 4, shape=shape)
        given.same_shape(op, max_pooled_shape(spec, shape), dy=dy, positions=positions)
        given.known_format(op, memory_format)

    @staticmethod
    def compute(
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
    def fake(
        dy: Tensor,
        positions: Tensor,
        spec: Spec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> Tensor:
        return layout.empty_like(dy, shape, memory_format)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        positions: Tensor,
        spec: Spec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        batches = (
            batching.into_batch(t, dim, size) for t, dim in zip((dy, positions), in_dims, strict=False)
        )
        dx = call(ScatterAdd, *batches, spec, (size * shape[0], *shape[1:]), memory_format)
        return batching.out_of_batch(dx, size), 0

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


def unpooled_shape(shape: tuple[int, ...], output_size: tuple[int, int]) -> tuple[int, ...]:
    """The output's shape; raises where there is none."""
    if 0 in shape[1:]:
        raise RuntimeError(
            f"max_unpool2d: only the batch of the input may be empty, got shape {tuple(shape)}"
        )
    return (*shape[:2], *output_size)


@lru_cache(maxsize=4096)
def unpool_plan(
    shape: tuple[int, ...], output_size: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> tuple[_C.UnpoolParams, tuple[int, ...]]:
    """The kernel's params and y's shape."""
    n, c, h, w = shape
    out_shape = unpooled_shape(shape, output_size)
    params = _C.UnpoolParams(
        dtype=DTYPES[dtype], channels_last=channels_last, n=n, c=c, in_=(1, h, w), out=(1, *output_size)
    )
    return params, out_shape


@raw_op(
    "max_unpool2d(Tensor x, Tensor indices, SymInt[2] output_size, MemoryFormat? memory_format) -> Tensor"
)
class MaxUnpool(torch.autograd.Function):
    """y = zeros with x assigned at the indices; of equal indices the last in raster order wins."""

    @staticmethod
    def check(
        op: str,
        x: Tensor,
        indices: Tensor,
        output_size: tuple[int, int],
        memory_format: torch.memory_format | None,
    ) -> None:
        given.images(op, x=x)
        given.images(op, (torch.int64,), indices=indices)
        given.same_shape(op, x.shape, indices=indices)
        given.non_negative(op, output_size=output_size)
        given.known_format(op, memory_format)

    @staticmethod
    def compute(
        x: Tensor, indices: Tensor, output_size: tuple[int, int], memory_format: torch.memory_format | None
    ) -> Tensor:
        memory_format = memory_format or layout.format_of(x)
        params, shape = unpool_plan(x.shape, output_size, x.dtype, memory_format is layout.CHANNELS_LAST)
        y = layout.empty_like(x, shape, memory_format)
        launch("max_unpool", params, layout.dense(x, memory_format), layout.dense(indices, memory_format), y)
        return y

    @staticmethod
    def fake(
        x: Tensor, indices: Tensor, output_size: tuple[int, int], memory_format: torch.memory_format | None
    ) -> Tensor:
        shape = unpooled_shape(x.shape, output_size)
        return layout.empty_like(x, shape, memory_format or layout.format_of(x))

    @staticmethod
    def autocast(device: str) -> torch.dtype:
        return torch.float32  # torch's list has max_unpool2d among the ops that want it

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        indices: Tensor,
        output_size: tuple[int, int],
        memory_format: torch.memory_format | None,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        batches = (batching.into_batch(t, dim, size) for t, dim in zip((x, indices), in_dims, strict=False))
        return batching.out_of_batch(call(MaxUnpool, *batches, output_size, memory_format), size), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, indices, ctx.output_size, _ = inputs
        ctx.memory_format = layout.format_of(output)
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


@raw_op(
    "max_unpool2d_adjoint(Tensor dy, Tensor indices, SymInt[2] output_size, MemoryFormat memory_format) "
    "-> Tensor"
)
class MaxUnpoolAdjoint(torch.autograd.Function):
    """dx = the transpose of MaxUnpool applied to dy.

    An element that lost its place to a duplicate does not reach y, so its gradient is zero; torch gives
    it the winner's.
    """

    @staticmethod
    def check(
        op: str,
        dy: Tensor,
        indices: Tensor,
        output_size: tuple[int, int],
        memory_format: torch.memory_format,
    ) -> None:
        given.images(op, dy=dy)
        given.images(op, (torch.int64,), indices=indices)
        given.non_negative(op, output_size=output_size)
        given.same_shape(op, (*indices.shape[:2], *output_size), dy=dy)
        given.known_format(op, memory_format)

    @staticmethod
    def compute(
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
    def fake(
        dy: Tensor, indices: Tensor, output_size: tuple[int, int], memory_format: torch.memory_format
    ) -> Tensor:
        return layout.empty_like(dy, indices.shape, memory_format)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        indices: Tensor,
        output_size: tuple[int, int],
        memory_format: torch.memory_format,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        batches = (batching.into_batch(t, dim, size) for t, dim in zip((dy, indices), in_dims, strict=False))
        return batching.out_of_batch(call(MaxUnpoolAdjoint, *batches, output_size, memory_format), size), 0

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
