"""Convolution as a triple of ops, each the gradient of the others.

    y      = Conv(x, w, b)            linear in x and in (w, b)
    dx     = ConvInputGrad(dy, w, b)  the transpose of x ↦ Conv(x, w); also the transposed convolution
    dw, db = ConvWeightGrad(dy, x)    the transpose of (w, b) ↦ Conv(x, w, b)

Each one's backward applies the other two, so gradients of any order need no further code. ConvBackward is
the latter two at once, for kernels that then read dy once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastops import _C, arguments
from fastops.backends import DTYPES, launch
from fastops.ops import batching, given, layout
from fastops.ops.autograd import call
from fastops.ops.library import raw_op

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
    tf32: bool = False,
    relu: bool = False,
) -> _C.ConvParams:
    """The kernels' params for one combination of shapes, layouts and precision."""
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
        tf32=tf32,
        relu=relu,
    )


def check_shapes(op: str, spec: ConvSpec, x: Shape, w: Shape, y: Shape) -> None:
    """Raises unless these can be a convolution's shapes. Its kernels look at the heights and widths."""
    given.positive(op, stride=spec.stride, dilation=spec.dilation)
    given.non_negative(op, padding=spec.padding)
    given.sizes(op, 4, x=x, w=w, y=y)
    groups = spec.groups
    if groups < 1 or w[0] % groups != 0 or (x[1], *y[:2]) != (w[1] * groups, x[0], w[0]):
        raise RuntimeError(
            f"{op}: x of shape {tuple(x)}, w of {tuple(w)} and y of {tuple(y)} do not fit together, with "
            f"groups={groups}"
        )


# torch's switch for the precision of fp32 convolutions on GPUs: torch.backends.cudnn.conv.fp32_precision,
# of which torch.backends.cudnn.allow_tf32 is the older face; before torch 2.9 there is only that.
_precision = getattr(torch._C, "_get_fp32_precision_getter", None)


def tf32_switch() -> bool:
    """Whether torch multiplies fp32 in TF32, on GPUs."""
    return torch._C._get_cudnn_allow_tf32() if _precision is None else _precision("cuda", "conv") == "tf32"


def tf32_state(x: Tensor) -> bool:
    """What else than its arguments a convolution of x goes by."""
    return x.is_cuda and tf32_switch()


def tf32_allowed(x: Tensor) -> bool:
    """Whether torch would multiply x in TF32."""
    return x.dtype is torch.float32 and x.device.type == "cuda" and tf32_switch()


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


def _relu_grad(dy: Tensor, y: Tensor) -> Tensor:
    """dy where y is not 0, as torch's relu has it: with the gradient of NaN."""
    return torch.ops.aten.threshold_backward(dy, y, 0)


