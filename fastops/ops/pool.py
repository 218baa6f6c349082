"""Average pooling, plain and adaptive. A linear op and its adjoint, each the other's gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C
from fastops.backends import DTYPES, launch
from fastops.ops import batching, given, layout, shapes
from fastops.ops.autograd import call
from fastops.ops.library import raw_op


class AvgPoolSpec(NamedTuple):
    """Options of an average pooling; (height, width) pairs."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None


class AdaptiveSpec(NamedTuple):
    """Options of an adaptive pooling."""

    output_size: tuple[int, int]


class Plan(NamedTuple):
    """What one pooling call needs: the kernel's params and the shapes on both sides."""

    params: _C.PoolParams
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def checked_pooled_size(
    name: str, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[int, int]:
    """Output (height, width) of a window over an (N, C, H, W) shape; raises where there is none."""
    if 0 in shape[1:]:
        raise RuntimeError(
            f"{name}: expected a non-empty input (only the batch may be 0), got {tuple(shape)}"
        )
    for k, p in zip(kernel, padding, strict=True):
        if p > k // 2:
            raise RuntimeError(
                f"{name}: padding should be at most half of the kernel size, whatever the dilation, but got "
                f"padding={padding}, kernel_size={kernel}"
            )
    out = tuple(
        shapes.pooled_size(*axis, ceil_mode)
        for axis in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    if out[0] < 1 or out[1] < 1:
        raise RuntimeError(
            f"{name}: the output would be {out}, which is too small: input {tuple(shape)}, "
            f"kernel_size={kernel}, stride={stride}, padding={padding}, dilation={dilation}"
        )
    return out  # type: ignore[return-value]


def avg_pooled_shape(spec: AvgPoolSpec | AdaptiveSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The output's shape; raises where there is none."""
    if isinstance(spec, AdaptiveSpec):
        if 0 in shape[1:]:
            raise RuntimeError(
                f"adaptive_avg_pool2d: only the batch of the input may be empty, got shape {tuple(shape)}"
            )
        return (*shape[:2], *spec.output_size)
    options = spec.kernel, spec.stride, spec.padding, (1, 1), spec.ceil_mode
    return (*shape[:2], *checked_pooled_size("avg_pool2d", shape, *options))


def check_avg_options(op: str, spec: AvgPoolSpec | AdaptiveSpec) -> None:
    """Raises unless the pairs are such, and their numbers have the right signs."""
    if isinstance(spec, AdaptiveSpec):
        return given.non_negative(op, output_size=spec.output_size)
    given.positive(op, kernel=spec.kernel, stride=spec.stride)
    given.non_negative(op, padding=spec.padding)


@lru_cache(maxsize=4096)
def avg_pool_plan(
    spec: AvgPoolSpec | AdaptiveSpec, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> Plan:
    n, c, h, w = shape
    out_shape = avg_pooled_shape(spec, shape)
    options: dict[str, Any] = dict(adaptive=True)
    if not isinstance(spec, AdaptiveSpec):
        options = dict(
            kernel=(1, *spec.kernel),
            stride=(1, *spec.stride),
            pad=(0, *spec.padding),
            count_include_pad=spec.count_include_pad,
            divisor_override=spec.divisor_override or 0,
        )
    params = _C.PoolParams(
        dtype=DTYPES[dtype],
        channels_last=channels_last,
        n=n,
        c=c,
        in_=(1, h, w),
        out=(1, *out_shape[2:]),
        **options,
    )
    return Plan(params, tuple(shape), out_shape)


@raw_op("adaptive_avg_pool2d(Tensor x, OPTIONS) -> Tensor", AdaptiveSpec)
@raw_op("avg_pool2d(Tensor x, OPTIONS) -> Tensor", AvgPoolSpec)
class AvgPool(torch.autograd.Function):
    """y = average of x over windows."""

    @staticmethod
    def check(op: str, x: Tensor, spec: AvgPoolSpec | AdaptiveSpec) -> None:
        given.images(op, x=x)
        check_avg_options(op, spec)

    @staticmethod
    def compute(x: Tensor, spec: AvgPoolSpec | AdaptiveSpec) -> Tensor:
        memory_format = layout.format_of(x)
        plan = avg_pool_plan(spec, x.shape, x.dtype, memory_format is layout.CHANNELS_LAST)
        y = layout.empty_like(x, plan.out_shape, memory_format)
        launch("avg_pool", plan.params, layout.dense(x, memory_format), y)
        return y

    @staticmethod
    def fake(x: Tensor, spec: AvgPoolSpec | AdaptiveSpec) -> Tensor:
        return layout.empty_like(x, avg_pooled_shape(spec, x.shape), layout.format_of(x))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, spec: AvgPoolSpec | AdaptiveSpec
    ) -> tuple[Tensor, int]:
        batch = batching.into_batch(x, in_dims[0], info.batch_size)
        return batching.out_of_batch(call(AvgPool, batch, spec), info.batch_size), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, ctx.spec = inputs
        ctx.shape, ctx.memory_format = x.shape, layout.format_of(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return call(AvgPoolAdjoint, dy, ctx.spec, ctx.shape, ctx.memory_format), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return call(AvgPool, dx, ctx.spec)


@raw_op(
    "adaptive_avg_pool2d_adjoint(Tensor dy, OPTIONS, SymInt[4] shape, MemoryFormat memory_format) -> Tensor",
    AdaptiveSpec,
)
@raw_op(
    "avg_pool2d_adjoint(Tensor dy, OPTIONS, SymInt[4] shape, MemoryFormat memory_format) -> Tensor",
    AvgPoolSpec,
)
class AvgPoolAdjoint(torch.autograd.Function):
    """dx = the transpose of AvgPool, for an input of the given shape and layout, applied to dy."""

    @staticmethod
    def check(
        op: str,
        dy: Tensor,
        spec: AvgPoolSpec | AdaptiveSpec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> None:
        given.images(op, dy=dy)
        check_avg_options(op, spec)
        given.sizes(op, 4, shape=shape)
        given.same_shape(op, avg_pooled_shape(spec, shape), dy=dy)
        given.known_format(op, memory_format)

    @staticmethod
    def compute(
        dy: Tensor,
        spec: AvgPoolSpec | AdaptiveSpec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> Tensor:
        plan = avg_pool_plan(spec, shape, dy.dtype, memory_format is layout.CHANNELS_LAST)
        dx = layout.empty_like(dy, plan.in_shape, memory_format)
        launch("avg_pool_adjoint", plan.params, layout.dense(dy, memory_format), dx)
        return dx

    @staticmethod
    def fake(
        dy: Tensor,
        spec: AvgPoolSpec | AdaptiveSpec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> Tensor:
        return layout.empty_like(dy, shape, memory_format)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        spec: AvgPoolSpec | AdaptiveSpec,
        shape: tuple[int, ...],
        memory_format: torch.memory_format,
    ) -> tuple[Tensor, int]:
        batch = batching.into_batch(dy, in_dims[0], info.batch_size)
        dx = call(AvgPoolAdjoint, batch, spec, (info.batch_size * shape[0], *shape[1:]), memory_format)
        return batching.out_of_batch(dx, info.batch_size), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.spec, ctx.shape, ctx.memory_format = inputs

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, None, None, None]:
        return call(AvgPool, ddx, ctx.spec), None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Tensor, *_: None) -> Tensor:
        return call(AvgPoolAdjoint, ddy, ctx.spec, ctx.shape, ctx.memory_format)
