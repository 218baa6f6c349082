"""Convolution as a triple of ops, each the gradient of the others.

    y  = Conv(x, w, b)            linear in x and in w
    dx = ConvInputGrad(dy, w, b)  the transpose of x ↦ Conv(x, w); also the transposed convolution
    dw = ConvWeightGrad(dy, x)    the transpose of w ↦ Conv(x, w)

Each one's backward applies the other two, so gradients of any order need no further code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C
from fastops.backends import DTYPES, launch
from fastops.ops import layout
from fastops.ops.autograd import call

Shape = tuple[int, ...]


class ConvSpec(NamedTuple):
    """Options of a convolution; (height, width) pairs."""

    stride: tuple[int, int]
    padding: tuple[int, int]  # before the first row and column
    dilation: tuple[int, int]
    groups: int


@lru_cache(maxsize=4096)
def conv_params(
    spec: ConvSpec,
    x_shape: Shape,
    w_shape: Shape,
    y_shape: Shape,
    dtype: torch.dtype,
    x_format: torch.memory_format,
    w_format: torch.memory_format,
) -> _C.ConvParams:
    """The kernels' params for one combination of shapes and layouts."""
    n, c, *in_ = x_shape
    k, _, *kernel = w_shape
    return _C.ConvParams(
        dtype=DTYPES[dtype],
        channels_last=x_format is layout.CHANNELS_LAST,
        weight_channels_last=w_format is layout.CHANNELS_LAST,
        n=n,
        c=c,
        k=k,
        groups=spec.groups,
        in_=(1, *in_),
        out=(1, *y_shape[2:]),
        kernel=(1, *kernel),
        stride=(1, *spec.stride),
        pad=(0, *spec.padding),
        dilation=(1, *spec.dilation),
    )


def result_format(x: Tensor, w: Tensor) -> torch.memory_format:
    """channels_last if either operand is, as in torch."""
    x_format = layout.format_of(x)
    return x_format if x_format is layout.CHANNELS_LAST else layout.format_of(w)


def _tangent(first: Tensor | None, second: Tensor | None, b_t: Tensor | None, shape: Shape) -> Tensor:
    """The derivative of a product along both factors: the sum of the parts that there are. The bias's
    part is in the first of them, unless there is none."""
    if first is None and second is None:
        assert b_t is not None
        return call(ConvBiasExpand, b_t, shape)
    return first + second if first is not None and second is not None else first if second is None else second


class Conv(torch.autograd.Function):
    """y = x ∗ w + b, of the given shape and layout."""

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format,
    ) -> Tensor:
        w_format = layout.format_of(w)
        y = layout.empty_like(x, shape, memory_format)
        if y.numel():
            params = conv_params(spec, x.shape, w.shape, shape, x.dtype, memory_format, w_format)
            bias = None if b is None else layout.dense(b, layout.CONTIGUOUS)
            launch("conv", params, layout.dense(x, memory_format), layout.dense(w, w_format), bias, y)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, w, _, ctx.spec, _, _ = inputs
        ctx.x_shape, ctx.w_shape = x.shape, w.shape
        ctx.x_format, ctx.w_format = layout.format_of(x), layout.format_of(w)
        ctx.shape, ctx.memory_format = output.shape, layout.format_of(output)
        needs_x, needs_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None)
        ctx.save_for_forward(x, w)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, *_: None) -> Tensor:
        x, w = ctx.saved_tensors
        like = ctx.spec, ctx.shape, ctx.memory_format
        return _tangent(
            None if x_t is None else call(Conv, x_t, w, b_t, *like),
            None if w_t is None else call(Conv, x, w_t, b_t if x_t is None else None, *like),
            b_t,
            ctx.shape,
        )

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx = call(ConvInputGrad, dy, w, None, ctx.spec, ctx.x_shape, ctx.x_format) if needs[0] else None
        dw = call(ConvWeightGrad, dy, x, ctx.spec, ctx.w_shape, ctx.w_format) if needs[1] else None
        db = call(ConvBiasGrad, dy) if needs[2] else None
        return dx, dw, db, None, None, None