@raw_op(
    "conv2d(Tensor x, Tensor w, Tensor? b, OPTIONS, SymInt[4] shape, MemoryFormat? memory_format, bool relu) "
    "-> Tensor",
    ConvSpec,
)
class Conv(torch.autograd.Function):
    """y = x ∗ w + b, of the given shape and layout (None: as in torch); relu: max(y, 0)."""

    @staticmethod
    def check(
        op: str, x: Tensor, w: Tensor, b: Tensor | None, spec: ConvSpec, shape: Shape, *options: Any
    ) -> None:
        given.images(op, x=x, w=w)
        arguments.same_dtype(op, x=x, w=w, b=b)
        check_shapes(op, spec, x.shape, w.shape, shape)
        given.same_shape(op, w.shape[:1], b=b)
        given.known_format(op, options[0])

    @staticmethod
    def compute(
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format | None,
        relu: bool = False,
    ) -> Tensor:
        w_format = layout.format_of(w)
        memory_format = memory_format or result_format(x, w)
        y = layout.empty_like(x, shape, memory_format)
        if y.numel() and not x.numel():  # no channels: sums without a term
            y.zero_() if b is None else y.copy_(b.reshape(1, -1, 1, 1))
            if relu:
                y.relu_()
        elif y.numel():
            precision = tf32_allowed(x)
            params = conv_params(
                spec, x.shape, w.shape, shape, x.dtype, memory_format, w_format, precision, relu
            )
            bias = None if b is None else layout.dense(b, layout.CONTIGUOUS)
            launch("conv", params, layout.dense(x, memory_format), layout.dense(w, w_format), bias, y)
        return y

    @staticmethod
    def fake(
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format | None,
        relu: bool = False,
    ) -> Tensor:
        return layout.empty_like(x, shape, memory_format or result_format(x, w))

    autocast = torch.get_autocast_dtype

    @staticmethod
    def flops(x: Shape, w: Shape, b: Shape | None, spec: ConvSpec, shape: Shape, *_: Any) -> int:
        return 2 * math.prod(shape) * math.prod(w[1:])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format | None,
        relu: bool = False,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        if in_dims[1] is None and in_dims[2] is None:
            batch = batching.into_batch(x, in_dims[0], size)
            y = call(Conv, batch, w, b, spec, (size * shape[0], *shape[1:]), None, relu)
            return batching.out_of_batch(y, size), 0
        # A group of channels for each.
        channels = batching.into_channels(x, in_dims[0], size)
        w, b = batching.into_batch(w, in_dims[1], size), batching.into_batch(b, in_dims[2], size)
        grouped = spec._replace(groups=size * spec.groups)
        y = call(Conv, channels, w, b, grouped, (shape[0], size * shape[1], *shape[2:]), None, relu)
        return batching.out_of_channels(y, size), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, w, _, ctx.spec, _, _, ctx.relu = inputs
        ctx.x_shape, ctx.w_shape = x.shape, w.shape
        ctx.x_format, ctx.w_format = layout.format_of(x), layout.format_of(w)
        ctx.shape, ctx.memory_format = output.shape, layout.format_of(output)
        needs_x, needs_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        y = output if ctx.relu else None
        ctx.save_for_backward(x if needs_w else None, w if needs_x else None, y)
        ctx.save_for_forward(x, w, y)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, *_: None) -> Tensor:
        x, w, y = ctx.saved_tensors
        like = ctx.spec, ctx.shape, ctx.memory_format, False
        y_t = _tangent(
            None if x_t is None else call(Conv, x_t, w, b_t, *like),
            None if w_t is None else call(Conv, x, w_t, b_t if x_t is None else None, *like),
            b_t,
            ctx.shape,
        )
        return _relu_grad(y_t, y) if ctx.relu else y_t

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, y = ctx.saved_tensors
        needs_x, needs_w, needs_b, *_ = ctx.needs_input_grad
        if ctx.relu:
            dy = _relu_grad(dy, y)
        dx = dw = db = None
        if needs_x and needs_w:
            dx, dw, db = call(ConvBackward, dy, x, w, ctx.spec, needs_b)
        elif needs_x:
            dx = call(ConvInputGrad, dy, w, None, ctx.spec, ctx.x_shape, ctx.x_format)
        elif needs_w:
            dw, db = call(ConvWeightGrad, dy, x, ctx.spec, ctx.w_shape, ctx.w_format, needs_b)
        if needs_b and db is None:
            db = call(ConvBiasGrad, dy)
        return dx, dw, db, None, None, None, None