class ConvInputGrad(torch.autograd.Function):
    """dx of the given shape and layout from dy and w; plus b per channel (for a transposed convolution)."""

    @staticmethod
    def forward(
        dy: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format,
    ) -> Tensor:
        w_format = layout.format_of(w)
        dx = layout.empty_like(dy, shape, memory_format)
        if dx.numel():
            params = conv_params(spec, shape, w.shape, dy.shape, dy.dtype, memory_format, w_format)
            bias = None if b is None else layout.dense(b, layout.CONTIGUOUS)
            launch(
                "conv_input_grad",
                params,
                layout.dense(dy, memory_format),
                layout.dense(w, w_format),
                bias,
                dx,
            )
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        dy, w, _, ctx.spec, ctx.shape, ctx.memory_format = inputs
        ctx.dy_shape, ctx.w_shape = dy.shape, w.shape
        ctx.dy_format, ctx.w_format = layout.format_of(dy), layout.format_of(w)
        needs_dy, needs_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        ctx.save_for_backward(dy if needs_w else None, w if needs_dy else None)
        ctx.save_for_forward(dy, w)

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, *_: None) -> Tensor:
        dy, w = ctx.saved_tensors
        like = ctx.spec, ctx.shape, ctx.memory_format
        return _tangent(
            None if dy_t is None else call(ConvInputGrad, dy_t, w, b_t, *like),
            None if w_t is None else call(ConvInputGrad, dy, w_t, b_t if dy_t is None else None, *like),
            b_t,
            ctx.shape,
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = call(Conv, g, w, None, ctx.spec, ctx.dy_shape, ctx.dy_format) if needs[0] else None
        dw = call(ConvWeightGrad, dy, g, ctx.spec, ctx.w_shape, ctx.w_format) if needs[1] else None
        db = call(ConvBiasGrad, g) if needs[2] else None
        return ddy, dw, db, None, None, None


class ConvWeightGrad(torch.autograd.Function):
    """dw of the given shape and layout from dy and x."""

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, spec: ConvSpec, shape: Shape, memory_format: torch.memory_format
    ) -> Tensor:
        x_format = layout.format_of(x)
        dw = layout.empty_like(x, shape, memory_format)
        if dw.numel():
            params = conv_params(spec, x.shape, shape, dy.shape, x.dtype, x_format, memory_format)
            launch(
                "conv_weight_grad", params, layout.dense(dy, x_format), layout.dense(x, x_format), dw, None
            )
        return dw

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        dy, x, ctx.spec, ctx.shape, ctx.memory_format = inputs
        ctx.dy_shape, ctx.x_shape = dy.shape, x.shape
        ctx.dy_format, ctx.x_format = layout.format_of(dy), layout.format_of(x)
        needs_dy, needs_x = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        ctx.save_for_backward(dy if needs_x else None, x if needs_dy else None)
        ctx.save_for_forward(dy, x)

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, x_t: Tensor | None, *_: None) -> Tensor:
        dy, x = ctx.saved_tensors
        like = ctx.spec, ctx.shape, ctx.memory_format
        return _tangent(
            None if dy_t is None else call(ConvWeightGrad, dy_t, x, *like),
            None if x_t is None else call(ConvWeightGrad, dy, x_t, *like),
            None,
            ctx.shape,
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = call(Conv, x, g, None, ctx.spec, ctx.dy_shape, ctx.dy_format) if needs[0] else None
        dx = call(ConvInputGrad, dy, g, None, ctx.spec, ctx.x_shape, ctx.x_format) if needs[1] else None
        return ddy, dx, None, None, None


class ConvBiasGrad(torch.autograd.Function):
    """db[k] = Σ dy over the batch and all positions."""

    @staticmethod
    def forward(dy: Tensor) -> Tensor:
        memory_format = layout.format_of(dy)
        db = dy.new_empty(dy.shape[1])
        shape = dy.shape
        params = conv_params(
            _ANY, shape, (shape[1], 1, 1, 1), shape, dy.dtype, memory_format, layout.CONTIGUOUS
        )
        launch("conv_bias_grad", params, layout.dense(dy, memory_format), db)
        return db

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return call(ConvBiasExpand, g, ctx.shape)

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor) -> Tensor:
        return call(ConvBiasGrad, dy_t)


class ConvBiasExpand(torch.autograd.Function):
    """The transpose of ConvBiasGrad: a view that repeats b over the batch and all positions."""

    @staticmethod
    def forward(b: Tensor, shape: Shape) -> Tensor:
        return b.view(1, -1, 1, 1).expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.shape = inputs[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return call(ConvBiasGrad, dy), None

    @staticmethod
    def jvp(ctx: Any, b_t: Tensor, _: None) -> Tensor:
        return call(ConvBiasExpand, b_t, ctx.shape)


# The bias gradient depends on y's shape alone.
_ANY = ConvSpec((1, 1), (0, 0), (1, 1), 1)