@raw_op(
    "conv2d_input_grad(Tensor dy, Tensor w, Tensor? b, OPTIONS, SymInt[4] shape, "
    "MemoryFormat? memory_format) -> Tensor",
    ConvSpec,
)
class ConvInputGrad(torch.autograd.Function):
    """dx of the given shape and layout from dy and w; plus b per channel (for a transposed convolution)."""

    @staticmethod
    def check(
        op: str, dy: Tensor, w: Tensor, b: Tensor | None, spec: ConvSpec, shape: Shape, *options: Any
    ) -> None:
        given.images(op, dy=dy, w=w)
        arguments.same_dtype(op, dy=dy, w=w, b=b)
        check_shapes(op, spec, shape, w.shape, dy.shape)
        given.same_shape(op, shape[1:2], b=b)
        given.known_format(op, options[0])

    @staticmethod
    def compute(
        dy: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format | None,
    ) -> Tensor:
        w_format = layout.format_of(w)
        memory_format = memory_format or result_format(dy, w)
        dx = layout.empty_like(dy, shape, memory_format)
        if dx.numel():
            precision = tf32_allowed(dy)
            params = conv_params(spec, shape, w.shape, dy.shape, dy.dtype, memory_format, w_format, precision)
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
    def fake(
        dy: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format | None,
    ) -> Tensor:
        return layout.empty_like(dy, shape, memory_format or result_format(dy, w))

    autocast = torch.get_autocast_dtype

    @staticmethod
    def flops(dy: Shape, w: Shape, *_: Any) -> int:
        return 2 * math.prod(dy) * math.prod(w[1:])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        w: Tensor,
        b: Tensor | None,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format | None,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        if in_dims[1] is None and in_dims[2] is None:
            batch = batching.into_batch(dy, in_dims[0], size)
            dx = call(ConvInputGrad, batch, w, b, spec, (size * shape[0], *shape[1:]), None)
            return batching.out_of_batch(dx, size), 0
        channels = batching.into_channels(dy, in_dims[0], size)
        w, b = batching.into_batch(w, in_dims[1], size), batching.into_batch(b, in_dims[2], size)
        grouped = spec._replace(groups=size * spec.groups)
        dx = call(ConvInputGrad, channels, w, b, grouped, (shape[0], size * shape[1], *shape[2:]), None)
        return batching.out_of_channels(dx, size), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        dy, w, _, ctx.spec, ctx.shape, _ = inputs
        ctx.memory_format = layout.format_of(output)
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
        ddy = dw = db = None
        if needs[0]:
            ddy = call(Conv, g, w, None, ctx.spec, ctx.dy_shape, ctx.dy_format, False)
        if needs[1]:
            dw, _ = call(ConvWeightGrad, dy, g, ctx.spec, ctx.w_shape, ctx.w_format, False)
        if needs[2]:
            db = call(ConvBiasGrad, g)
        return ddy, dw, db, None, None, None


@raw_op(
    "conv2d_weight_grad(Tensor dy, Tensor x, OPTIONS, SymInt[4] shape, MemoryFormat memory_format, "
    "bool with_bias) -> (Tensor, Tensor)",
    ConvSpec,
)
class ConvWeightGrad(torch.autograd.Function):
    """(dw, db) from dy and x: dw of the given shape and layout, db if wanted, else None."""

    @staticmethod
    def check(op: str, dy: Tensor, x: Tensor, spec: ConvSpec, shape: Shape, *options: Any) -> None:
        given.images(op, dy=dy, x=x)
        arguments.same_dtype(op, dy=dy, x=x)
        check_shapes(op, spec, x.shape, shape, dy.shape)
        given.known_format(op, options[0])

    @staticmethod
    def compute(
        dy: Tensor,
        x: Tensor,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format,
        with_bias: bool,
    ) -> tuple[Tensor, Tensor | None]:
        x_format = layout.format_of(x)
        dw = layout.empty_like(x, shape, memory_format)
        db = dy.new_empty(dy.shape[1]) if with_bias else None
        if dw.numel():
            precision = tf32_allowed(x)
            params = conv_params(spec, x.shape, shape, dy.shape, x.dtype, x_format, memory_format, precision)
            launch("conv_weight_grad", params, layout.dense(dy, x_format), layout.dense(x, x_format), dw, db)
        elif db is not None:
            db.copy_(ConvBiasGrad.compute(dy))
        return dw, db

    @staticmethod
    def fake(
        dy: Tensor,
        x: Tensor,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format,
        with_bias: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dw = layout.empty_like(x, shape, memory_format)
        return dw, dy.new_empty(dy.shape[1]) if with_bias else None

    @staticmethod
    def present(*args: Any) -> tuple[bool, ...]:
        return True, args[-1]

    @staticmethod
    def flops(dy: Shape, x: Shape, spec: ConvSpec, shape: Shape, *_: Any) -> int:
        # As torch counts, who does not divide by the groups here.
        return 2 * math.prod(dy) * x[1] * math.prod(shape[2:])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        x: Tensor,
        spec: ConvSpec,
        shape: Shape,
        memory_format: torch.memory_format,
        with_bias: bool,
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[int, int | None]]:
        size = info.batch_size
        grouped = spec._replace(groups=size * spec.groups)
        dw, db = call(
            ConvWeightGrad,
            batching.into_channels(dy, in_dims[0], size),
            batching.into_channels(x, in_dims[1], size),
            grouped,
            (size * shape[0], *shape[1:]),
            memory_format,
            with_bias,
        )
        return (batching.out_of_batch(dw, size), batching.out_of_batch(db, size)), (
            0,
            0 if with_bias else None,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, ctx.spec, ctx.shape, ctx.memory_format, _ = inputs
        ctx.dy_shape, ctx.x_shape = dy.shape, x.shape
        ctx.dy_format, ctx.x_format = layout.format_of(dy), layout.format_of(x)
        ctx.set_materialize_grads(False)
        needs_dy, needs_x = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        ctx.save_for_backward(dy if needs_x else None, x if needs_dy else None)
        ctx.save_for_forward(dy, x)

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, x_t: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        like = ctx.spec, ctx.shape, ctx.memory_format
        dw_t, db_t = _NONE if dy_t is None else call(ConvWeightGrad, dy_t, x, *like, True)
        if x_t is not None:
            dw_t = _sum(dw_t, call(ConvWeightGrad, dy, x_t, *like, False)[0])
        return dw_t, db_t

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_b: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = _conv_or_bias(x, g, g_b, ctx.spec, ctx.dy_shape, ctx.dy_format) if needs[0] else None
        dx = None
        if needs[1] and g is not None:
            dx = call(ConvInputGrad, dy, g, None, ctx.spec, ctx.x_shape, ctx.x_format)
        return ddy, dx, None, None, None, None


_NONE = (None, None)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Of the terms that there are."""
    return a + b if a is not None and b is not None else a if b is None else b


def _conv_or_bias(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    spec: ConvSpec,
    shape: Shape,
    memory_format: torch.memory_format,
) -> Tensor | None:
    """x ∗ w + b, of the terms that there are."""
    if w is not None:
        return call(Conv, x, w, b, spec, shape, memory_format, False)
    return None if b is None else call(ConvBiasExpand, b, shape)


@raw_op(
    "conv2d_backward(Tensor dy, Tensor x, Tensor w, OPTIONS, bool with_bias) -> (Tensor, Tensor, Tensor)",
    ConvSpec,
)
class ConvBackward(torch.autograd.Function):
    """(dx, dw, db) from dy, x and w, in the layouts of x and w; db if wanted, else None."""

    @staticmethod
    def check(op: str, dy: Tensor, x: Tensor, w: Tensor, spec: ConvSpec, with_bias: bool) -> None:
        given.images(op, dy=dy, x=x, w=w)
        arguments.same_dtype(op, dy=dy, x=x, w=w)
        check_shapes(op, spec, x.shape, w.shape, dy.shape)

    @staticmethod
    def compute(
        dy: Tensor, x: Tensor, w: Tensor, spec: ConvSpec, with_bias: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x_format, w_format = layout.format_of(x), layout.format_of(w)
        if not dy.numel() or not x.numel():  # no images, or no channels
            dx = ConvInputGrad.compute(dy, w, None, spec, x.shape, x_format)
            return dx, *ConvWeightGrad.compute(dy, x, spec, w.shape, w_format, with_bias)
        dx = layout.empty_like(dy, x.shape, x_format)
        dw = layout.empty_like(dy, w.shape, w_format)
        db = dy.new_empty(dy.shape[1]) if with_bias else None
        precision = tf32_allowed(dy)
        params = conv_params(spec, x.shape, w.shape, dy.shape, dy.dtype, x_format, w_format, precision)
        dense = layout.dense(dy, x_format), layout.dense(x, x_format), layout.dense(w, w_format)
        launch("conv_backward", params, *dense, dx, dw, db)
        return dx, dw, db

    @staticmethod
    def fake(
        dy: Tensor, x: Tensor, w: Tensor, spec: ConvSpec, with_bias: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        dx = layout.empty_like(dy, x.shape, layout.format_of(x))
        dw = layout.empty_like(dy, w.shape, layout.format_of(w))
        return dx, dw, dy.new_empty(dy.shape[1]) if with_bias else None

    @staticmethod
    def present(*args: Any) -> tuple[bool, ...]:
        return True, True, args[-1]

    @staticmethod
    def flops(dy: Shape, x: Shape, w: Shape, spec: ConvSpec, *_: Any) -> int:
        return ConvInputGrad.flops(dy, w) + ConvWeightGrad.flops(dy, x, spec, w)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        x: Tensor,
        w: Tensor,
        spec: ConvSpec,
        with_bias: bool,
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        of_dy, of_x, of_w, *_ = in_dims
        x_shape, w_shape = batching.shape_of(x, of_x), batching.shape_of(w, of_w)
        like_x = spec, x_shape, layout.CONTIGUOUS
        like_w = spec, w_shape, layout.CONTIGUOUS, with_bias
        dx, _ = ConvInputGrad.vmap(info, (of_dy, of_w, None), dy, w, None, *like_x)
        (dw, db), _ = ConvWeightGrad.vmap(info, (of_dy, of_x), dy, x, *like_w)
        return (dx, dw, db), (0, 0, 0 if with_bias else None)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, w, ctx.spec, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, w)
        ctx.save_for_forward(dy, x, w)

    @staticmethod
    def jvp(
        ctx: Any, dy_t: Tensor | None, x_t: Tensor | None, w_t: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        dy, x, w = ctx.saved_tensors
        dx_t = dw_t = db_t = None
        if dy_t is not None:
            dx_t, dw_t, db_t = call(ConvBackward, dy_t, x, w, ctx.spec, True)
        if x_t is not None:
            like_w = ctx.spec, w.shape, layout.format_of(w), False
            dw_t = _sum(dw_t, call(ConvWeightGrad, dy, x_t, *like_w)[0])
        if w_t is not None:
            dx_t = _sum(dx_t, call(ConvInputGrad, dy, w_t, None, ctx.spec, x.shape, layout.format_of(x)))
        return dx_t, dw_t, db_t

    @staticmethod
    def backward(
        ctx: Any, g_x: Tensor | None, g_w: Tensor | None, g_b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        dy, x, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        like_dy = ctx.spec, dy.shape, layout.format_of(dy)
        ddy = dx = dw = None
        if needs[0]:
            of_x = None if g_x is None else call(Conv, g_x, w, None, *like_dy, False)
            ddy = _sum(_conv_or_bias(x, g_w, g_b, *like_dy), of_x)
        if needs[1] and g_w is not None:
            dx = call(ConvInputGrad, dy, g_w, None, ctx.spec, x.shape, layout.format_of(x))
        if needs[2] and g_x is not None:
            dw, _ = call(ConvWeightGrad, dy, g_x, ctx.spec, w.shape, layout.format_of(w), False)
        return ddy, dx, dw, None, None


@raw_op("conv2d_bias_grad(Tensor dy) -> Tensor")
class ConvBiasGrad(torch.autograd.Function):
    """db[k] = Σ dy over the batch and all positions."""

    @staticmethod
    def check(op: str, dy: Tensor) -> None:
        given.images(op, dy=dy)

    @staticmethod
    def compute(dy: Tensor) -> Tensor:
        memory_format = layout.format_of(dy)
        db = dy.new_empty(dy.shape[1])
        shape = dy.shape
        params = conv_params(
            _ANY, shape, (shape[1], 1, 1, 1), shape, dy.dtype, memory_format, layout.CONTIGUOUS
        )
        launch("conv_bias_grad", params, layout.dense(dy, memory_format), db)
        return db

    @staticmethod
    def fake(dy: Tensor) -> Tensor:
        return dy.new_empty(dy.shape[1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], dy: Tensor) -> tuple[Tensor, int]:
        db = call(ConvBiasGrad, batching.into_channels(dy, in_dims[0], info.batch_size))
        return batching.out_of_batch(db, info.batch_size), 0

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
    def vmap(info: Any, in_dims: tuple[int | None, ...], b: Tensor, shape: Shape) -> tuple[Tensor, int]:
        channels = call(ConvBiasExpand, b.movedim(in_dims[0], 0).flatten(), (1, math.prod(b.shape), 1, 1))
        return channels.view(-1, 1, shape[1], 1, 1).expand(-1, *shape), 0

    dispatch = forward

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
